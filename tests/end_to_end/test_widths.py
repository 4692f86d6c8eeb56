"""What each command prints at 80 and 120 columns and in a pipe: as it is stored, and no line is wider.

Of stored or made-up records where figures, which differ between processors, would decide about the layout.
"""

import os
from collections.abc import Callable
from pathlib import Path

import mlflow
import optuna
import pytest
import records
import toy
from chains import LENIENT, QUICK
from listeners import CHAIN
from snapshot import FOLDER, at_each_width, check_stored, check_widths, masked
from stores import TRAIN, copied, log_pt2

from mlflow_unlearn.comparison import table as comparison_table
from mlflow_unlearn.comparison.table import Row, Spread
from mlflow_unlearn.evidence.audit import (
    CanaryRecord,
    ReferenceRecord,
    RelearnRecord,
    RetainedRecord,
    TailRecord,
    WithinRecord,
)
from mlflow_unlearn.governance.places import Place, Places, elsewhere, rows
from mlflow_unlearn.metrics.suite import Metrics
from mlflow_unlearn.report import audit_table, table
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.spelling import spelling
from mlflow_unlearn.tuning import study_report, ways
from mlflow_unlearn.tuning.ways import Way

PASTED = ("mlflow-unlearn ", "/home/ann/.cache/")
"""What lines may begin with that are wider than the terminal: a command, and a path, each without a break."""
RUN = "5f0d6f6c3c1b4a5e9c557f0d6f6c3c1b"


def measured(values: dict[str, float], **more: float) -> Metrics:
    made = Metrics()
    made.update(records.measured(**values, **more).values)
    made.missing.update(records.measured().not_computed)
    return made


def before_and_after() -> None:
    against = {key: "no gold model was given" for key in records.AGAINST}
    columns = {"original": measured(records.BEFORE), "unlearned": measured({})}
    for one in columns.values():
        one.missing.update(against)
    table.show(columns)


def with_gold() -> None:
    table.show(
        {
            "original": measured(records.BEFORE, **records.AGAINST),
            "unlearned": measured(records.AGAINST),
            "gold": measured(records.GOLD),
        }
    )


def verdict() -> None:
    table.show_verdict("models:/digits/4", records.verdict(records.evidence()))


def findings() -> None:
    table.show_findings(
        "models:/a-model-with-a-long-name/4",
        [
            ("files", "same", "all 3 files of the model have their digests"),
            ("weights", "differs", "their digest: 0123456789ab… instead of 1123456789ab…"),
            ("alias champion", "same", "promoted by ann@example.org (not authenticated) on 2026-11-26"),
            ("signature", "not checked", "the evidence is unsigned"),
        ],
    )


def compared(audited: bool = False) -> None:
    def row(method: str, seeds: int = 3, **values: float) -> Row:
        gaps = {"audit_gap": 0.0213, "share_remembered": 0.1, "told_apart": 0.0} if audited else {}
        figures = measured(records.AGAINST | gaps | values)
        return Row(method, dict.fromkeys(range(seeds), figures), [2.0] * seeds, unit=8.0)

    rows = [
        row("original"),
        row("retrain"),
        row("floor", 1),
        row("lotus"),
        row("neggrad_plus"),
        row("neggrad_plus, tuned"),
    ]
    rows[-2].warnings.append("2 of its settings were refused, since the learning rate of the recipe is not recorded")
    comparison_table.show(rows, Spread(0.91, 0.03))


def unranked() -> None:
    why = "No method is ranked, since the gold standard's acc_retain is 0.12 below the original's: give --gold-uri"
    rows = [Row("original", {0: measured({})}, [0.0]), Row("lotus", {0: measured({})}, [2.0], unit=8.0)]
    comparison_table.show(comparison_table.without_ranks(rows, why), None, why)


def study(pareto: bool = False) -> None:
    directions = ["minimize", "maximize"] if pareto else ["minimize"]
    made = optuna.create_study(study_name="clf-1", directions=directions)
    for number, broken in enumerate((False, True, False)):
        made.enqueue_trial({"method": "transpose", "prefix": "layer4"})
        trial = made.ask()
        trial.suggest_categorical("method", ["lotus", "transpose"])
        trial.suggest_categorical("prefix", ["none", "layer4"])
        for name in ("lotus.alpha", "lotus.lr", "lotus.momentum", "transpose.repair_lr", "transpose.weight_decay"):
            trial.suggest_float(name, 0.25, 0.25)
        for name in ("lotus.epochs", "transpose.repair_epochs"):
            trial.suggest_int(name, 5, 5)
        trial.set_constraint("acc_val", 0.02 if broken else -0.01)
        trial.set_constraint("mia_advantage_val", 0.02 if broken else -0.01)
        made.tell(trial, [0.25 + number, 0.9][: len(directions)])
    made.tell(made.ask(), state=optuna.trial.TrialState.FAIL)
    study_report.show(made, made.trials[0], "rf_jsd_advantage_val")


def planned() -> None:
    sizes = {"the new version": 48_000_000.0, "its evidence, twice": 400_000.0, "outputs kept for later commands": 9e5}
    seconds = {
        "measure the original": 12.0,
        "lotus, 4 times": 480.0,
        "transpose, 3 times": 7300.0,
        "measure 8 more": 9.0,
    }
    with mlflow.start_run():
        dry_run.show(dry_run.Estimate(seconds=seconds, memory=2_100_000_000, disk=sizes))


def ways_to_go() -> None:
    def way(kind, name, claim, seconds, of, why):
        options = "--model-uri models:/clf/1 --method NAME --forget random:20% --data digits,train=15%"
        command = f"mlflow-unlearn unlearn {options}"
        return Way(kind=kind, name=name, command=command, seconds=seconds, of_retraining=of, claim=claim, why=why)

    with mlflow.start_run():
        ways.show(
            [
                way("lotus", "LoTUS", "hidden", 12.3, 0.12, "the outputs are like those of unseen samples"),
                way("retraining", "retraining, recorded recipe", "exact", 102.5, 1.0, "as if never trained on them"),
                Way(
                    **{"kind": "shards", "name": "shards trained again", "claim": "exact", "command": None},
                    **{"seconds": None, "of_retraining": None},
                    why="the version is not an ensemble of shards, see `train --ensemble`",
                ),
            ],
            "exact",
        )


def jobs() -> None:
    at = "2026-11-26 12:00"
    table.show_jobs(
        "/srv/listen/queue.db",
        [
            ("1", "models:/clf/1", "request 0123456789ab", "done", "unlearn done → review done", "clf/2", at, ""),
            (
                *("2", "models:/a-model-with-a-long-name/12", "request 0123456789ac", "failed"),
                *("unlearn failed → review waiting", "", at),
                "the data source 'folder:/data/images' is not there: give another one with --data",
            ),
            ("3", "models:/clf/3", "alias champion", "ignored", "", "", at, "no rule is about it"),
        ],
    )


def inbox() -> None:
    table.show_inbox(records.inbox(3, "clf"))


def no_request() -> None:
    table.show_inbox([])


def case() -> None:
    table.show_case(records.case("clf"), ["request 0123456789ab has another digest in its run than on the version"])


def fulfilled() -> None:
    table.show_fulfilled(
        [
            ("models:/clf/1", "0123456789ab", "registered", "models:/clf/2", ""),
            (
                "models:/other/1",
                "0123456789ab",
                "failed",
                "–",
                "the data source 'folder:/data' is not there: give another one",
            ),
        ]
    )


def places() -> None:
    state = {"why": "by its list of training ids", "source": "digits", "endpoints": {}, "checkpoints": 0}
    one = {**state, "uri": "models:/clf/1", "state": "contains", "samples": 20, "aliases": [], "unlearned_by": []}
    found = Places(
        looked_for=20,
        versions_looked_at=4,
        places=[
            Place(**one | {"unlearned_by": ["models:/clf/2"], "aliases": ["champion"], "checkpoints": 3}),
            Place(
                **one | {"uri": "models:/a-model-with-a-long-name/12", "endpoints": {"shop": "https://shop.example"}}
            ),
            Place(**one | {"uri": "models:/clf/2", "state": "unlearned", "samples": 0}),
            Place(**one | {"uri": "models:/other/1", "state": "unknown", "samples": 0, "why": "it has no list"}),
        ],
        logged_models=[f"models:/m-{RUN}"],
        logged_models_unknown=[],
        runs=[RUN, RUN],
        references=[],
        cached=["/home/ann/.cache/mlflow-unlearn/outputs/0123456789ab-a-name-that-takes-more-than-eighty-characters"],
        checkpoints=[],
    )
    table.show_places("Forget requests: 0123456789ab (20 samples of models:/clf/1)", rows(found), elsewhere(found))


def audited() -> None:
    models = ("audited", "original", "gold 1", "gold 2", "known cheat")
    audit_table.show(
        records.audit(
            tier=2,
            references=[
                ReferenceRecord(uri=f"models:/gold/{n}", sha256=records.digest(n), kind="gold") for n in (1, 2)
            ],
            attacks={
                model: {
                    name: records.attack(0.5, TailRecord(tpr=0.02, low=0.0, high=0.05) if name == "rmia" else None)
                    for name in ("margin", "rmia", "held-back quantile")
                }
                for model in models
            },
            not_measured={"u-lira, klom": "need 16 versions made alike and 16 golds: there are 2 and 2"},
            canaries={
                "audited": CanaryRecord(pairs=30, larger=17, p_value=0.58, advantage=0.13, bound=0.42, e_value=1.0)
            },
            retained=RetainedRecord(
                samples=50, attacks={model: records.attack(0.5) for model in models}, rise_p95=0.0, worst=[]
            ),
            relearning={
                model: RelearnRecord(forget=[1.0], unseen=[1.0], ratio=0.97, p_value=0.51, censored=0.0)
                for model in models
            },
            within_golds={name: WithinRecord(value=1.0, low=0.7, high=1.1) for name in ("margin_gap", "jsd")},
        )
    )


CRAFTED: dict[str, Callable[[], None]] = {
    "evaluate": lambda: table.show({"original": measured(records.BEFORE)}),
    "unlearn": before_and_after,
    "unlearn-gold": with_gold,
    "review": verdict,
    "verify-differs": findings,
    "compare": compared,
    "compare-audit": lambda: compared(audited=True),
    "compare-unranked": unranked,
    "tune": study,
    "tune-pareto": lambda: study(pareto=True),
    "plan": planned,
    "plan-ways": ways_to_go,
    "listen": jobs,
    "requests": inbox,
    "requests-none": no_request,
    "requests-case": case,
    "requests-fulfil": fulfilled,
    "audit": lambda: audit_table.show(records.audit()),
    "audit-controls": audited,
    "exposure": places,
}


@pytest.mark.parametrize("name", CRAFTED)
def test_of_records(name, capsys, empty_store):
    def printed() -> str:
        capsys.readouterr()
        with spelling("shell"):
            CRAFTED[name]()
        return masked(capsys.readouterr().out)

    texts = at_each_width(printed)
    check_stored(f"output/{name}", texts)
    check_widths(texts, PASTED)


ONE, TWO, THREE, FOUR = (("--model-uri", f"models:/clf/{n}") for n in (1, 2, 3, 4))
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "methods": (("methods",),),
    "data": (("data", "digits,train=15%", "--ids", "ids.csv"),),
    "policy": (("policy", "show"),),
    "new-method": (("new-method", "my_idea"),),
    "train": (("train", *TRAIN, "--epochs", "1", "--name", "other"),),
    "manifest": (("manifest", "--model-uri", "models:/theirs/1", "--data", "digits", "--ids", "known.txt"),),
    "request": (("request", *FOUR, "--forget", "random:9,seed=SEED"),),
    "request-again": (("request", *ONE, "--forget", "request:ID"),),
    "verify": (("verify", *TWO),),
    "promote": (("review", *THREE, "--policy", "lenient.yaml"), ("promote", *THREE)),
    "locate": (("locate", "--forget", "request:ID"),),
    "dossier": (("dossier", "--request", "ID"),),
}


@pytest.fixture
def own_chain(chain_template, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ann")
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "cache"))
    with copied(chain_template, tmp_path / "chain") as store:
        yield store


def print_of(cli, store, folder: Path, commands: tuple[tuple[str, ...], ...]) -> str:
    """What the last one prints to standard output, in an empty folder: which run it is does not matter to it."""
    width = os.environ.get("COLUMNS", "1")
    (folder / width).mkdir()
    os.chdir(folder / width)
    Path("lenient.yaml").write_text(LENIENT)
    Path("listen.yaml").write_text(CHAIN)
    Path("known.txt").write_text("digits/5\ndigits/7\n")
    [request] = store.requests("1")
    for command in commands:
        done = cli(*(one.replace("ID", request).replace("SEED", width) for one in command))
        assert done.code in (0, 3) and done.out, done.err
    return done.out


@pytest.mark.nightly
@pytest.mark.parametrize("name", COMMANDS)
def test_of_commands(name, own_chain, cli, tmp_path):
    if name == "manifest":
        log_pt2(toy.original(), "theirs")
    texts = at_each_width(lambda: masked(print_of(cli, own_chain, tmp_path, COMMANDS[name])))
    check_stored(f"output/{name}", texts)
    check_widths(texts, PASTED)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "command",
    [
        ("listen", "--config", "listen.yaml", "--status"),
        ("evaluate", *TWO),
        ("exposure", *TWO),
        ("retire", *ONE),
        ("requests", "--state", "all"),
        ("requests", "--case", "ID"),
        ("review", *TWO),
        ("unlearn", *FOUR, "--forget", "random:9,seed=4", "--params", QUICK),
        ("unlearn", *FOUR, "--forget", "random:9,seed=4", "--plan", "--claim", "exact"),
    ],
    ids=lambda command: " ".join(command[:1] + command[-2:]),
)
def test_what_depends_on_the_machine(command, own_chain, cli, tmp_path):
    """By figures, paths and the user's name: not stored."""
    texts = at_each_width(lambda: print_of(cli, own_chain, tmp_path, (command,)), widths=(80,))
    check_widths(texts, (*PASTED, "/", "file:///", "runs:/"))


def test_nothing_else_is_stored():
    assert {path.stem for path in (FOLDER / "output").iterdir()} == {*CRAFTED, *COMMANDS}
