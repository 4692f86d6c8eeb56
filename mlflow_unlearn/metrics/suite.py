"""Every metric of a model from what one forward pass over each split leaves."""

from collections.abc import Mapping

import numpy as np

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.metrics.accuracy import accuracy
from mlflow_unlearn.metrics.catalog import METRICS, Metric
from mlflow_unlearn.metrics.collapse import collapse, stated_collapse
from mlflow_unlearn.metrics.divergence import usable_classes
from mlflow_unlearn.metrics.outputs import MetricInputs, Outputs, SplitOutputs


class Metrics(dict[str, float]):
    """Metric key → value, for what could be computed.

    Attributes:
        missing: metric key → why it was not computed.
        counts: sample sizes, and what was left out of which metric.
    """

    def __init__(self) -> None:
        """Start empty; `missing` and `counts` fill as the metrics are computed."""
        super().__init__()
        self.missing: dict[str, str] = {}
        self.counts: dict[str, int] = {}

    @property
    def collapsed(self) -> str | None:
        """Why the model counts as collapsed, so that only its accuracies were computed; None: it does not."""
        return stated_collapse(self.missing)


def compare(
    outputs: Mapping[str, Outputs], *, seed: int, definitions: Mapping[str, int] | None = None
) -> dict[str, Metrics]:
    """`compute_metrics` of ``original``, ``unlearned`` and ``gold`` (those that are there), each against the others."""
    test, gold = outputs["original"]["test"], outputs.get("gold")
    return {
        name: compute_metrics(own, original_test=test, gold=gold, seed=seed, definitions=definitions)
        for name, own in outputs.items()
    }


def compute_metrics(
    outputs: Outputs,
    *,
    original_test: SplitOutputs | None = None,
    gold: Outputs | None = None,
    seed: int = 0,
    definitions: Mapping[str, int] | None = None,
) -> Metrics:
    """All metrics of one model from its outputs, in the order of the catalog; no model is run.

    Of a model that has collapsed (`mlflow_unlearn.metrics.collapse`) the accuracies alone.

    Args:
        outputs: of the model on forget, retain, test, and val if ``acc_val`` is wanted.
        original_test: of the original on test.
        gold: of the gold standard, as ``outputs``.
        seed: of the permutations, the bootstrap and the folds of the attack.
        definitions: metric key → the earlier definition that a record names; what it does not name has today's.

    Raises:
        UnlearnError: the models differ in their number of outputs.
        ValueError: a gold standard is given, and the probabilities of a forget set were not kept.
    """
    original = {} if original_test is None else {"test": original_test}
    given = MetricInputs(outputs, original, gold or {}, seed)
    _check_outputs(given)
    inputs = given.without_removed_classes()
    metrics = Metrics()
    metrics.counts.update(_counts(inputs) | {"removed_classes": len(given.removed)})
    void = collapse(inputs)
    for key, metric in METRICS.items():
        # By the first definition of what has a second one, removed classes counted.
        asked = given if (definitions or {}).get(key, metric.definition) < metric.definition else inputs
        reason = _absent(metric, asked) or (None if metric.computed_by == "accuracy.accuracies" else void)
        value = reason or asked.once(metric.function())[key]
        if isinstance(value, str):
            metrics.missing[key] = value
        else:
            metrics[key] = value
    return metrics


def residual_accuracy(outputs: Outputs) -> float | None:
    """Accuracy on the wholly forgotten part of the forget set; None where no class is wholly forgotten."""
    forget = outputs["forget"]
    lost = ~np.isin(forget.labels, outputs["retain"].labels)
    return accuracy(forget.predictions, forget.labels, lost) if lost.any() else None


def _check_outputs(inputs: MetricInputs) -> None:
    own = len(inputs.model["test"].class_sums)
    for name, outputs in (("original", inputs.original.get("test")), ("gold", inputs.gold.get("forget"))):
        if outputs is not None and len(outputs.class_sums) != own:
            raise UnlearnError(
                f"the {name} model has {len(outputs.class_sums)} outputs and the measured one {own}: "
                "they cannot be compared"
            )


def _counts(inputs: MetricInputs) -> dict[str, int]:
    forget, test = inputs.model["forget"], inputs.model["test"]
    return {
        **{f"n_{split}": len(outputs.labels) for split, outputs in inputs.model.items()},
        "wholly_forgotten_classes": len(inputs.forgotten),
        "mia_auc_forget_left_out": int((~np.isin(forget.labels, test.labels)).sum()),
        "rf_jsd_classes_left_out": len(np.unique(forget.labels)) - len(usable_classes(inputs)),
    }


def _absent(metric: Metric, inputs: MetricInputs) -> str | None:
    """Why a metric lacks something that it needs; None where nothing is missing."""
    for need in metric.needs:
        if need == "original" or need == "gold":
            if not getattr(inputs, need):
                return f"no {need} model was given"
        elif need not in inputs.model:
            return f"the {need} set was not read"
        elif not len(inputs.model[need].labels):
            return f"earlier requests removed every class of the {need} set"
    return None
