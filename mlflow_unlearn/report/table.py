"""The before/after table, and the words beside its numbers."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape as without_markup
from rich.table import Table

from mlflow_unlearn.console import one_line, stdout
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.evidence.case import Case
from mlflow_unlearn.evidence.policy import Verdict
from mlflow_unlearn.metrics.catalog import METRICS, READING
from mlflow_unlearn.metrics.reading import NOT_MEASURED, read_after, read_membership
from mlflow_unlearn.registry.uris import in_ranges

if TYPE_CHECKING:
    from mlflow_unlearn.data.source import Source
    from mlflow_unlearn.methods import Method
    from mlflow_unlearn.metrics.suite import Metrics


_MOST = 12
"""Models of a list that are shown."""


def escape(text: str) -> str:
    """A text as a cell or a title shows it: it may quote a tag or a file that others have written."""
    return without_markup(one_line(text))


def membership_reading(metrics: "Metrics", original: "Metrics | None" = None) -> str:
    """The membership test in a sentence, in the light of the original's where that is given."""
    if metrics.collapsed is not None:
        return metrics.collapsed
    word = read_membership(metrics, metrics.missing)
    if word == NOT_MEASURED:
        return f"not computed: {metrics.missing['mia_advantage']}"
    if original is not None:
        word = read_after(word, read_membership(original, original.missing))
    return f"{word}: {READING[word]}"


def readings(columns: "Mapping[str, Metrics]") -> dict[str, str]:
    """`membership_reading` of each model; the unlearned one's in the light of the original's, where that is there."""
    before = {"unlearned": columns.get("original")}
    return {name: membership_reading(metrics, before.get(name)) for name, metrics in columns.items()}


def comparison(columns: "Mapping[str, Metrics]") -> Table:
    """One row per metric, one column per model, and what is good."""
    table = Table(title="before and after" if len(columns) > 1 else None, title_justify="left")
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("meaning")
    for key, metric in METRICS.items():
        if any(key in metrics for metrics in columns.values()):
            cells = [f"{metrics[key]:.4f}" if key in metrics else "–" for metrics in columns.values()]
            table.add_row(key, *cells, metric.meaning)
    return table


def show(columns: "Mapping[str, Metrics]") -> None:
    """Print the table, how to read it, and what was not computed, to standard output."""
    # Piped into a file the table keeps its width.
    console = stdout(130)
    console.print(comparison(columns))
    for name, reading in readings(columns).items():
        console.print(f"{name}: {reading}", highlight=False, markup=False)
    reasons: dict[str, list[str]] = {}
    for key, metric in METRICS.items():
        for reason in dict.fromkeys(m.missing[key] for m in columns.values() if key in m.missing):
            if not metric.classes_only:
                reasons.setdefault(reason, []).append(key)
    for reason, keys in reasons.items():
        console.print(f"Not computed: {', '.join(keys)} ({reason})", highlight=False, markup=False, style="dim")


def show_verdict(uri: str, verdict: Verdict) -> None:
    """Print each rule of a policy with value, threshold and outcome."""
    console = stdout(130)
    lines = Table(title=escape(f"{uri} by the policy {verdict.policy!r}: {verdict.word}"), title_justify="left")
    for column in ("rule", "value", "threshold", "outcome", "note"):
        lines.add_column(column, overflow="fold")
    for check in verdict.checks:
        lines.add_row(*map(escape, (check.rule, check.value, check.threshold, check.outcome, check.note)))
    console.print(lines)


def show_findings(uri: str, findings: Sequence[tuple[str, str, str]]) -> None:
    """Print what was checked, and what came of it."""
    console = stdout(130)
    lines = Table(title=escape(uri), title_justify="left")
    for column in ("part", "outcome", "what was checked"):
        lines.add_column(column, overflow="fold")
    for finding in findings:
        lines.add_row(*map(escape, finding))
    console.print(lines)


def show_places(asked: str, rows: Sequence[tuple[str, ...]], elsewhere: Mapping[str, Sequence[str]]) -> None:
    """Print which versions hold some samples, and where else there is something of them."""
    console = stdout(130)
    console.print(one_line(asked), highlight=False, markup=False)
    lines = Table()
    for column in ("version", "state", "samples", "aliases", "endpoints", "unlearned by", "how that is known"):
        lines.add_column(column, overflow="fold")
    for row in rows:
        lines.add_row(*map(escape, row))
    console.print(lines)
    for what, items in elsewhere.items():
        listed = "\n  ".join(map(one_line, items)) if items else "none"
        console.print(f"{what}: {listed}", highlight=False, markup=False, soft_wrap=True)


def show_jobs(queue: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Print the jobs of `listen`: about what, how far, and why one has not ended well."""
    console = stdout(180)
    console.print(one_line(f"Queue {queue}: {len(rows)} jobs"), highlight=False, markup=False, soft_wrap=True)
    lines = Table()
    for column in ("job", "version", "event", "state", "steps", "result", "since", "message"):
        lines.add_column(column, overflow="fold")
    for row in rows:
        lines.add_row(*map(escape, row))
    if rows:
        console.print(lines)


def show_inbox(cases: Sequence[Any]) -> None:
    """Print one row a case, the most urgent first."""
    console = stdout(130)
    if not cases:
        console.print("No forget request here.", highlight=False)
        return
    lines = Table()
    for column in ("case", "state", "due", "subject", "filed by", "on", "still in"):
        lines.add_column(column, overflow="fold")
    for case in cases:
        left = f"{case.days_left} days left" if case.days_left >= 0 else f"{-case.days_left} days overdue"
        due = case.due if case.state == "done" else f"{case.due}, {left}"
        on = ", ".join(f"{r.uri.removeprefix('models:/')} {r.state}" for r in case.requests)
        holders = [uri.removeprefix("models:/") for uri in in_ranges(case.still_in)]
        if (more := len(holders) - _MOST) > 0:
            holders[_MOST:] = [f"{more} more models, which `locate` lists"]
        still = ", ".join(holders) or "none"
        still += f" ({case.unclear} unknown)" if case.unclear else ""
        who = f"{case.subject} ({case.requester})" if case.requester else case.subject
        filed = f"{case.filed_by}, {case.filed[:10] or 'at an unknown time'}"
        lines.add_row(*map(escape, (case.id, case.state, due, who, filed, on, still)))
    console.print(lines)


def show_case(case: Case, differences: Sequence[str]) -> None:
    """Print what was done in one case, and what is still open.

    Args:
        case: it.
        differences: where its records do not agree with each other, in words.
    """
    console = stdout(130)
    lines = Table(title=f"case {case.id}", title_justify="left")
    for column in ("when", "what", "about", "by", "run"):
        lines.add_column(column, overflow="fold")
    for event in case.events:
        when = event.at[:16].replace("T", " ")
        lines.add_row(*map(escape, (when, event.kind, event.message, event.by, event.run_id)))
    console.print(lines)
    for one in differences:
        console.print(f"The records do not agree: {escape(one)}.", highlight=False)
    for point in case.open_points:
        console.print(f"Still open: {escape(point)}.", highlight=False)
    if not (differences or case.open_points):
        console.print("Nothing is open: the case is closed.", highlight=False)


def show_fulfilled(rows: Sequence[tuple[str, ...]]) -> None:
    """Print what came of each version whose requests were to be fulfilled."""
    console = stdout(130)
    if not rows:
        console.print("Nothing was to be fulfilled.", highlight=False)
        return
    lines = Table(title="fulfilled", title_justify="left")
    for column in ("version", "requests", "outcome", "registered", "why not"):
        lines.add_column(column, overflow="fold")
    for row in rows:
        lines.add_row(*map(escape, row))
    console.print(lines)


def show_methods(methods: "Mapping[str, type[Method]]") -> None:
    """Print the methods with what each is and its hyperparameters: default and range."""
    console = stdout(130)
    table = Table()
    for column in ("method", "what it does", "hyperparameters (defaults)"):
        table.add_column(column)
    for name, method in methods.items():
        fields = method.Params.model_fields.items()
        defaults = ", ".join(f"{key} = {field.default}" for key, field in fields)
        if method.presets:
            defaults += f"; presets: {', '.join(method.presets)}"
        table.add_row(name, escape(summary(method)), escape(defaults), end_section=True)
    console.print(table)


def summary(method: "type[Method]") -> str:
    """What a method is, in the first line of its module's docstring, or of its own."""
    described = sys.modules[method.__module__].__doc__ or method.__doc__ or ""
    return next(iter(described.strip().splitlines()), "")


def show_source(source: "Source") -> None:
    """Print what a data source holds."""
    console = stdout(130)
    parts = {"train": source.train, "val": source.val, "test": source.test}
    console.print(source.spec, highlight=False, markup=False, soft_wrap=True)
    console.print(f"split: {source.split}", highlight=False, markup=False, soft_wrap=True)
    table = Table()
    table.add_column("class")
    for name in parts:
        table.add_column(name, justify="right")
    for index, class_name in enumerate(source.classes):
        table.add_row(escape(class_name), *(str(int((part.labels == index).sum())) for part in parts.values()))
    table.add_section()
    table.add_row("all", *(str(len(part)) for part in parts.values()))
    console.print(table)
    for name, part in parts.items():
        digest = Manifest(part.ids).digest
        console.print(f"{name}: ids like {part.ids[0]!r}, digest {digest}", highlight=False, markup=False)
        for column, values in part.groups.items():
            line = f"{name}: group column {column!r} with {len(set(values))} values"
            console.print(line, highlight=False, markup=False)
    console.print(f"digest of the source (ids, labels, splits): {source.digest}", highlight=False)
