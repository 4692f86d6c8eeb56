"""The result in a few words, which the description, the tags for people and the report's first screen share."""

import re
from collections.abc import Callable

from mlflow_unlearn.console import counted
from mlflow_unlearn.evidence.record import Evidence, Measured, RequestRecord
from mlflow_unlearn.metrics.catalog import MATCHED_BY_CLASS
from mlflow_unlearn.report.figures import change, fit, number

ACCURACIES = {"acc_forget": "Forget set", "acc_retain": "Retain set", "acc_test": "Test set"}
NOT_RECORDED = "not recorded"


def asked(request: RequestRecord) -> str:
    """How many samples are to be forgotten, of what, and by which spec they were named."""
    named = f", {short(request.forget)}" if request.forget else ""
    return f"{counted(request.samples, 'sample', grouped=True)} of {short(request.of)}{named}"


def asked_by(request: RequestRecord) -> str:
    """Who wanted it, and who filed it when."""
    filed_by = request.filed_by.display_name() if request.filed_by is not None else NOT_RECORDED
    on = f", {request.filed[:10]}" if request.filed else ""
    return f"{short(request.requester or f'requester {NOT_RECORDED}')}; filed by {short(filed_by)}{on}"


def short(value: str, width: int = 120) -> str:
    """What a user typed, on one line, cut, and without characters that turn around what stands after them."""
    return fit(re.sub("[\u202a-\u202e\u2066-\u2069]", "", value), width)


def membership(evidence: Evidence) -> str:
    """How far the attack tells forgotten samples from unseen ones, after and before, or why that was not measured."""
    key, _, shown = _decides(evidence)
    if key not in evidence.metrics["unlearned"].values:
        return told_apart(evidence)
    apart = f"; {MATCHED_BY_CLASS}" if evidence.matched_by_class_only else ""
    return f"{told_apart(evidence)}; before {shown(evidence.metrics['original'])}{apart}"


def told_apart(evidence: Evidence) -> str:
    """The same of the unlearned model alone."""
    (key, name, shown), after = _decides(evidence), evidence.metrics["unlearned"]
    return f"{name} {shown(after)}" if key in after.values else not_computed(key, after)


def _decides(evidence: Evidence) -> tuple[str, str, Callable[[Measured], str]]:
    """The metric by which membership is read: its key, its name, and how it is shown."""
    by_auc = ("mia_auc", "AUC", _interval)
    return by_auc if evidence.policy_schema == 1 else ("mia_advantage", "advantage", _beside_chance)


def accuracy(evidence: Evidence, key: str) -> tuple[str, str | None]:
    """One of `ACCURACIES` before and after, and its change; None where one of the two was not computed."""
    values = [evidence.metrics[model].values.get(key) for model in ("original", "unlearned")]
    return " → ".join(map(number, values)), None if None in values else change(*values)


def not_computed(key: str, measured: Measured) -> str:
    """Why a metric has no value."""
    fallback = "not a finite number" if key in measured.values else "no reason recorded"
    return measured.not_computed.get(key, fallback)


def _beside_chance(measured: Measured) -> str:
    """The advantage beside its null, short."""
    value, null = (measured.values.get(f"mia_advantage{end}") for end in ("", "_null"))
    return "–" if value is None or null is None else f"{value:.3f} (by\u00a0chance up\u00a0to\u00a0{null:.3f})"


def _interval(measured: Measured) -> str:
    """The membership AUC, short."""
    auc, low, high = (measured.values.get(f"mia_auc{end}") for end in ("", "_low", "_high"))
    return "–" if auc is None or low is None or high is None else f"{auc:.3f} [{low:.3f},\u00a0{high:.3f}]"
