"""The tables that commands print."""

import records

from mlflow_unlearn.governance.inbox import InboxCase
from mlflow_unlearn.methods import BUILTIN
from mlflow_unlearn.metrics.catalog import METRICS
from mlflow_unlearn.metrics.suite import Metrics
from mlflow_unlearn.report import table


def metrics(**values: float) -> Metrics:
    made = Metrics()
    made.update(values)
    made.missing.update({key: "no gold model was given" for key in ("jsd", "avg_gap")})
    if "mia_advantage" not in values:
        made.missing["mia_advantage"] = "too few"
    return made


CHANCE = {"mia_advantage_null": 0.08, "mia_margin_auc_low": 0.46, "mia_margin_auc_high": 0.54}
ALIKE = {"mia_advantage": 0.05, "mia_margin_auc": 0.51, **CHANCE}
KNOWN = {"mia_advantage": 0.21, "mia_margin_auc": 0.61, **CHANCE}


def test_a_collapse_is_in_the_words_beside_the_table(capsys):
    ruined = metrics(acc_forget=0.1)
    ruined.missing["mia_advantage"] = records.COLLAPSED
    table.show({"original": metrics(acc_forget=1.0, **ALIKE), "unlearned": ruined})
    assert f"unlearned: {records.COLLAPSED}" in capsys.readouterr().out.splitlines()


def test_before_and_after_side_by_side_with_what_is_good(capsys):
    table.show({"original": metrics(acc_forget=1.0, **KNOWN), "unlearned": metrics(acc_forget=0.75, **ALIKE)})
    out = capsys.readouterr().out
    [row] = [line for line in out.splitlines() if "acc_forget" in line]
    assert "1.0000" in row and "0.7500" in row and METRICS["acc_forget"].meaning in row
    assert "original: residual: the forget set is still recognised" in out
    assert "unlearned: indistinguishable: forgotten and unseen samples look alike" in out
    assert "Not computed: jsd, avg_gap (no gold model was given)" in out


def test_a_metric_that_no_model_has_takes_no_row():
    drawn = table.comparison({"original": metrics(acc_forget=1.0)})
    assert [str(cell) for cell in drawn.columns[0].cells] == ["acc_forget"]


def test_a_verdict_has_a_line_for_each_check(capsys):
    verdict = records.verdict(records.evidence())
    table.show_verdict("models:/digits/4", verdict)
    out = capsys.readouterr().out
    assert f"by the policy 'default': {verdict.word}" in out
    assert all(check.rule.split(" ")[0] in out for check in verdict.checks)


def test_findings_are_text_and_not_markup(capsys):
    table.show_findings("models:/clf/2", [("file [bold]", "differs", "it was [red]changed[/red]")])
    out = capsys.readouterr().out
    assert "file [bold]" in out and "[red]changed[/red]" in out


def test_what_others_have_written_steers_no_terminal(capsys):
    steering = "\x1b[2Jclean\x9b1m\r\nhttp://me:secret@host"
    verdict = records.verdict(records.evidence()).model_copy(update={"policy": steering})
    table.show_findings(steering, [(steering, "differs", steering)])
    table.show_verdict(steering, verdict)
    table.show_places(steering, [(steering,) * 7], {"runs": [steering]})
    out = capsys.readouterr().out
    assert out.count("clean") >= 10
    assert not set(out) & {"\x1b", "\x9b", "\r"} and "secret" not in out


def test_every_method_is_listed_with_its_defaults(capsys):
    table.show_methods(BUILTIN)
    out = capsys.readouterr().out
    assert all(name in out for name in BUILTIN) and "alpha=2.0" in out


def test_a_pass_where_the_original_passes_as_well_is_uninformative(capsys):
    for before, word in (
        (ALIKE, "uninformative: the original already passed"),
        ({}, "uninformative"),
        (KNOWN, "indist"),
    ):
        table.show({"original": metrics(**before), "unlearned": metrics(**ALIKE), "gold": metrics(**ALIKE)})
        out = capsys.readouterr().out
        assert f"unlearned: {word}" in out and "gold: indistinguishable" in out
    table.show({"original": metrics(acc_forget=1.0)})
    assert "original: not computed: too few" in capsys.readouterr().out
    # Alone it is read as it is.
    assert table.readings({"unlearned": metrics(**ALIKE)})["unlearned"].startswith("indistinguishable")


def test_the_inbox_names_the_first_models_that_still_hold_a_sample(capsys):
    def shown(holders: list[str]) -> str:
        case = InboxCase(
            id="0" * 12, subject="group:subject=1", requester=None, filed="2026-01-01", filed_by="anna",
            due="2026-02-01", days_left=3, state="open", requests=[], still_in=holders, unclear=0,
        )  # fmt: skip
        table.show_inbox([case])
        return "".join(capsys.readouterr().out.replace("│", " ").split())

    assert "clf/1–3,7" in shown([f"models:/clf/{n}" for n in (1, 2, 3, 7)])
    many = shown([f"models:/m{n:02}/1" for n in range(15)])
    assert "m11/1" in many and "m12/1" not in many and "3more" in many
