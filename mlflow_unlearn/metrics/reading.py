"""What the membership measures say of a model, in one word."""

import math
from collections.abc import Mapping
from typing import Literal

from mlflow_unlearn.metrics.collapse import COLLAPSED, stated_collapse
from mlflow_unlearn.metrics.membership import AucReading, read_auc

LARGEST_DECIDED_NULL = 0.15
SLACK = 1e-9
"""What rounding may take from a value that equals its null."""

Attack = Literal["mia_advantage", "mia_auc"]
"""The measure that decides; the latter in records and policies of earlier releases."""
AdvantageReading = AucReading | Literal["spread"]
NOT_MEASURED = "not measured"


def read_advantage(value: float, null: float, auc: float, auc_low: float, auc_high: float) -> AdvantageReading:
    """Read :func:`mlflow_unlearn.metrics.advantage.advantage` in one word.

    Above its null: *residual* where the AUC of the margin is above its own (forgotten samples are still recognised),
    *over-forgotten* where it is below (the Streisand effect, as bad), else *spread* (they stand out on both sides).
    Within its null: *undecided* where that is above 0.15, else *indistinguishable*.

    Args:
        value: ``mia_advantage``.
        null: Its 95 % quantile under the null.
        auc: AUC of the margin.
        auc_low: 2.5 % quantile of that under the null.
        auc_high: 97.5 % quantile likewise.

    Returns:
        One of the five words.

    Raises:
        ValueError: A value outside ``[0, 1]``, or ``auc_low > auc_high``.

    Source: ours; "Streisand effect" after Golatkar et al., CVPR 2020 (arXiv 1911.04933).

    Example:
        >>> [read_advantage(value, 0.1, auc, 0.47, 0.53) for value, auc in ((0.2, 0.6), (0.2, 0.4), (0.2, 0.5))]
        ['residual', 'over-forgotten', 'spread']
        >>> [read_advantage(0.1, null, 0.6, 0.47, 0.53) for null in (0.1, 0.2)]
        ['indistinguishable', 'undecided']
    """
    values = (value, null, auc, auc_low, auc_high)
    if not all(0.0 <= each <= 1.0 for each in values) or auc_low > auc_high:
        raise ValueError(f"expected numbers in [0, 1] with auc_low <= auc_high, got {', '.join(map(str, values))}.")
    if value > null + SLACK:
        if auc > auc_high + SLACK:
            return "residual"
        return "over-forgotten" if auc < auc_low - SLACK else "spread"
    return "undecided" if null > LARGEST_DECIDED_NULL else "indistinguishable"


def read_membership(
    values: Mapping[str, float], missing: Mapping[str, str], attack: Attack | None = None, *, suffix: str = ""
) -> str:
    """The reading of a model's metrics: of a collapsed model *collapsed*, and else by one attack.

    Args:
        values: metric key → value.
        missing: metric key → why it was not computed.
        attack: which; None takes ``mia_advantage``, and ``mia_auc`` where a record does not know that.
        suffix: of the keys; ``_val`` with the validation set in the place of the test set.

    Returns:
        A word of `read_advantage`, *collapsed*, or *not measured*.

    Example:
        >>> read_membership({"mia_auc_low": 0.52, "mia_auc_high": 0.58}, {})
        'residual'
        >>> read_membership({}, {"mia_advantage": "no class of the forget set occurs in the test set"})
        'not measured'
    """
    if stated_collapse(missing) is not None:
        return COLLAPSED
    name = f"mia_advantage{suffix}"
    if attack is None:
        attack = "mia_advantage" if name in values or name in missing else "mia_auc"
    if attack == "mia_auc":
        low, high = (values.get(f"mia_auc{suffix}_{end}") for end in ("low", "high"))
        return NOT_MEASURED if low is None or high is None else read_auc(low, high)
    auc = f"mia_margin_auc{suffix}"
    found = [values.get(key) for key in (name, f"mia_advantage_null{suffix}", auc, f"{auc}_low", f"{auc}_high")]
    numbers = [value for value in found if value is not None]
    return read_advantage(*numbers) if len(numbers) == len(found) else NOT_MEASURED


def read_after(word: str, original: str) -> str:
    """The reading of an unlearned model, where the original's is known.

    Where the attack did not tell the forget set from unseen samples in the original, that it does not now is no news.

    Args:
        word: what :func:`read_membership` says of the unlearned model.
        original: what it says of the original; may be "not measured".

    Returns:
        *uninformative* in the place of *indistinguishable* if the original is not told apart.

    Example:
        >>> [read_after("indistinguishable", before) for before in ("residual", "undecided", "indistinguishable")]
        ['indistinguishable', 'uninformative', 'uninformative']
    """
    return word if word != "indistinguishable" or tells_apart(original) else "uninformative"


def tells_apart(word: str) -> bool:
    """Whether a reading says that the attack can tell the forget set from unseen samples, in whichever way."""
    return word in ("residual", "over-forgotten", "spread")


def samples_needed(null: float, n_forget: int, n_unseen: int) -> int | None:
    """How many forgotten samples bring the null down to 0.15, beside as many unseen ones as there are.

    The null is taken to shrink as ``sqrt(1 / n_forget + 1 / n_unseen)``, as a Kolmogorov-Smirnov statistic's does.

    Args:
        null: the 95 % quantile that was found.
        n_forget: with so many forgotten samples.
        n_unseen: and so many unseen ones of their classes.

    Returns:
        A number of samples; None where no number would do, since the unseen ones are too few.

    Example:
        >>> samples_needed(0.43, 10, 10_000), samples_needed(0.43, 1000, 10)
        (83, None)
    """
    left = (1 / n_forget + 1 / n_unseen) * (LARGEST_DECIDED_NULL / null) ** 2 - 1 / n_unseen
    return math.ceil(1 / left) if left > 0 else None
