"""Canaries: pairs of twins of which a coin had one trained, so that an exact test needs no retrained model.

If a model does not depend on the trained twins, the sign of ``d_i = s(twin_i) − s(ghost_i)`` is a fair coin whatever
the model is, and gold passes at its nominal level.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays

LARGEST = 700.0
"""Of a logarithm, beyond which a number of 64 bits ends: so much evidence is enough."""
BETS = tuple(round(0.1 * step, 1) for step in range(-9, 10) if step)


class SignTest(NamedTuple):
    """What the signs of n pairs say.

    Attributes:
        pairs: those without a tie.
        larger: in how many the trained twin has the larger signal.
        p_value: two-sided, exact.
        advantage: ``2 p − 1`` for the fraction p of them, in ``[-1, 1]``.
        bound: the largest ``|2 p − 1|`` that the pairs leave possible, with 95 % confidence.
    """

    pairs: int
    larger: int
    p_value: float
    advantage: float
    bound: float


def sign_test(twins: npt.ArrayLike, ghosts: npt.ArrayLike) -> SignTest | None:
    """The exact sign test on the signals of trained twins and their ghosts, which were never trained on.

    ``larger ~ Binomial(n, ½)`` where the model does not depend on the coins. The bound is the further end of Clopper's
    and Pearson's interval of p at 95 %, as an advantage: ``max |2 p − 1|``.

    Args:
        twins: Signals of the trained twins ``[M]``, any that was fixed beforehand.
        ghosts: Of their ghosts ``[M]``.

    Returns:
        The test; ``None`` where every pair ties, which tells nothing.

    Raises:
        ValueError: Bad shapes, or values that are not finite.

    Source: Steinke, Nasr and Jagielski, NeurIPS 2023 (arXiv 2305.08846), for coins by sample in one training; the sign
    test after Arbuthnot, 1710.

    Example:
        >>> found = sign_test(np.arange(10.0) + 1, np.arange(10.0))
        >>> found.larger, found.pairs, round(found.p_value, 5), found.advantage
        (10, 10, 0.00195, 1.0)
    """
    from scipy.stats import binomtest  # a second to import, and only audits need it

    trained, other = arrays.vector(twins, "twins"), arrays.vector(ghosts, "ghosts")
    if trained.size != other.size:
        raise ValueError(f"expected as many ghosts as twins, {trained.size}, got {other.size}.")
    pairs, larger = int((trained != other).sum()), int((trained > other).sum())
    if pairs == 0:
        return None
    test = binomtest(larger, pairs)
    interval = test.proportion_ci(0.95, method="exact")
    bound = max(abs(2 * interval.low - 1), abs(2 * interval.high - 1))
    return SignTest(pairs, larger, float(test.pvalue), 2 * larger / pairs - 1, float(bound))


def e_value(signs: Sequence[int]) -> float:
    """Evidence against fair coins that stays valid whenever one looks: stop at ``1 / α``.

    ``E = mean_λ Π_i (1 + λ s_i)`` over bets λ of −0.9, …, 0.9 without 0 and signs ``s_i`` of 1 or −1. Under fair coins
    its mean is 1 after any number of them, so that it ever exceeds ``1 / α`` with a chance of at most α: tranches of a
    chain of requests multiply.

    Args:
        signs: 1 where the trained twin has the larger signal, −1 where its ghost has; ties left out.

    Returns:
        The e-value, at least 0; 1 without a sign.

    Raises:
        ValueError: A sign that is neither 1 nor −1.

    Source: Ville, 1939; mixtures of bets after Waudby-Smith and Ramdas, JRSS B 2024 (arXiv 2010.09686).

    Example:
        >>> e_value([]), round(e_value([1] * 20), 1), e_value([1, -1] * 20) < 1
        (1.0, 31139.5, True)
    """
    if set(signs) - {1, -1}:
        raise ValueError(f"expected signs of 1 and -1, got {sorted(set(signs) - {1, -1})}.")
    up, down = sum(sign == 1 for sign in signs), sum(sign == -1 for sign in signs)
    bets = np.asarray(BETS)
    wealth = up * np.log1p(bets) + down * np.log1p(-bets)
    return float(np.exp(np.minimum(wealth, LARGEST)).mean())


def commitment(pairs: Sequence[Mapping[str, str]], salt: str) -> str:
    """SHA-256 over the coins before training, to be revealed at the audit: nobody chose them afterwards.

    Args:
        pairs: ids by ``twin`` and ``ghost``.
        salt: random, so that the coins cannot be guessed from it.

    Returns:
        64 hexadecimal digits.

    Source: ours.

    Example:
        >>> commitment([{"twin": "train/1", "ghost": "train/2"}], "s")[:8]
        '108a6deb'
    """
    stated = [salt, *([pair["twin"], pair["ghost"]] for pair in pairs)]
    return hashlib.sha256(json.dumps(stated).encode()).hexdigest()
