"""The before/after table, and the words beside its numbers."""

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.parts import Source
from mlflow_unlearn.evaluation import KEYS, Metrics
from mlflow_unlearn.methods import Method
from mlflow_unlearn.metrics.membership import read_auc

MEANING = {
    "acc_forget": "accuracy on the forget set; gold's value is right",
    "acc_retain": "accuracy on the retain set; should stay",
    "acc_val": "accuracy on the validation set; should stay",
    "acc_test": "accuracy on the test set; should stay",
    "acc_test_forgotten": "accuracy on wholly forgotten classes; should fall",
    "mia": "forget samples that the attack calls members; follows confidence",
    "mia_test": "test samples that the same attack calls members",
    "mia_excess": "mia − mia_test; near 0 is right, both signs are failures",
    "mia_auc": "telling forget from test by entropy; 0.5 is right",
    "mia_auc_low": "… lower end of its 95 % interval",
    "mia_auc_high": "… upper end of its 95 % interval",
    "entropy_ks": "distance of the entropy distributions; 0 is right",
    "rf_jsd": "divergence from the original on unseen data; should fall",
    "rf_jsd_published": "as the published code computes it (tables show it × 10⁴)",
    "jsd": "divergence from gold on the forget set; see the floor",
    "jsd_published": "as the published code computes it (tables show it × 10⁴)",
    "avg_gap": "mean distance to gold, as published",
    "avg_gap_excess": "mean distance to gold with mia_excess; this decides",
}
_READING = {
    "residual": "the forget set is still recognised",
    "over-forgotten": "the forget set stands out the other way, which gives it away as well",
    "undecided": "the interval is too wide to tell; a larger forget or test set would",
    "indistinguishable": "forgotten and unseen samples look alike to the attack",
}


def auc_reading(metrics: Metrics) -> str:
    """The two-sided membership test in a sentence."""
    if "mia_auc" not in metrics:
        return f"not computed: {metrics.missing['mia_auc']}"
    word = read_auc(metrics["mia_auc_low"], metrics["mia_auc_high"])
    return f"{word}: {_READING[word]}"


def comparison(columns: Mapping[str, Metrics]) -> Table:
    """One row per metric, one column per model, and what is good."""
    table = Table(title="before and after" if len(columns) > 1 else None, title_justify="left")
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("meaning")
    for key in KEYS:
        if any(key in metrics for metrics in columns.values()):
            cells = [f"{metrics[key]:.4f}" if key in metrics else "–" for metrics in columns.values()]
            table.add_row(key, *cells, MEANING[key])
    return table


def show(columns: Mapping[str, Metrics]) -> None:
    """Print the table, how to read it, and what was not computed, to standard output."""
    # Piped into a file the table keeps its width.
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(comparison(columns))
    for name, metrics in columns.items():
        console.print(f"{name}: {auc_reading(metrics)}", highlight=False, markup=False)
    reasons: dict[str, list[str]] = {}
    for key in KEYS:
        for reason in dict.fromkeys(m.missing[key] for m in columns.values() if key in m.missing):
            if key != "acc_test_forgotten":
                reasons.setdefault(reason, []).append(key)
    for reason, keys in reasons.items():
        console.print(f"Not computed: {', '.join(keys)} ({reason})", highlight=False, markup=False, style="dim")


def markdown(columns: Mapping[str, Metrics]) -> str:
    """The table for a version's description."""
    lines = [f"| metric | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for key in KEYS:
        if any(key in metrics for metrics in columns.values()):
            cells = [f"{metrics[key]:.4f}" if key in metrics else "not computed" for metrics in columns.values()]
            lines.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(lines)


def show_methods(methods: Mapping[str, type[Method]]) -> None:
    """Print the methods with what each is and its hyperparameters: default and range."""
    console = Console(width=None if sys.stdout.isatty() else 130)
    table = Table()
    for column in ("method", "what it does", "hyperparameters (defaults)"):
        table.add_column(column)
    for name, method in methods.items():
        module = sys.modules[method.__module__].__doc__ or method.__doc__ or ""
        fields = method.Params.model_fields.items()
        defaults = ", ".join(f"{key} = {field.default}" for key, field in fields)
        table.add_row(
            name, escape(module.strip().splitlines()[0] if module else ""), escape(defaults), end_section=True
        )
    console.print(table)


def show_source(source: Source) -> None:
    """Print what a data source holds."""
    console = Console(width=None if sys.stdout.isatty() else 130)
    parts = {"train": source.train, "val": source.val, "test": source.test}
    console.print(source.spec, highlight=False, markup=False, soft_wrap=True)
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
            told = f"{name}: group column {column!r} with {len(set(values))} values"
            console.print(told, highlight=False, markup=False)
    console.print(f"digest of the source (ids, labels, splits): {source.digest}", highlight=False)
