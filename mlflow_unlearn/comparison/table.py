"""The table and figures of `compare`."""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import mlflow
from pydantic import Field
from rich.table import Table

from mlflow_unlearn.comparison.audits import AUDIT_COLUMNS
from mlflow_unlearn.console import counted, say
from mlflow_unlearn.evidence.record import FrozenRecord
from mlflow_unlearn.metrics.catalog import METRICS, ranked
from mlflow_unlearn.metrics.suite import Metrics
from mlflow_unlearn.report.fit import show_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCES = ("original", "retrain", "floor")
"""Rows beside the methods; ``floor`` is the retrain-vs-retrain baseline, a second gold measured against each gold."""
COLUMNS = (*(metric.key for metric in ranked("comparison")), "seconds", "seconds_relative")
"""Of the table, in this order, behind `AUDIT_COLUMNS` where audits rank; the first one decides."""
_PRINTED = (*(metric.key for metric in ranked("comparison") if metric.printed), "seconds_relative")
COST = "cost"
"""What is printed in the place of ``seconds_relative``."""
TUNED = ", tuned"
"""Behind a method's name: the row of what tuning has chosen."""
PAPER = "0.92 ± 0.04"
"""Pearson correlation of RF-JSD with JSD over methods, as the LoTUS paper reports it."""
_FEW = 5
"""Methods: a line goes nearly through three points, whatever they are."""


BY_GAP = "`avg_gap_advantage` decides."
BY_AUDIT = (
    "`audit_gap` decides: how far the AUC of an attack lies from that of the golds, each held back in turn, for the "
    "attack where it is farthest. `share_remembered` is 1 where nothing was done and 0 for retraining; `told_apart` is "
    "the share of the seeds on which an audit decides in which it tells the forget set apart."
)


DISTANCES = (*AUDIT_COLUMNS, *(metric.key for metric in METRICS.values() if "gold" in metric.needs))
"""What is measured against the golds, and ranks."""
DAMAGE = 0.05
"""Of acc_test, which a reader of a ranking by audits is told of."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for a single value) over seeds."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        """``0.1234 ± 0.0056``."""
        return f"{self.mean:.4f}" + ("" if self.sd is None else f" ± {self.sd:.4f}")


@dataclass(frozen=True)
class Row:
    """One row: a method's registry name, that and `TUNED`, or one of `REFERENCES`; with the metrics by seed.

    ``unit`` is what retraining costs in seconds, of which ``seconds_relative`` is a multiple.
    """

    method: str
    metrics: Mapping[int, Metrics]
    seconds: list[float]
    warnings: list[str] = field(default_factory=list)
    unit: float = 1.0

    @property
    def collapsed(self) -> list[str]:
        """Why models of this row have collapsed: with such a seed only accuracies count."""
        return [metrics.collapsed for metrics in self.metrics.values() if metrics.collapsed is not None]

    @property
    def name(self) -> str:
        """The method, marked where it has collapsed."""
        return f"{self.method} (collapsed)" if self.collapsed else self.method

    def values(self, column: str) -> list[float]:
        """The column's values, one per seed, where they were computed."""
        if column == "seconds":
            return self.seconds
        if column == "seconds_relative":
            return [seconds / self.unit for seconds in self.seconds]
        return [metrics[column] for metrics in self.metrics.values() if column in metrics]

    def __getitem__(self, column: str) -> Spread | None:
        """The column's mean and spread, or None where it was not computed."""
        values = self.values(column)
        return Spread.of(values) if values else None


class RowRecord(FrozenRecord):
    """One row, as programs read it."""

    method: str = Field(description="Of a method, ', tuned' behind it where tuned; or original, retrain, floor.")
    seeds: int
    columns: dict[str, Spread | None] = Field(description="Over the seeds; null where it was not computed.")
    collapsed: int = Field(description="So many of the seeds count by their accuracies alone.")
    warnings: list[str]


def records(rows: Sequence[Row]) -> list[RowRecord]:
    """The table, row by row."""
    columns = _columns(rows)
    return [
        RowRecord(
            method=row.method,
            seeds=len(row.metrics),
            columns={column: row[column] for column in columns},
            collapsed=len(row.collapsed),
            warnings=row.warnings,
        )
        for row in rows
    ]


def correlation(rows: Sequence[Row], methods: Sequence[str]) -> Spread | None:
    """Pearson correlation of RF-JSD with JSD to gold over the methods, within each seed; None below three methods."""
    own = [row.metrics for row in rows if row.method in methods]
    found = []
    # A method that failed with a seed is missing there, and there alone.
    for seed in sorted({seed for metrics in own for seed in metrics}):
        measured = [metrics[seed] for metrics in own if seed in metrics]
        pairs = [(m["rf_jsd"], m["jsd"]) for m in measured if "rf_jsd" in m and "jsd" in m]
        x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if len(pairs) >= 3 and len(set(x)) > 1 and len(set(y)) > 1:
            found.append(statistics.correlation(x, y))
    return Spread.of(found) if found else None


def without_ranks(rows: Sequence[Row], reason: str) -> list[Row]:
    """The rows without `DISTANCES`, for golds to which they mean nothing."""
    return [
        replace(row, metrics={seed: _left(metrics, reason) for seed, metrics in row.metrics.items()}) for row in rows
    ]


def _left(metrics: Metrics, reason: str) -> Metrics:
    left = Metrics()
    left.update({key: value for key, value in metrics.items() if key not in DISTANCES})
    left.missing.update({key: reason for key in metrics if key in DISTANCES} | metrics.missing)
    left.counts.update(metrics.counts)
    return left


def by_audit(rows: Sequence[Row]) -> list[Row]:
    """The reference rows as they stand, and behind them the methods from the lowest ``audit_gap`` up."""
    far = {row.method: row["audit_gap"] for row in rows}
    return sorted(rows, key=lambda row: _place(row.method, far[row.method]))


def _place(method: str, gap: Spread | None) -> float:
    if method in REFERENCES:
        return REFERENCES.index(method) - len(REFERENCES)
    return float("inf") if gap is None else gap.mean


def _columns(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> tuple[str, ...]:
    return (*(AUDIT_COLUMNS if _audited(rows) else ()), *columns)


def _audited(rows: Sequence[Row]) -> bool:
    return any(row["audit_gap"] is not None for row in rows)


def log(rows: Sequence[Row], pearson: Spread | None, unranked: str | None = None) -> None:
    """The table as Markdown, CSV and JSON and the figure of the distances, as artifacts of the active run."""
    mlflow.log_text(markdown(rows, pearson, unranked), "compare/table.md")
    mlflow.log_text(as_csv(rows), "compare/table.csv")
    mlflow.log_text(json.dumps(as_json(rows), indent=1), "compare/table.json")
    if unranked is None:
        mlflow.log_figure(figure(rows, pearson), "compare/figure.png")


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One object per row: ``method``, ``seeds`` (how many), each column's mean and ``…_sd``, null where missing.

    ``collapsed`` of the seeds count by their accuracies alone.
    """
    objects = []
    for row in rows:
        cells: dict[str, Any] = {"method": row.method, "seeds": len(row.metrics)}
        for column in _columns(rows):
            spread = row[column]
            cells[column] = None if spread is None else spread.mean
            cells[f"{column}_sd"] = None if spread is None else spread.sd
        objects.append({**cells, "collapsed": len(row.collapsed), "warnings": row.warnings})
    return objects


def as_csv(rows: Sequence[Row]) -> str:
    """`as_json` as a table."""
    text = io.StringIO()
    objects = as_json(rows)
    writer = csv.DictWriter(text, fieldnames=list(objects[0]))
    writer.writeheader()
    writer.writerows({**cells, "warnings": "; ".join(cells["warnings"])} for cells in objects)
    return text.getvalue()


def markdown(rows: Sequence[Row], pearson: Spread | None, unranked: str | None = None) -> str:
    """The table with its notes."""
    shown = [column for column in _columns(rows) if any(row[column] is not None for row in rows)]
    lines = [f"| method | {' | '.join(shown)} |", "|---" + "|---:" * len(shown) + "|"]
    for row in rows:
        cells = [str(row[column]) if row[column] is not None else "–" for column in shown]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {line}" for line in notes(rows, pearson, shown, unranked=unranked))]) + "\n"


def notes(
    rows: Sequence[Row], pearson: Spread | None, columns: Sequence[str], *, spread: bool = True, unranked: str | None
) -> list[str]:
    """What a reader of the table must know, of the rows and columns that are there.

    Args:
        rows: of the table.
        pearson: correlation of RF-JSD with JSD.
        columns: that are shown.
        spread: whether standard deviations are.
        unranked: a sentence, without its full stop, about why no method is ranked; None where they are.
    """
    seeds = max((len(row.metrics) for row in rows), default=0)
    over = "" if seeds < 2 else f"Mean{' ± standard deviation' if spread else ''} over {seeds} seeds. "
    lines = [over + (_ranks(rows, columns) if unranked is None else f"{unranked}.")]
    if cost := [name for name in ("seconds_relative", COST) if name in columns]:
        lines.append(
            f"`{cost[0]}` is the time to unlearn in units of retraining; the original's outputs are computed once for "
            "all methods and not counted."
        )
    if pearson is not None:
        own = [row for row in rows if row.method not in REFERENCES and not row.method.endswith(TUNED)]
        count = sum(row["rf_jsd"] is not None and row["jsd"] is not None for row in own)
        few = "; of so few it says little" if count < _FEW else ""
        over = f"{pearson}{few} (the paper reports {PAPER})"
        lines.append(f"Pearson correlation of rf_jsd with jsd over {counted(count, 'method')}: {over}.")
    lines += [
        f"{row.method}: metrics of {len(row.collapsed)} of {len(row.metrics)} seeds are void, {row.collapsed[0]}."
        for row in rows
        if row.collapsed
    ]
    if _audited(rows):
        lines += _damaged(rows)
    lines += [f"{row.method}: {sentence}." for row in rows for sentence in row.warnings]
    return lines


def _ranks(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """What the order of the rows is by, and what it is held against."""
    methods = {row.method for row in rows}
    retrain = "`retrain` is the gold standard of each seed. " if "retrain" in methods else ""
    floor = (
        "`floor` is a second gold standard: no method can be expected to come nearer. " if "floor" in methods else ""
    )
    published = " The published `avg_gap` follows a model's overall confidence." if "avg_gap" in columns else ""
    return retrain + floor + (BY_AUDIT if _audited(rows) else BY_GAP) + published


def _damaged(rows: Sequence[Row]) -> list[str]:
    """Who has lost much: an audit asks what a model still knows of the forget set, not what it is good for."""
    accuracies = {row.method: spread.mean for row in rows if (spread := row["acc_test"]) is not None}
    lost = {method: accuracies.get("original", 0.0) - accuracy for method, accuracy in accuracies.items()}
    return [f"{m}: has lost {loss:.2f} of acc_test, which no audit sees." for m, loss in lost.items() if loss > DAMAGE]


def show(rows: Sequence[Row], pearson: Spread | None, unranked: str | None = None) -> None:
    """Print the table to standard output."""
    title = "methods against retraining" if unranked is None else "methods, not ranked"
    table = Table(title=title)
    table.add_column("method")
    columns = [c for c in _columns(rows, _PRINTED) if any(row[c] is not None for row in rows)]
    for column in columns:
        table.add_column(COST if column == "seconds_relative" else column, justify="right")
    for row in rows:
        cells = (f"{spread.mean:.4f}" if (spread := row[column]) is not None else "–" for column in columns)
        table.add_row(row.name, *cells, end_section=row.method == "floor")
    # What decides, what the model is still good for, and the cost remain longest.
    shown = show_table(table, drop=sorted(reversed(columns[1:-1]), key=lambda c: (c != "avg_gap", c == "acc_test")))
    say(*notes(rows, pearson, shown, spread=False, unranked=unranked))


def figure(rows: Sequence[Row], pearson: Spread | None) -> "Figure":
    """Two gaps against cost, and RF-JSD against JSD."""
    from matplotlib.figure import Figure  # not needed when a command starts

    fig = Figure(figsize=(15, 5.6), layout="constrained")
    axes = fig.subplots(1, 3)
    second = "audit_gap" if _audited(rows) else "avg_gap"
    for ax, column in zip(axes[:2], ("avg_gap_advantage", second), strict=True):
        _scatter(ax, rows, "seconds_relative", column)
        floor = next((row[column] for row in rows if row.method == "floor"), None)
        if floor is not None:
            ax.axhline(floor.mean, linestyle=":", color="grey", label="floor between two golds")
        ax.set(xlabel="cost (1 = retraining)", ylabel=f"{column} (0 is right)")
    _scatter(axes[2], rows, "jsd", "rf_jsd")
    axes[2].set(xlabel="jsd to gold", ylabel="rf_jsd (needs no gold)")
    if pearson is not None:
        axes[2].set_title(f"Pearson over methods {pearson}, paper {PAPER}", fontsize=9)
    # Beside the points the names would overlap: methods that move nothing all stand where the original does.
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=7, fontsize=9)
    return fig


def _scatter(ax: "Axes", rows: Sequence[Row], x: str, y: str) -> None:
    numbers: dict[str, int] = {}  # a method has one colour
    for row in rows:
        number = numbers.setdefault(row.method.removesuffix(TUNED), len(numbers))
        # The original costs nothing.
        across, up = row[x] or (Spread(0.0, None) if x == "seconds_relative" else None), row[y]
        if across is None or up is None or row.method == "floor":
            continue
        shape = "s" if row.method in REFERENCES else "^" if row.method.endswith(TUNED) else "o"
        style: dict[str, Any] = {"fmt": shape, "color": f"C{number % 10}"}
        style |= {"label": row.method, "mfc": "none" if number >= 10 else None}
        ax.errorbar(across.mean, up.mean, xerr=across.sd, yerr=up.sd, **style)
