"""The before/after table, and the words beside its numbers."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape as without_markup
from rich.table import Table

from mlflow_unlearn.console import counted, one_line, say
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.evidence.case import Case
from mlflow_unlearn.evidence.policy import Verdict
from mlflow_unlearn.metrics.catalog import METRICS, READING
from mlflow_unlearn.metrics.reading import NOT_MEASURED, read_after, read_membership
from mlflow_unlearn.registry.uris import in_ranges
from mlflow_unlearn.report.fit import show_table
from mlflow_unlearn.spelling import command_line

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
    table = Table(title="before and after" if len(columns) > 1 else None)
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("meaning")
    for key, metric in METRICS.items():
        if any(key in metrics for metrics in columns.values()):
            times = metric.shown_times
            cells = [f"{metrics[key] * times:.4f}" if key in metrics else "–" for metrics in columns.values()]
            table.add_row(key if times == 1.0 else f"{key} × 10⁴", *cells, metric.meaning)
    return table


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """Of texts, which may quote what others have written."""
    table = Table(title=None if title is None else escape(title))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def show(columns: "Mapping[str, Metrics]") -> None:
    """Print the table, how to read it, and what was not computed, to standard output."""
    show_table(comparison(columns), drop=("meaning",))
    for name, reading in readings(columns).items():
        say(f"{name}: {reading}")
    reasons: dict[str, list[str]] = {}
    for key, metric in METRICS.items():
        for reason in dict.fromkeys(m.missing[key] for m in columns.values() if key in m.missing):
            if not metric.classes_only:
                reasons.setdefault(reason, []).append(key)
    for reason, keys in reasons.items():
        say(f"Not computed: {', '.join(keys)} ({reason})", style="dim")


def show_verdict(uri: str, verdict: Verdict) -> None:
    """Print each rule of a policy with value, threshold and outcome."""
    rows = [(check.rule, check.value, check.threshold, check.outcome, check.note) for check in verdict.checks]
    title = f"{uri} by the policy {verdict.policy!r}: {verdict.word}"
    show_table(_table(("rule", "value", "threshold", "outcome", "note"), rows, title))


def show_findings(uri: str, findings: Sequence[tuple[str, str, str]]) -> None:
    """Print what was checked, and what came of it."""
    show_table(_table(("part", "outcome", "what was checked"), findings, uri))


def show_places(asked: str, rows: Sequence[tuple[str, ...]], elsewhere: Mapping[str, Sequence[str]]) -> None:
    """Print which versions hold some samples, and where else there is something of them."""
    say(one_line(asked))
    names = ("version", "state", "samples", "aliases", "endpoints", "unlearned by", "how that is known")
    show_table(_table(names, rows))
    for what, items in elsewhere.items():
        say(*([f"{what}:", *(f"  {one_line(item)}" for item in items)] if items else [f"{what}: none"]))


def show_jobs(queue: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Print the jobs of `listen`: about what, how far, and why one has not ended well."""
    say(f"Queue {queue}: {counted(len(rows), 'job')}")
    if rows:
        names = ("job", "version", "event", "state", "steps", "result", "since", "message")
        show_table(_table(names, rows), drop=("since", "event"))


def show_inbox(cases: Sequence[Any], state: str = "all") -> None:
    """Print one row a case, the most urgent first; of those in a state."""
    if not cases:
        chosen = (
            ""
            if state == "all"
            else f" that is {state}: `{command_line('requests', '--state', 'all')}` lists every one"
        )
        say(f"No forget request here{chosen}.")
        return
    rows = []
    for case in cases:
        left = counted(abs(case.days_left), "day") + (" left" if case.days_left >= 0 else " overdue")
        due = case.due if case.state == "done" else f"{case.due}, {left}"
        on = ", ".join(f"{r.uri.removeprefix('models:/')} {r.state}" for r in case.requests)
        holders = [uri.removeprefix("models:/") for uri in in_ranges(case.still_in)]
        if (more := len(holders) - _MOST) > 0:
            holders[_MOST:] = [f"{counted(more, 'more model')}, which `locate` lists"]
        still = ", ".join(holders) or "none"
        still += f" ({case.unclear} unknown)" if case.unclear else ""
        who = f"{case.subject} ({case.requester})" if case.requester else case.subject
        filed = f"{case.filed_by}, {case.filed[:10] or 'at an unknown time'}"
        rows.append((case.id, case.state, due, who, filed, on, still))
    names = ("case", "state", "due", "subject", "filed by", "on", "still in")
    show_table(_table(names, rows), drop=("filed by",))


def show_case(case: Case, differences: Sequence[str]) -> None:
    """Print what was done in one case, and what is still open.

    Args:
        case: it.
        differences: where its records do not agree with each other, in words.
    """
    rows = [(one.at[:16].replace("T", " "), one.kind, one.message, one.by, one.run_id) for one in case.events]
    show_table(_table(("when", "what", "about", "by", "run"), rows, f"case {case.id}"), drop=("run",))
    for request in case.requests:
        if request.withdrawn:
            say(f"Request {request.id} was {one_line(request.withdrawn)}.")
    for one in differences:
        say(f"The records do not agree: {one_line(one)}.")
    for point in case.open_points:
        say(f"Still open: {one_line(point)}.")
    if not (differences or case.open_points):
        say("Nothing is open: the case is closed.")


def show_fulfilled(rows: Sequence[tuple[str, ...]]) -> None:
    """Print what came of each version whose requests were to be fulfilled."""
    if not rows:
        say("Nothing was to be fulfilled.")
        return
    show_table(
        _table(("version", "requests", "outcome", "registered", "why not"), rows, "fulfilled"), drop=("requests",)
    )


def show_methods(methods: "Mapping[str, type[Method]]") -> None:
    """Print the methods with what each is and its hyperparameters: default and range."""
    table = _table(("method", "what it does", "hyperparameters (defaults)"), ())
    for name, method in methods.items():
        fields = method.Params.model_fields.items()
        defaults = ", ".join(f"{key}={str(field.default).replace(' ', '')}" for key, field in fields)
        if method.presets:
            defaults += f"; presets: {', '.join(method.presets)}"
        table.add_row(name, escape(summary(method)), escape(defaults), end_section=True)
    show_table(table)


def summary(method: "type[Method]") -> str:
    """What a method is, in the first line of its module's docstring, or of its own."""
    described = sys.modules[method.__module__].__doc__ or method.__doc__ or ""
    return next(iter(described.strip().splitlines()), "")


def show_source(source: "Source") -> None:
    """Print what a data source holds."""
    parts = {"train": source.train, "val": source.val, "test": source.test}
    say(source.spec)
    say(f"split: {source.split}")
    table = Table()
    table.add_column("class")
    for name in parts:
        table.add_column(name, justify="right")
    for index, class_name in enumerate(source.classes):
        table.add_row(escape(class_name), *(str(int((part.labels == index).sum())) for part in parts.values()))
    table.add_section()
    table.add_row("all", *(str(len(part)) for part in parts.values()))
    show_table(table)
    for name, part in parts.items():
        digest = Manifest(part.ids).digest
        say(f"{name}: ids like {part.ids[0]!r}, digest {digest}")
        for column, values in part.groups.items():
            line = f"{name}: group column {column!r} with {counted(len(set(values)), 'value')}"
            say(line)
    say(f"digest of the source (ids, labels, splits): {source.digest}")
