"""Where the marks of the report's figures lie, in the units of their view boxes; `page.html` draws them."""

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlflow_unlearn.console import counted
from mlflow_unlearn.evidence.audit import AuditFigures
from mlflow_unlearn.evidence.record import PLACES, ClassRow, Evidence, Histogram, Measured

MODELS = {"original": "before", "unlearned": "after", "gold": "gold"}
MAX_CLASSES = 40
MAX_EPOCHS = 200
MAX_INTERVALS = 12
MAX_REQUESTS = 5
_LABELS = {"temperature": "temperature τ", "delta": "accuracy gap Δ"}
_LEFT, _TOP, _WIDTH, _HEIGHT = 46.0, 8.0, 206.0, 108.0  # the plot in the view box of a small panel, 260 × 142


def number(value: float | None) -> str:
    """Four decimals, or a power of ten where these would be all zeros; a dash for what is not a number."""
    if value is None or not math.isfinite(value):
        return "–"
    if value != 0 and not 5e-4 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{mantissa} × 10{power}".replace("-", "−")
    return f"{value:.4f}".replace("-", "−")


def change(before: float | None, after: float | None) -> str:
    """After minus before, with its sign."""
    if before is None or after is None or not math.isfinite(after - before):
        return "–"
    shown = number(after - before)
    return shown if shown.startswith("−") or after == before else f"+{shown}"


def fit(text: str, width: int) -> str:
    """One line of at most ``width`` characters, as a figure has no line breaks; wide characters count twice."""
    line = " ".join(text.split())
    used = 0
    for position, character in enumerate(line):
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > width:
            return line[: max(position - 1, 0)] + "…"
    return line


def intervals(evidence: Evidence, apart: Sequence[tuple[str, Mapping[str, Measured]]]) -> dict[str, Any] | None:
    """Membership beside what chance gives, in records of earlier releases by intervals; None where nothing has any."""
    chance = evidence.policy_schema == 2
    named = [(MODELS.get(model, model), model, measured) for model, measured in evidence.metrics.items()]
    named += [(f"after, {name}", "unlearned", m["unlearned"]) for name, m in reversed(apart) if "unlearned" in m]
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "model": model,
            "word": evidence.membership if name == MODELS["unlearned"] else m.membership,
            "ends": ends,
        }
        for name, model, m in named
        if (ends := (_up_to_chance(m) if chance else _interval(m))) is not None
    ][:MAX_INTERVALS]
    if not rows:
        return None
    ticks = axis_ticks([*((0.0, 0.2) if chance else (0.4, 0.6)), *(value for row in rows for value in row["ends"])])
    x = _scale(ticks, 8, 364)
    for row in rows:
        row["x"] = [x(value) for value in row["ends"]]
    return {
        "rows": rows,
        "ticks": [(x(tick), f"{tick:.2g}") for tick in ticks],
        "middle": x(0.0 if chance else 0.5),
        **(_CHANCE if chance else _INTERVALS),
    }


_CHANCE = {
    "caption": "Membership: advantage of the best threshold, beside what chance gives",
    "description": "One row a model or forget set; a mark beyond the bar, which ends at the 95 % quantile of chance, "
    "shows a difference between forgotten and unseen samples.",
    "columns": ("from", "mia_advantage", "mia_advantage_null"),
}
_INTERVALS = {
    "caption": "Membership: AUC of telling forgotten from unseen, with 95 % intervals",
    "description": "One row a model or forget set; an interval that holds 0.5 shows no difference between forgotten "
    "and unseen samples.",
    "columns": ("low", "mia_auc", "high"),
}


def _up_to_chance(measured: Measured) -> list[float] | None:
    """Where the bar of chance begins, the value, and where the bar ends."""
    value, null = (measured.values.get(f"mia_advantage{end}") for end in ("", "_null"))
    return None if value is None or null is None else [0.0, value, null]


def _interval(measured: Measured) -> list[float] | None:
    """The AUC between the ends of its interval."""
    ends = [measured.values.get(f"mia_auc{end}") for end in ("_low", "", "_high")]
    found = [end for end in ends if end is not None]
    return found if len(found) == len(ends) else None


def axis_ticks(values: Sequence[float]) -> list[float]:
    """Round ticks, two to seven of them, that enclose the values."""
    low, high = min(values), max(values)
    if low == high:
        low, high = (0.0, 1.0) if low == 0 else (min(low, 0.0), max(low, 0.0))
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _scale(ticks: Sequence[float], start: float, length: float) -> Callable[[float], float]:
    low, span = ticks[0], ticks[-1] - ticks[0]
    return lambda value: round(start + length * (value - low) / span, 1)


def _panel(name: str, xs: Sequence[float], ys: Sequence[float], x_text: str = "{:g}") -> dict[str, Any]:
    """A small plot without its lines: ticks of both axes and the functions that place a point."""
    x, y = _scale(xs, _LEFT, _WIDTH), _scale(ys, _TOP + _HEIGHT, -_HEIGHT)
    anchors = ["start", *["middle"] * (len(xs) - 2), "end"]
    return {
        "name": name,
        "left": _LEFT,
        "x": x,
        "y": y,
        "x_ticks": [(x(tick), x_text.format(tick), anchor) for tick, anchor in zip(xs, anchors, strict=True)],
        "y_ticks": [(y(tick), f"{tick:.4g}".replace("-", "−")) for tick in ys],
        "lines": [],
    }


def histogram(histogram: Histogram) -> dict[str, Any]:
    """One panel a set, all with one scale; and the shares as a table."""
    edges = histogram.edges
    models = [model for model in MODELS if any(model in rows for rows in histogram.shares.values())]
    ys = axis_ticks(
        [0.0, *(100 * share for rows in histogram.shares.values() for row in rows.values() for share in row)]
    )
    panels = []
    for role, rows in histogram.shares.items():
        panel = _panel(f"{role} set", [edges[0], (edges[0] + edges[-1]) / 2, edges[-1]], ys, "{:.3g}")
        x, y = panel["x"], panel["y"]
        for model in (model for model in models if model in rows):
            steps = "".join(f"V{y(100 * s)}H{x(edge)}" for s, edge in zip(rows[model], edges[1:], strict=True))
            panel["lines"].append({"style": model, "d": f"M{_LEFT},{y(0)}{steps}V{y(0)}"})
        panels.append(panel)
    table = [
        (f"{low:.3f} – {high:.3f}", [f"{100 * rows[m][i]:.2f}" for rows in histogram.shares.values() for m in models])
        for i, (low, high) in enumerate(zip(edges, edges[1:], strict=False))
    ]
    return {"panels": panels, "models": models, "roles": list(histogram.shares), "table": table}


def audit_curves(drawn: AuditFigures) -> dict[str, Any]:
    """True positives over false alarms, both axes logarithmic; what a small figure cannot show is at its edge."""
    decades = [-3.0, -2.0, -1.0, 0.0]
    panel = _panel(drawn.attack, decades, decades)
    anchors = ("start", "middle", "middle", "end")
    panel["x_ticks"] = [(panel["x"](at), f"{10**at:g}", anchor) for at, anchor in zip(decades, anchors, strict=True)]
    panel["y_ticks"] = [(panel["y"](tick), f"{10**tick:g}") for tick in decades]

    def line(rates: Sequence[float]) -> str:
        logs = [(math.log10(x), math.log10(max(y, 1e-3))) for x, y in zip(drawn.rates, rates, strict=True)]
        return "M" + "L".join(f"{panel['x'](x)},{panel['y'](y)}" for x, y in logs)

    shown = {_audit_model(model): model for model in reversed(list(drawn.curves))}
    panel["lines"] = [{"style": style, "d": line(drawn.curves[model])} for style, model in sorted(shown.items())]
    panel["lines"].append({"style": "middle", "d": line(drawn.rates)})
    return panel


def audit_scores(drawn: AuditFigures) -> dict[str, Any] | None:
    """How far samples are remembered, in the mean over golds; None where no reference allows it."""
    rows: dict[str, list[list[float]]] = {}
    for model, shares in drawn.remembered.items():
        rows.setdefault(_audit_model(model), []).append(shares)
    if not rows:
        return None
    means = {model: np.mean(shares, axis=0).tolist() for model, shares in rows.items()}
    bins = len(next(iter(means.values())))
    edges = [index / bins for index in range(bins + 1)]
    return histogram(Histogram(edges=edges, shares={"forget": means}))


def _audit_model(name: str) -> str:
    """A model of an audit as the other figures call it."""
    return "gold" if name.startswith("gold") else {"audited": "unlearned"}.get(name, name)


def classes(rows: Sequence[ClassRow], field: str) -> dict[str, Any]:
    """The classes that changed most in ``acc_test`` or ``rf_jsd``, the largest fall first."""
    found = []
    for row in rows:
        values = getattr(row, field)
        before, after = values.get("original"), values.get("unlearned")
        if before is not None and after is not None and math.isfinite(after - before):
            found.append({"row": row, "before": before, "after": after, "gold": values.get("gold")})
    shown = sorted(found, key=lambda one: -abs(one["after"] - one["before"]))[:MAX_CLASSES]
    shown.sort(key=lambda one: one["after"] - one["before"])
    ticks = axis_ticks(
        [value for one in shown for value in (one["before"], one["after"], one["gold"]) if value is not None] or [0.0]
    )
    x = _scale(ticks, 130, 184)
    for one in shown:
        one["x"] = {name: x(one[name]) for name in ("before", "after", "gold") if one[name] is not None}
    return {
        "rows": shown,
        "defined": len(found),
        "total": len(rows),
        "gold": any(one["gold"] is not None for one in shown),
        "ticks": [(x(tick), f"{tick:.3g}") for tick in ticks],
    }


def curves(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Accuracies in one panel and every other value in one of its own; and the epochs as a table.

    Shard and stage of an ensemble's epochs are in the table alone.
    """
    kept = sorted({round(i) for i in np.linspace(0, len(history) - 1, MAX_EPOCHS)}) if history else []
    epochs = [history[index] for index in kept]
    keys = [key for key in dict.fromkeys(key for epoch in epochs for key in epoch) if key != "epoch"]
    drawn = [key for key in keys if key != "seconds" and key not in PLACES]
    accuracies = [key for key in drawn if key.startswith("acc_")]
    groups = [*([("accuracy", accuracies)] if accuracies else [])]
    groups += [(_LABELS.get(key, key), [key]) for key in drawn if key not in accuracies]
    xs = [float(epoch.get("epoch", index)) for index, epoch in zip(kept, epochs, strict=True)]
    panels = []
    for name, members in groups:
        values = {key: [(x, e[key]) for x, e in zip(xs, epochs, strict=True) if _finite(e.get(key))] for key in members}
        if not any(values.values()):
            continue
        x_ticks = [min(xs), max(xs)] if max(xs) > min(xs) else [xs[0] - 1, xs[0], xs[0] + 1]
        panel = _panel(name, x_ticks, axis_ticks([value for points in values.values() for _, value in points]))
        for style, (key, points) in enumerate(values.items()):
            placed = [(panel["x"](x), panel["y"](value)) for x, value in points]
            d = "M" + "L".join(f"{x},{y}" for x, y in placed) if placed else ""
            marks = placed if len(placed) <= 20 else []
            panel["lines"].append({"style": f"curve{style % 4}", "key": key, "d": d, "marks": marks})
        panels.append(panel)
    table = [(f"{x:g}", [_cell(key, epoch.get(key)) for key in keys]) for x, epoch in zip(xs, epochs, strict=True)]
    return {
        "panels": panels,
        "columns": [_LABELS.get(key, key) for key in keys],
        "table": table,
        "shown": len(epochs),
        "total": len(history),
    }


def _cell(key: str, value: float | None) -> str:
    return f"{value:g}" if key in PLACES and value is not None and math.isfinite(value) else number(value)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def lineage(evidence: Evidence, most: int) -> dict[str, Any]:
    """From the first source to the result: versions, and between them the method and the requests."""
    steps = [(step.source_uri, step.method, step.request_ids, step.uri) for step in evidence.lineage]
    steps.append((evidence.source.uri, evidence.provenance.method, evidence.request_ids, evidence.result.uri))
    shown = steps[-most:]
    samples = {request.id: request.samples for request in evidence.requests}
    nodes: list[dict[str, Any]] = []
    for source, method, request_ids, uri in shown:
        if not nodes or nodes[-1]["text"] != source:
            nodes.append({"kind": "version", "text": source, "note": "source" if not nodes else "the same weights"})
        nodes.append({"kind": "method", "text": method, "note": ""})
        for id in request_ids[:MAX_REQUESTS]:
            of = counted(samples[id], "sample", grouped=True) if id in samples else ""
            nodes.append({"kind": "request", "text": id, "note": of})
        if len(request_ids) > MAX_REQUESTS:
            nodes.append(
                {"kind": "request", "text": f"and {len(request_ids) - MAX_REQUESTS} more requests", "note": ""}
            )
        nodes.append(
            {
                "kind": "version",
                "text": uri,
                "note": "this version" if uri == evidence.result.uri else "earlier version",
            }
        )
    return {"nodes": nodes, "left_out": len(steps) - len(shown)}
