"""`report.html`: the evidence record as one page for a reviewer, without scripts and without requests to any server."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from mlflow_unlearn.console import counted
from mlflow_unlearn.evidence.audit import AuditRecord
from mlflow_unlearn.evidence.policy import Verdict
from mlflow_unlearn.evidence.record import Evidence, Measured, RequestRecord
from mlflow_unlearn.metrics.catalog import MATCHED_BY_CLASS, METRICS, READING, READING_OF_AUC
from mlflow_unlearn.metrics.divergence import js_divergence
from mlflow_unlearn.report import answer, claim, figures
from mlflow_unlearn.report.card import claimed, reading
from mlflow_unlearn.report.figures import MODELS, fit, number
from mlflow_unlearn.report.glossary import Glossary
from mlflow_unlearn.report.template import page_template
from mlflow_unlearn.spelling import shell_line

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

    from mlflow_unlearn.metrics.outputs import Outputs

MAX_BYTES = 2_000_000
_ROW_KEYS = tuple(key for key, metric in METRICS.items() if not metric.interval_end)
_APART_KEYS = tuple(key for key in _ROW_KEYS if METRICS[key].by_request and not METRICS[key].of_null)


class Limits(NamedTuple):
    """How many characters of a text, and how many lines of a list, are shown."""

    characters: int
    lines: int


_LIMITS = (Limits(5000, 100), Limits(500, 100), Limits(100, 20))


@dataclass(frozen=True)
class Sample:
    """A forget sample before and after.

    Attributes:
        name: its id, or "" where ids are hidden.
        label: its class.
        before: class that the original predicts, and its probability.
        after: likewise of the unlearned model.
        divergence: JSD of the two outputs, nats.
        png: the picture.
    """

    name: str
    label: str
    before: tuple[str, float]
    after: tuple[str, float]
    divergence: float
    png: bytes

    @property
    def source(self) -> str:
        """The picture as a data URL."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def moved(
    outputs: "Mapping[str, Outputs]",
    dataset: "Dataset[Any]",
    names: Sequence[str],
    classes: Sequence[str],
    count: int = 6,
) -> Sequence[Sample]:
    """The ``count`` forget samples whose outputs moved most and as many that moved least, the furthest first.

    Args:
        outputs: of ``original`` and ``unlearned``, with the probabilities of the forget set.
        dataset: the forget set; an item starts with the image ``[C, H, W]``.
        names: of the samples; "" hides one.
        classes: names in the order of the outputs.
        count: of each kind.

    Raises:
        ValueError: the probabilities were not kept.
    """
    before, after = (outputs[model]["forget"] for model in ("original", "unlearned"))
    if before.probabilities is None or after.probabilities is None:
        raise ValueError("how far a sample moved needs the probabilities: read the set with keep_probabilities=True")
    divergences = js_divergence(before.probabilities, after.probabilities)
    order = np.argsort(-divergences, kind="stable")
    chosen = order if len(order) <= 2 * count else np.concatenate([order[:count], order[-count:]])
    return [
        Sample(
            name=names[index],
            label=classes[before.labels[index]],
            before=(classes[before.predictions[index]], float(before.confidences[index])),
            after=(classes[after.predictions[index]], float(after.confidences[index])),
            divergence=float(divergences[index]),
            png=_png(dataset[index][0]),
        )
        for index in map(int, chosen)
    ]


def page(
    evidence: Evidence,
    verdict: Verdict,
    samples: Sequence[Sample] = (),
    *,
    recorded: str = "",
    audit: AuditRecord | None = None,
) -> str:
    """The text of ``report.html``, at most `MAX_BYTES`: where the record is huge, long texts and lists are cut.

    Args:
        evidence: the record.
        verdict: a policy's verdict on it.
        samples: that moved most and least, with their pictures.
        recorded: which review by whom; empty: the version has not been reviewed yet.
        audit: that the verdict rests on.
    """
    template = _template()
    text = ""
    for limits in _LIMITS:
        more = {"recorded": recorded, "now": _now(evidence, verdict, recorded), "glossary": Glossary()}
        text = template.render(_context(evidence, verdict, samples, limits), **more, **_audit(audit))
        text = text.encode("utf-8", "replace").decode()  # file names may hold what is not Unicode
        if len(text.encode()) <= MAX_BYTES:
            break
    return text


def _template() -> jinja2.Template:
    return page_template("page.html", number=number, fit=fit, change=figures.change)


def _context(evidence: Evidence, verdict: Verdict, samples: Sequence[Sample], limits: Limits) -> dict[str, Any]:
    own, drawn = set(evidence.request_ids), evidence.figures
    requests = sorted(evidence.requests, key=lambda request: request.id not in own)  # this version's come first
    checks = verdict.checks
    if len(checks) > limits.lines:  # what did not pass comes first, lest it is cut off
        checks = sorted(checks, key=lambda check: check.outcome == "pass")
    apart = _apart(requests, evidence)
    apart_keys = [k for k in _APART_KEYS if any(k in m.values for _, columns in apart for m in columns.values())]
    return {
        "e": evidence,
        "verdict": verdict,
        "checks": checks,
        "requests": requests,
        "samples": samples,
        "limits": limits,
        "MODELS": MODELS,
        "MATCHED_BY_CLASS": MATCHED_BY_CLASS,
        "READING": READING if evidence.policy_schema == 2 else READING_OF_AUC,
        "readings": {m: one.membership for m, one in evidence.metrics.items()} | {"unlearned": evidence.membership},
        "asked": answer.asked,
        "asked_by": answer.asked_by,
        "how_sure": f"{claimed(evidence)}Membership: {reading(evidence)}.",
        "summary": _summary(evidence),
        "metrics": [_metric_row(key, evidence.metrics) for key in _ROW_KEYS if key in evidence.definitions],
        "trained_again": claim.trained_again(evidence.exactness),
        "shards": claim.shards(evidence.exactness),
        "apart": apart,
        "apart_keys": apart_keys,
        "apart_reasons": _apart_reasons(apart, apart_keys),
        "shown": _shown,
        "intervals": figures.intervals(evidence, apart),
        "histograms": [
            ("entropy", "Entropy of the softmax output", "nats", figures.histogram(drawn.entropy)),
            ("confidence", "Confidence, the largest probability", "probability", figures.histogram(drawn.confidence)),
        ],
        "accuracy": figures.classes(drawn.classes, "acc_test"),
        "rf_jsd": figures.classes(drawn.classes, "rf_jsd"),
        "curves": figures.curves(evidence.learning.history),
        "lineage": figures.lineage(evidence, limits.lines // 5),
        "made": _made(evidence),
    }


def _now(evidence: Evidence, verdict: Verdict, recorded: str) -> tuple[str, str]:
    """The next command, and what it does."""
    name, does = "review", "records the verdict of a policy"
    if recorded:
        name, does = (
            ("promote", "puts it into use") if verdict.passed else ("review", "lists what can be done about it")
        )
    return shell_line(name, "--model-uri", evidence.result.uri), does


def _audit(audit: AuditRecord | None) -> dict[str, Any]:
    if audit is None:
        return {"audit": None}
    return {
        "audit": audit,
        "audit_curves": figures.audit_curves(audit.drawn) if audit.drawn.curves else None,
        "audit_scores": figures.audit_scores(audit.drawn),
    }


def _shown(key: str, measured: Measured) -> str:
    """A value, with its interval where it has one."""
    value = measured.values.get(key)
    shown = number(None if value is None else value * METRICS[key].shown_times)
    low, high = (measured.values.get(f"{key}_{end}") for end in ("low", "high"))
    return shown if low is None or high is None else f"{shown} [{number(low)}, {number(high)}]"


def _metric_row(key: str, columns: Mapping[str, Measured]) -> dict[str, Any]:
    cells = {model: _shown(key, measured) for model, measured in columns.items()}
    reasons: dict[str, list[str]] = {}
    for model, measured in columns.items():
        if cells[model] == "–":
            reasons.setdefault(answer.not_computed(key, measured), []).append(MODELS.get(model, model))
    everywhere = [reason for reason, models in reasons.items() if len(models) == len(columns)]
    notes = [f"{', '.join(models)} not computed: {reason}" for reason, models in reasons.items()]
    metric = METRICS[key]
    values = [columns[m].values.get(key) if m in columns else None for m in ("original", "unlearned")]
    change = figures.change(*(None if value is None else value * metric.shown_times for value in values))
    went = {"+": "rise", "−": "fall"}.get(change[:1])
    against = f"should {metric.should}" if metric.should and went and went != metric.should else ""
    return {
        "key": key,
        "times": "" if metric.shown_times == 1.0 else " × 10⁴",
        "meaning": metric.meaning,
        "cells": list(cells.values()),
        "change": change,
        "against": f"{'rose' if went == 'rise' else 'fell'}: {against}" if against else "",
        "notes": [f"not computed: {everywhere[0]}"] if everywhere else notes,
    }


def _summary(evidence: Evidence) -> list[tuple[str, str, str]]:
    """What decides, as term, value and a remark."""
    rows = [("Membership after", evidence.membership, answer.membership(evidence))]
    gold = evidence.metrics.get("gold")
    for key, name in answer.ACCURACIES.items():
        values, changed = answer.accuracy(evidence, key)
        remark = (changed or "–") + (f", gold {number(gold.values[key])}" if gold and key in gold.values else "")
        models = (evidence.metrics["unlearned"], evidence.metrics["original"])
        unknown = next((measured for measured in models if _shown(key, measured) == "–"), None)
        rows.append((f"{name} accuracy", values, answer.not_computed(key, unknown) if unknown else remark))
    return rows


def _apart(requests: Iterable[RequestRecord], evidence: Evidence) -> list[tuple[str, Mapping[str, Measured]]]:
    rows: list[tuple[str, Mapping[str, Measured]]] = [(one.id, one.metrics) for one in requests if one.metrics]
    return [*rows, ("everything forgotten so far", evidence.union)] if evidence.union else rows


def _apart_reasons(
    apart: Iterable[tuple[str, Mapping[str, Measured]]], keys: Iterable[str]
) -> dict[tuple[str, str], list[str]]:
    """Forget set and reason → the metrics that are missing for it."""
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for name, columns in apart:
        for key in keys:
            for measured in columns.values():
                if _shown(key, measured) == "–":
                    reasons.setdefault((name, answer.not_computed(key, measured)), {})[key] = None
    return {where: list(missing) for where, missing in reasons.items()}


def _made(evidence: Evidence) -> list[tuple[str, list[tuple[str, str]]]]:
    """How the version came about, as headed lists of term and value."""
    learning, source, result, data = evidence.learning, evidence.source, evidence.result, evidence.data
    selection = evidence.provenance.selection
    system = {key.removeprefix("unlearn."): value for key, value in evidence.system.items()}
    commit, dirty = (system.pop(f"git.{name}", "unknown") for name in ("commit", "dirty"))
    state = {"true": "with uncommitted changes", "false": "no uncommitted changes"}.get(dirty, "state unknown")
    sets = {role: getattr(data, role) for role in ("forget", "retain", "val", "test", "forgotten_before")}
    return [
        (
            "Method",
            [("method", evidence.provenance.method), *evidence.provenance.rows()]
            + [(f"final {key}", number(value)) for key, value in learning.final.items()]
            + [("seconds", f"{learning.seconds:.1f}"), *(selection.rows() if selection is not None else ())]
            + [*evidence.chosen_on_validation()],
        ),
        (
            "Run",
            [("run", evidence.run.id), ("made by", evidence.made_by.display_name()), ("made at", evidence.created)]
            + [("code commit", f"{commit} ({state})")],
        ),
        (
            "Hardware and software",
            [*evidence.hardware.items(), *((k.removeprefix("system."), v) for k, v in system.items())],
        ),
        (
            "Data",
            [("source", data.source), ("transform", data.transform), ("classes", f"{len(data.classes):,}")]
            + [(name, value) for name, value in (("split", data.split), ("trained on", data.trained_on)) if value]
            + [
                (role.replace("_", " "), counted(part.samples, "sample", grouped=True))
                for role, part in sets.items()
                if part is not None
            ],
        ),
        (
            "Digests, SHA-256",
            [("evidence.json", evidence.sha256), ("run configuration", evidence.run.config_sha256)]
            + [("weights of the source", source.weights_sha256), ("weights of this version", result.weights_sha256)]
            + [("evidence of the source", source.evidence_sha256 or "– (the source has no evidence)")]
            + [("data source", data.digest)]
            + [(f"{role.replace('_', ' ')} set", part.sha256) for role, part in sets.items() if part is not None]
            + [(f"file {path}", digest) for path, digest in result.files.items()],
        ),
    ]


def _png(image: "Tensor") -> bytes:
    """``[C, H, W]`` between its least and its largest value, shrunk to 96 pixels."""
    values = np.nan_to_num(image.detach().cpu().numpy().astype(np.float64))
    values = values[:3] if len(values) >= 3 else values[:1].repeat(3, axis=0)
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    picture = Image.fromarray((255 * scaled).round().astype(np.uint8).transpose(1, 2, 0))
    picture.thumbnail((96, 96))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
