"""`model_card.md`: the evidence record in words."""

from collections.abc import Callable

from mlflow_unlearn.console import counted
from mlflow_unlearn.evidence.record import Evidence, RequestRecord
from mlflow_unlearn.metrics.catalog import MATCHED_BY_CLASS, METRICS, READING, READING_OF_AUC, ranked
from mlflow_unlearn.report.claim import trained_again

_WORDS_BEFORE = {
    "mia_excess": "mia − mia_test; near 0 is right, above or below 0 is bad",
    "avg_gap_excess": "mean distance to gold with mia_excess; this decides",
}
"""Meanings as cards had them before ``mia_advantage`` was measured; `verify` makes such cards again, word for word."""


def model_card(evidence: Evidence) -> str:
    """A card for those who are about to use the version."""
    provenance, selection, counts = evidence.provenance, evidence.provenance.selection, _counts(evidence)
    sets = {role: getattr(evidence.data, role) for role in ("forget", "retain", "val", "test", "forgotten_before")}
    parts = [
        f"# {as_text(evidence.result.name)}, version {evidence.result.version}",
        *_said(evidence),
        "## What was asked",
        "\n".join(_request(request, counts) for request in evidence.requests),
        "## What was measured",
        metrics_table(evidence),
        *([_apart(evidence)] if len(evidence.requests) > 1 else []),
        _attack(evidence),
        "## How it was made",
        _table(
            [("method", provenance.method), *provenance.rows()]
            + [("seconds", f"{evidence.learning.seconds:.1f}"), ("made by", evidence.made_by.display_name())]
            + [("run", evidence.run.id), ("made at", evidence.created)]
            + [*(selection.rows() if selection is not None else ()), *evidence.chosen_on_validation()]
            + list(evidence.hardware.items())
        ),
        "## Data",
        f"`{as_text(evidence.data.source)}`, transform `{as_text(evidence.data.transform)}`",
        _table([(r.replace("_", " "), f"{counts(s.samples)}, SHA-256 {s.sha256}") for r, s in sets.items() if s]),
        "## Limits",
        evidence.limits,
        *([as_text(evidence.source.what_ran)] if evidence.source.loading_ran_code else []),
    ]
    return "\n\n".join(parts) + "\n"


def alarms(evidence: Evidence) -> list[str]:
    """What makes a version useless or incomplete, whatever its other figures say."""
    collapsed = evidence.metrics["unlearned"].collapsed
    return [
        *([f"**The model has collapsed, and its metrics are void** ({collapsed})."] if collapsed else []),
        *([f"**Incomplete: a class is not forgotten** ({evidence.incomplete})."] if evidence.incomplete else []),
    ]


def made(evidence: Evidence) -> str:
    """From what, by which method, and with which settings."""
    data, provenance = evidence.data, evidence.provenance
    requests = ", ".join(f"`{request_id}`" for request_id in evidence.request_ids)
    settings = ", ".join(f"{key} = {value}" for key, value in provenance.rows())
    return (
        f"Made from `{evidence.source.uri}` by unlearning {data.forget.samples} of "
        f"{data.forget.samples + data.retain.samples} training samples (request {requests}) with "
        f"**{provenance.method}** ({settings})."
    )


def frozen(evidence: Evidence) -> list[str]:
    """What a reviewer has to know of layers that were not trained; nothing where all were."""
    if (prefix := evidence.provenance.prefix) is None:
        return []
    return [
        f"**The layers before `{prefix}` were frozen:** what they have learned from the forgotten samples is still in "
        "them; see docs/prefix.md."
    ]


def exactness(evidence: Evidence) -> list[str]:
    """What is claimed beyond the figures, and what that leaves out as a list; nothing of most methods."""
    claim = evidence.exactness
    if claim.covers is None:
        return []
    excludes = ["**Not covered:**\n", *(f"- {as_text(sentence)}" for sentence in claim.excludes)]
    return [
        f"**{claim.kind.capitalize()}:** {as_text(claim.covers)}",
        *(["\n".join(excludes)] if claim.excludes else []),
    ]


def claimed(evidence: Evidence) -> str:
    """What `exactness` is about in a few words, before others; nothing of most methods."""
    return f"{evidence.exactness.kind}, as far as stated below. " if evidence.exactness.covers is not None else ""


def reading(evidence: Evidence) -> str:
    """The membership test in a sentence."""
    measured, by_auc = evidence.metrics["unlearned"], evidence.policy_schema == 1
    # A record of an earlier release has no reading of its own, and its card is held against that release's words.
    word = evidence.reading or measured.membership
    words, key = (READING_OF_AUC, "mia_auc") if by_auc else (READING, "mia_advantage")
    shown = f"{word} ({MATCHED_BY_CLASS})" if evidence.matched_by_class_only and word in words else word
    return f"{shown}: {words[word] if word in words else measured.not_computed.get(key, 'no reason recorded')}"


def metrics_table(evidence: Evidence) -> str:
    """Every metric of every model, as Markdown."""
    columns = evidence.metrics
    lines = [f"| metric | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for key in METRICS:
        if any(key in measured.values for measured in columns.values()):
            times, scale = shown_times(key, evidence)
            cells = [f"{m.values[key] * scale:.4f}" if key in m.values else "not computed" for m in columns.values()]
            lines.append(f"| {key}{times} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown_times(key: str, evidence: Evidence) -> tuple[str, float]:
    """What a metric is multiplied by where it is shown, in words and as a number; earlier releases did not do so."""
    times = METRICS[key].shown_times if evidence.run.experiment_id is not None else 1.0
    return ("", 1.0) if times == 1.0 else (" × 10⁴", times)


def _trained_again(evidence: Evidence) -> list[str]:
    rows = trained_again(evidence.exactness)
    return [_table(rows)] if rows else []


def _said(evidence: Evidence) -> list[str]:
    before, after = evidence.metrics["original"].values, evidence.metrics["unlearned"].values
    cost = after["acc_test"] - before["acc_test"] if "acc_test" in after and "acc_test" in before else None
    return [
        *alarms(evidence),
        made(evidence),
        *frozen(evidence),
        *exactness(evidence),
        *_trained_again(evidence),
        f"Membership: {reading(evidence)}." + (f" Test accuracy changed by {cost:+.4f}." if cost is not None else ""),
    ]


def _counts(evidence: Evidence) -> Callable[[int], str]:
    """How many samples, in words; of a record without the digests of its texts in those of its release."""
    return (lambda n: f"{n} samples") if evidence.texts is None else (lambda n: counted(n, "sample"))


def _request(request: RequestRecord, counts: Callable[[int], str]) -> str:
    others = request.matched.others() if request.matched is not None else ""
    filed_by = request.filed_by.display_name() if request.filed_by is not None else "not recorded"
    named = f" ({as_text(request.forget)})" if request.forget else ""
    return (
        f"- `{request.id}`: {counts(request.samples)} of `{request.of}`{named}, filed "
        f"{request.filed or 'at an unknown time'} by {as_text(filed_by)}, requester "
        f"{as_text(request.requester or 'not recorded')}, reason {as_text(request.reason or 'not recorded')}; "
        f"carried out by `{request.carried_out_by}`" + (f"; also named, and not forgotten: {others}" if others else "")
    )


def _apart(evidence: Evidence) -> str:
    """Each request, and everything forgotten so far, by the unlearned model."""
    rows = {f"request `{r.id}`": r.metrics["unlearned"] for r in evidence.requests if "unlearned" in r.metrics}
    if "unlearned" in evidence.union:
        rows["everything forgotten so far"] = evidence.union["unlearned"]
    keys = [metric.key for metric in ranked("card") if metric.key in evidence.definitions]
    lines = [f"| forget set | membership | {' | '.join(keys)} |", "|---" * (len(keys) + 2) + "|"]
    for name, measured in rows.items():
        cells = [f"{measured.values[key]:.4f}" if key in measured.values else "–" for key in keys]
        lines.append(f"| {name} | {measured.membership} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _attack(evidence: Evidence) -> str:
    used = [metric for key, metric in METRICS.items() if key in evidence.metrics["unlearned"].values]
    before = _WORDS_BEFORE if evidence.policy_schema == 1 else {}
    meanings = "\n".join(f"- `{metric.key}`: {before.get(metric.key, metric.meaning)}" for metric in used)
    return evidence.attack + "\n\n" + meanings


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {as_text(key)} | {as_text(value)} |" for key, value in rows)])


_MARKUP = "\\`*_{}[]<>()#|!&~"


def as_text(value: str) -> str:
    """What a user typed, as text: no markup of it survives, neither HTML nor Markdown."""
    text = "".join(f"&#{ord(c)};" if c in _MARKUP else c for c in " ".join(value.split()))
    return text.replace("://", ":&#47;/").replace("www.", "www&#46;")  # which MLflow would make links of
