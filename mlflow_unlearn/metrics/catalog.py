"""The metrics, one record each, which tables, report, model card, policies, `tune` and ``docs/metrics.md`` use.

The options of the shell are made from it as well, so it imports no NumPy: a record names the function that computes it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlflow_unlearn.metrics.outputs import Compute

Need = Literal["forget", "retain", "val", "test", "original", "gold"]


@dataclass(frozen=True)
class Metric:
    """A metric: how it is computed, how it is read, and where it is shown.

    In ``objective``, ``comparison`` and ``card`` the smallest number stands first, equal ones in the order of the
    catalog; None: it is not there.

    Attributes:
        key: its name in tags, tables and policies.
        meaning: the words beside it in tables.
        computed_by: ``module.function`` of this package, from `MetricInputs` to `Computed`. Metrics that share work
            share a function.
        needs: the splits and reference models without which it is not computed.
        section: the heading of ``docs/metrics.md`` that defines it, as an anchor.
        definition: counted up when the same data would give another value; the evidence names it, and `compute_metrics`
            knows the earlier ones. Those of 1 that are 2 today counted the classes that earlier requests had removed.
        range: the lowest and the highest value that it can have.
        ideal: the best value, where that is one number.
        should: how unlearning should change it, where ``meaning`` says so.
        shown_times: what pages and cards multiply it by, as the papers' tables do; everything else has the value.
        good: what is good in words, beside the number or in its place.
        val_name: what `tune` calls it with the validation set in the place of the test set; None: `tune` ignores it.
        objective: its place among the objectives of `tune`, which minimises the distance from ``ideal``.
        comparison: its place among the columns of `compare`.
        printed: `compare` also prints its column, not only writes it into files.
        card: its column in the model card's table of requests.
        by_request: it depends on what was forgotten, and is shown for each request.
        interval_end: it is an end of the interval of the metric in whose name it starts, and shown beside that.
        of_null: it belongs to the null of the metric in whose name it starts, and is no result by itself.
        classes_only: it is defined only where a class is wholly forgotten; elsewhere it is not listed as missing.
    """

    key: str
    meaning: str
    computed_by: str
    needs: tuple[Need, ...]
    section: str
    definition: int = 1
    range: tuple[float, float] = (0.0, 1.0)
    ideal: float | None = None
    should: Literal["fall", "rise"] | None = None
    shown_times: float = 1.0
    good: str = ""
    val_name: str | None = None
    objective: int | None = None
    comparison: int | None = None
    printed: bool = True
    card: int | None = None
    by_request: bool = True
    interval_end: bool = False
    of_null: bool = False
    classes_only: bool = False

    def function(self) -> "Compute":
        """The function that ``computed_by`` names."""
        module, name = self.computed_by.split(".")
        function: Compute = getattr(import_module(f"mlflow_unlearn.metrics.{module}"), name)
        return function

    def distance(self, value: float) -> float:
        """How far a value is from the ideal.

        Raises:
            ValueError: the ideal is not a number.
        """
        if self.ideal is None:
            raise ValueError(f"{self.key} has no ideal value")
        return abs(value - self.ideal)


# Metrics that share work share a function.
_ACCURACY = partial(
    Metric,
    computed_by="accuracy.accuracies",
    needs=("forget", "retain", "test"),
    section="accuracy",
    good="the original's value",
    comparison=4,
)
_GAP = partial(
    Metric,
    computed_by="accuracy.average_gaps",
    needs=("forget", "retain", "test", "gold"),
    section="average-gap",
    definition=2,
    ideal=0.0,
    good="in practice the floor",
    by_request=False,
)
_ADVANTAGE = partial(
    Metric,
    computed_by="advantage.advantage_with_null",
    needs=("forget", "test"),
    section="the-advantage-of-the-best-threshold",
)
_NULL = partial(_ADVANTAGE, good="small: many samples", of_null=True)
_ATTACK = partial(
    Metric,
    computed_by="membership.attack_fractions",
    needs=("forget", "retain", "test"),
    section="the-membership-attack",
    definition=2,
)
_AUC = partial(
    Metric, computed_by="membership.auc_with_interval", needs=("forget", "test"), section="two-sided-auc", card=3
)
_RF_JSD = partial(
    Metric, computed_by="divergence.from_original", needs=("forget", "retain", "test", "original"), ideal=0.0
)
_JSD = partial(Metric, computed_by="divergence.from_gold", needs=("forget", "gold"))
_PUBLISHED = "as the published code computes it (tables show it × 10⁴)"

_RECORDS = (
    _ACCURACY(
        "acc_forget",
        "accuracy on the forget set; gold's value is right",
        needs=("forget",),
        good="gold's value; near 0 if a whole class is forgotten",
        val_name="acc_forget",
        card=1,
    ),
    _ACCURACY(
        "acc_retain",
        "accuracy on the retain set; should stay",
        needs=("retain",),
        val_name="acc_retain",
        by_request=False,
    ),
    _ACCURACY(
        "acc_val",
        "accuracy on the validation set; should stay",
        needs=("forget", "retain", "val"),
        definition=2,
        printed=False,
        by_request=False,
    ),
    _ACCURACY(
        "acc_test",
        "accuracy on the test set; should stay",
        definition=2,
        val_name="acc_val",
        card=1,
        by_request=False,
    ),
    _ACCURACY(
        "acc_test_forgotten",
        "accuracy on wholly forgotten classes; should fall",
        section="wholly-forgotten-classes",
        ideal=0.0,
        should="fall",
        good="",
        printed=False,
        classes_only=True,
    ),
    _ADVANTAGE(
        "mia_advantage",
        "largest TPR − FPR over thresholds on the margin; this decides",
        ideal=0.0,
        good="in practice within its null",
        val_name="mia_advantage_val",
        objective=2,
        comparison=4,
        card=2,
    ),
    _NULL("mia_advantage_null", "… 95 % quantile by chance alone", val_name="mia_advantage_null_val", card=2),
    _NULL("mia_advantage_null_mean", "… mean by chance alone: the noise floor", val_name="mia_advantage_null_mean_val"),
    _NULL("mia_advantage_null_80", "… 80 % quantile by chance alone", val_name="mia_advantage_null_80_val"),
    _NULL("mia_advantage_se", "… standard deviation by chance alone", val_name="mia_advantage_se_val"),
    _ADVANTAGE(
        "mia_advantage_residual",
        "… where forgotten samples look like members",
        ideal=0.0,
        good="compare with gold's",
        val_name="mia_advantage_residual_val",
        by_request=False,
    ),
    _ADVANTAGE(
        "mia_advantage_over",
        "… where they look less like members than unseen ones",
        ideal=0.0,
        good="compare with gold's",
        val_name="mia_advantage_over_val",
        by_request=False,
    ),
    _ADVANTAGE(
        "mia_margin_auc",
        "telling forget from test by the margin; its interval is chance's",
        ideal=0.5,
        good="above or below 0.5 is bad",
        val_name="mia_margin_auc_val",
        by_request=False,
    ),
    _ADVANTAGE(
        "mia_margin_auc_low",
        "… lower end of what chance gives",
        good="at most the AUC",
        val_name="mia_margin_auc_val_low",
        interval_end=True,
    ),
    _ADVANTAGE(
        "mia_margin_auc_high",
        "… upper end of what chance gives",
        good="at least the AUC",
        val_name="mia_margin_auc_val_high",
        interval_end=True,
    ),
    _ATTACK(
        "mia",
        "forget samples that the attack calls members; follows confidence",
        good="gold's value, not 0",
        val_name="mia_val",
        comparison=4,
        printed=False,
    ),
    _ATTACK("mia_test", "test samples that the same attack calls members", good="no ideal of its own"),
    _ATTACK(
        "mia_excess",
        "mia − mia_test; follows confidence, decides nothing",
        range=(-1.0, 1.0),
        ideal=0.0,
        good="above or below 0 is bad",
        val_name="mia_excess_val",
        objective=3,
        comparison=4,
        printed=False,
        card=4,
    ),
    _AUC(
        "mia_auc",
        "telling forget from test by entropy; 0.5 is right",
        ideal=0.5,
        good="above or below 0.5 is bad",
        val_name="mia_auc_val",
        objective=3,
        comparison=4,
        printed=False,
    ),
    _AUC(
        "mia_auc_low",
        "… lower end of its 95 % interval",
        definition=2,
        good="at most 0.5",
        val_name="mia_auc_val_low",
        interval_end=True,
    ),
    _AUC(
        "mia_auc_high",
        "… upper end of its 95 % interval",
        definition=2,
        good="at least 0.5",
        val_name="mia_auc_val_high",
        interval_end=True,
    ),
    Metric(
        "entropy_ks",
        "distance of the entropy distributions; 0 is right",
        computed_by="membership.entropy_distance",
        needs=("forget", "test"),
        section="entropy-gap",
        ideal=0.0,
        good="compare with gold's",
        val_name="entropy_ks_val",
        objective=3,
    ),
    _RF_JSD(
        "rf_jsd",
        "divergence from the original on unseen data; should fall",
        section="rf-jsd-divergence-without-gold",
        range=(0.0, math.log(2.0)),
        should="fall",
        good="compare with the original's",
        val_name="rf_jsd_val",
        objective=1,
        comparison=6,
    ),
    _RF_JSD(
        "rf_jsd_published",
        _PUBLISHED,
        section="published-variants",
        range=(0.0, math.inf),
        shown_times=1e4,
        by_request=False,
    ),
    _JSD(
        "jsd",
        "divergence from gold on the forget set; see the floor",
        section="jsd-divergence-from-gold",
        range=(0.0, math.log(2.0)),
        good="the floor between two golds",
        comparison=5,
    ),
    _JSD(
        "jsd_published",
        _PUBLISHED,
        section="published-variants",
        range=(0.0, math.inf),
        shown_times=1e4,
        good="as `jsd`",
    ),
    _GAP(
        "avg_gap_advantage",
        "mean distance to gold with mia_advantage; this decides",
        computed_by="accuracy.average_gap_advantage",
        definition=1,
        val_name="avg_gap_advantage_val",
        objective=4,
        comparison=1,
    ),
    _GAP("avg_gap", "mean distance to gold, as published", val_name="avg_gap_val", comparison=3),
    _GAP(
        "avg_gap_excess",
        "mean distance to gold with mia_excess; follows confidence",
        range=(0.0, 1.25),
        val_name="avg_gap_excess_val",
        objective=4,
        comparison=2,
        printed=False,
    ),
)

METRICS: Mapping[str, Metric] = {metric.key: metric for metric in _RECORDS}
"""Every metric by its key, in the order of tables."""
KEYS = tuple(METRICS)


def ranked(place: Literal["objective", "comparison", "card"]) -> tuple[Metric, ...]:
    """The metrics that are shown in a place, in its order."""
    ranks = [(rank, metric) for metric in _RECORDS if (rank := getattr(metric, place)) is not None]
    return tuple(metric for _, metric in sorted(ranks, key=lambda ranked: ranked[0]))


ON_VALIDATION: Mapping[str, Metric] = {m.val_name: m for m in _RECORDS if m.val_name is not None}
"""The validation metrics by which `tune` selects, under their own names: ``rf_jsd_val``, …"""
OBJECTIVES: Mapping[str, tuple[str, ...]] = {
    "rf_jsd_advantage_val": ("rf_jsd_val", "mia_advantage_val"),
    "rf_jsd_mia_val": ("rf_jsd_val", "mia_excess_val"),
    **{m.val_name: (m.val_name,) for m in ranked("objective") if m.val_name is not None},
}
"""What `tune` can minimise, and the metrics whose distances from their ideals it adds up."""

READING = {
    "residual": "the forget set is still recognised",
    "over-forgotten": "the forget set stands out the other way, which gives it away as well",
    "spread": "the forget set stands out on both sides of the unseen samples",
    "undecided": "too few samples to tell; a larger forget or test set would",
    "indistinguishable": "forgotten and unseen samples look alike to the attack",
    "uninformative": "the original already passed; the attack tells these samples from unseen ones in neither model",
    "collapsed": "the model no longer tells the retained classes apart, and its metrics are void",
}
READING_OF_AUC = READING | {"undecided": "the interval is too wide to tell; a larger forget or test set would"}
"""The same where ``mia_auc`` decides: in records and policies of earlier releases."""
MATCHED_BY_CLASS = "matched by class only"
"""Of a reading whose forget set was not drawn as the unseen samples were, while its null takes it to be."""


def overview() -> str:
    """The table in ``docs/metrics.md``, Markdown."""
    lines = ["| key | range | ideal | needs | in `tune` |", "|---|---|---|---|---|"]
    for metric in _RECORDS:
        number = "" if metric.ideal is None else f"{metric.ideal:g}"
        cells = (
            f"[`{metric.key}`](#{metric.section})",
            _range(*metric.range),
            "; ".join(filter(None, (number, metric.good))),
            ", ".join(metric.needs) + (", a wholly forgotten class" if metric.classes_only else ""),
            f"`{metric.val_name}`" if metric.val_name else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _range(low: float, high: float) -> str:
    if high == math.inf:
        return f"≥ {low:g}"
    return f"{low:g} to {'ln 2' if high == math.log(2.0) else f'{high:g}'}".replace("-", "−")
