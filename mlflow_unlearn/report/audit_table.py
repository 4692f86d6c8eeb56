"""An audit in the terminal, and as metrics of its run."""

from rich.table import Table

from mlflow_unlearn.console import counted, say
from mlflow_unlearn.evidence.audit import AuditRecord
from mlflow_unlearn.metrics.attacks.suite import AUDITED
from mlflow_unlearn.report.fit import show_table
from mlflow_unlearn.report.table import escape


def metrics(record: AuditRecord) -> dict[str, float]:
    """What is logged with the run: ``audit.MODEL.ATTACK.auc`` and more."""
    found: dict[str, float] = {"audit.seconds": record.seconds, "audit.tier": record.tier}
    for model, attacks in record.attacks.items():
        for attack, one in attacks.items():
            name = f"audit.{model}.{attack}"
            found |= {f"{name}.auc": one.auc, f"{name}.advantage": one.advantage, f"{name}.p": one.p_value}
            found |= {} if one.tail is None else {f"{name}.tpr_at_fpr_1": one.tail.tpr}
    share = record.share_remembered
    if share is not None:
        found |= {f"audit.share_remembered{end}": getattr(share, key) for key, end in _ENDS.items()}
    for model, coins in record.canaries.items():
        found |= {f"audit.{model}.canaries.p": coins.p_value, f"audit.{model}.canaries.bound": coins.bound}
    if record.many is not None:
        found |= {"audit.u_lira": record.many.u_lira, "audit.klom_p95": record.many.klom_p95}
    if record.retained is not None:
        for model, one in record.retained.attacks.items():
            found[f"audit.{model}.retained.auc"] = one.auc
    for model, again in record.relearning.items():
        name = f"audit.{model}.relearning"
        found |= {f"{name}.ratio": again.ratio, f"{name}.p": again.p_value}
    found |= {f"audit.within.{name}": float(one.inside) for name, one in record.within_golds.items()}
    optional = {"completeness": record.completeness, "remembered_p95": record.remembered_p95}
    optional |= {"two_versions_auc": record.two_versions_auc}
    found |= {f"audit.{key}": value for key, value in optional.items() if value is not None}
    # MLflow takes no % in a name.
    return {name.replace(" %", "").replace(" ", "_"): value for name, value in found.items()}


_ENDS = {"value": "", "low": "_low", "high": "_high"}


def show(record: AuditRecord) -> None:
    """Print one row an attack, one column a model, and what follows."""
    models = list(record.attacks)
    counts = {kind: sum(r.kind == kind for r in record.references) for kind in ("gold", "reference")}
    golds, references = (counted(counts[kind], kind) for kind in ("gold", "reference"))
    table = Table(
        title=escape(f"{record.uri}: AUC (p), tier {record.tier}, {golds}, {references}"),
    )
    table.add_column("attack")
    for model in models:
        table.add_column(model, justify="right")
    table.add_column("TPR at 1 % FPR", justify="right")
    for attack, own in record.attacks[AUDITED].items():
        cells = []
        for model in models:
            one = record.attacks[model].get(attack)
            cells.append("–" if one is None else f"{one.auc:.3f} ({one.corrected:.3f}){'*' if one.flagged else ' '}")
        tail = own.tail
        resolved = "not resolvable" if tail is None else f"{tail.tpr:.3f} [{tail.low:.3f}, {tail.high:.3f}]"
        table.add_row(attack, *cells, resolved)
    controls = [model for model in reversed(models) if model not in (AUDITED, "original")]
    show_table(table, drop=("TPR at 1 % FPR", *controls))
    lines = ["* recognised at the 5 % level; p corrected for the number of attacks (Holm)"]
    share = record.share_remembered
    if share is None:
        lines.append(f"share remembered: not measurable ({record.share_missing})")
    else:
        lines.append(
            f"share remembered: {share.value:.3f} [{share.low:.3f}, {share.high:.3f}] (1: all, 0: as retrained)"
        )
    if record.completeness is not None:
        lines.append(
            f"completeness by sample: mean {record.completeness:.3f}, 95 % above {1 - (record.remembered_p95 or 0):.3f}"
        )
        lines.append(f"most remembered: {', '.join(f'{s.id} ({s.remembered:.2f})' for s in record.worst)}")
    if record.within_golds:
        outside = [f"{name} ({one.value:.3f})" for name, one in record.within_golds.items() if not one.inside]
        number = counted(len(record.within_golds), "metric")
        what = f"{', '.join(outside)} of {number} outside" if outside else f"{number} within"
        lines.append(f"{what} what retrained models differ among themselves (95 %)")
    for name, coins in record.canaries.items():
        count = f"{coins.larger} of {coins.pairs} trained twins"
        shown = f"{count} have larger log odds than their ghosts, p {coins.p_value:.3g}"
        lines.append(f"canaries, {name}: {shown}; advantage {coins.advantage:.3f}, at most {coins.bound:.3f} (95 %)")
    if record.many is not None:
        many = record.many
        lines.append(
            f"of the method, by {many.unlearned} versions and {many.golds} golds: U-LiRA {many.u_lira:.3f} (alike: "
            f"{many.u_lira_low:.3f} to {many.u_lira_high:.3f}); KLoM P95 {many.klom_p95:.3f} (alike: up to "
            f"{many.klom_p95_null:.3f})"
        )
    if record.retained is not None:
        kept = record.retained
        shown = ", ".join(f"{name} {one.auc:.3f}" for name, one in kept.attacks.items())
        lines.append(f"retained samples against unseen ones, AUC by margin: {shown} (members; no part of the verdict)")
    if record.relearning:
        shown = ", ".join(f"{name} {one.ratio:.2f} (p {one.p_value:.3f})" for name, one in record.relearning.items())
        lines.append(f"relearning, epochs of forgotten to those of unseen samples (1: as unseen): {shown}")
    if record.two_versions_auc is not None:
        lines.append(f"with both versions: AUC {record.two_versions_auc:.3f} (no part of the verdict; see `exposure`)")
    lines += [f"not measured: {attack} ({why})" for attack, why in record.not_measured.items()]
    say(*lines)
