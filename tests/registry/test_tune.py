"""`tune`: nested runs, judged without the test set, and the very weights of the best one."""

import json
from pathlib import Path

import mlflow
import optuna
import pytest
import torch
import toy
from stores import CLASSES, FORGET, call, copied, digits_folder, reset_mlflow, use

from mlflow_unlearn.models import weights_digest

TUNE = ("tune", "--model-uri", "models:/clf/1")
SEARCHED = {"alpha", "lr", "epochs"}


def trials_of(store, parent):
    runs = [run for run in store.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return sorted(runs, key=lambda run: run.info.start_time)


def command_runs(store, command: str = "tune"):
    """The newest first."""
    return [run for run in store.runs() if run.data.tags.get("unlearn.command") == command]


@pytest.fixture(scope="module")
def searched(template, tmp_path_factory):
    """Six trials, once."""
    with copied(template, tmp_path_factory.mktemp("tune")) as store:
        assert call("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
        done = call(*TUNE, "--n-trials", "6", "--seed", "2")
        assert done.code == 0, done.err
        return store, done


@pytest.fixture
def result(searched, monkeypatch):
    use(searched[0], monkeypatch)
    [parent] = command_runs(searched[0])
    yield searched[0], parent
    reset_mlflow()


def test_six_nested_finished_runs(result):
    store, parent = result
    trials = trials_of(store, parent)
    assert parent.info.status == "FINISHED"
    assert [run.info.run_name for run in trials] == [f"trial {number}" for number in range(6)]
    assert {run.info.status for run in trials} == {"FINISHED"}
    assert not any("unlearn.error" in run.data.tags for run in [parent, *trials])
    for run in trials:
        assert {f"unlearn.params.{name}" for name in SEARCHED} <= run.data.params.keys()
        assert {"rf_jsd_val", "acc_val", "acc_retain", "feasible", "unlearn_seconds"} <= run.data.metrics.keys()
        assert store.client.get_metric_history(run.info.run_id, "loss")


def test_no_trial_saw_the_test_set(result):
    store, parent = result
    for run in trials_of(store, parent):
        assert not [key for key in run.data.metrics if "test" in key]
    # Only the winner is measured on it.
    assert "unlearned.acc_test" in parent.data.metrics


def test_the_first_trial_is_the_published_setting(result):
    store, parent = result
    params = trials_of(store, parent)[0].data.params
    assert {name: float(params[f"unlearn.params.{name}"]) for name in SEARCHED} == {
        "alpha": 2.0,
        "lr": 1e-4,
        "epochs": 10.0,
    }
    others = [tuple(run.data.params[f"unlearn.params.{name}"] for name in SEARCHED) for run in trials_of(store, parent)]
    assert len(set(others)) == 6


def test_the_winner_is_registered_as_it_was(result):
    """The best feasible trial by the objective, and its very weights."""
    store, parent = result
    trials = trials_of(store, parent)
    feasible = [run for run in trials if run.data.metrics["feasible"] == 1]
    best = min(feasible, key=lambda run: run.data.metrics["rf_jsd_val"])
    assert parent.data.metrics["best_trial"] == trials.index(best)
    tags = store.tags("2")
    assert store.versions() == ["1", "2"]
    assert tags["unlearn.weights_sha256"] == best.data.tags["unlearn.weights_sha256"]
    assert weights_digest(mlflow.pytorch.load_model("models:/clf/2")) == tags["unlearn.weights_sha256"]
    assert tags["unlearn.run_id"] == parent.info.run_id
    assert len({run.data.tags["unlearn.weights_sha256"] for run in trials}) > 1
    [(state, details)] = store.requests().values()
    assert (state, details["by"]) == ("done", ["models:/clf/2"])
    # The parent run carries the winner's setting.
    for name in SEARCHED:
        assert parent.data.params[f"unlearn.params.{name}"] == best.data.params[f"unlearn.params.{name}"]
    record = mlflow.models.get_model_info("models:/clf/2").metadata["mlflow_unlearn"]
    assert record["recipe"]["trial"] == trials.index(best)
    assert record["recipe"]["study"] == parent.data.tags["unlearn.study"]
    evidence = json.loads(
        Path(mlflow.artifacts.download_artifacts(run_id=parent.info.run_id, artifact_path="evidence.json")).read_text()
    )
    assert evidence["method"]["hyperparameters"]["trial"] == trials.index(best)


def test_feasible_is_what_the_constraints_say(result):
    """Loss of accuracy against the original, on the sets that are judged."""
    store, parent = result
    before = parent.data.metrics
    for run in trials_of(store, parent):
        after = run.data.metrics
        met = (
            before["original.acc_val"] - after["acc_val"] <= 0.01 + 1e-12
            and before["original.acc_retain"] - after["acc_retain"] <= 0.02 + 1e-12
            and after["mia_auc_val_high"] >= 0.5 - 1e-12
        )
        assert bool(after["feasible"]) == met


def test_the_study_lies_in_a_database_of_its_own(result, searched):
    store, parent = result
    study = optuna.load_study(
        study_name=parent.data.tags["unlearn.study"], storage=f"sqlite:///{store.folder / 'optuna.db'}"
    )
    trials = trials_of(store, parent)
    assert [trial.user_attrs["run_id"] for trial in study.trials] == [run.info.run_id for run in trials]
    assert [trial.value for trial in study.trials] == [run.data.metrics["rf_jsd_val"] for run in trials]
    table = Path(mlflow.artifacts.download_artifacts(run_id=parent.info.run_id, artifact_path="trials.csv"))
    assert len(table.read_text().splitlines()) == 7
    assert f"study {study.study_name}" in searched[1].out
    assert f"{int(parent.data.metrics['best_trial'])} (best)" in searched[1].out


def test_nothing_is_registered_when_so_asked(store, cli):
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    before = store.everything_registered()
    done = cli(*TUNE, "--n-trials", "2", "--register", "none")
    assert done.code == 0, done.err
    assert "nothing was registered" in done.out
    assert store.everything_registered() == before
    parent = command_runs(store)[0]
    assert parent.info.status == "FINISHED"
    assert len(trials_of(store, parent)) == 2
    assert "best_trial" in parent.data.metrics


def test_a_study_goes_on(store, cli):
    """A second command adds its trials; the winner of the first is made again, bit by bit."""
    storage = f"sqlite:///{store.folder / 'studies.db'}"
    spec = ("--forget", FORGET, "--study", "ours", "--storage", storage)
    first = cli(*TUNE, *spec, "--n-trials", "4", "--register", "none")
    assert first.code == 0, first.err
    study = optuna.load_study(study_name="ours", storage=storage)
    best = study.best_trial
    # The most that can be done: it damages the model and cannot win.
    study.enqueue_trial({"alpha": 16.0, "lr": 1e-3, "epochs": 20})
    second = cli(*TUNE, *spec, "--n-trials", "1")
    assert second.code == 0, second.err
    found = optuna.load_study(study_name="ours", storage=storage)
    assert [trial.number for trial in found.trials] == [0, 1, 2, 3, 4]
    assert found.trials[4].value > best.value
    newer, older = command_runs(store)
    assert [len(trials_of(store, parent)) for parent in (older, newer)] == [4, 1]
    assert trials_of(store, newer)[0].info.run_name == "trial 4"
    assert older.data.metrics["best_trial"] == newer.data.metrics["best_trial"] == best.number
    assert store.tags("2")["unlearn.weights_sha256"] == best.user_attrs["weights_sha256"]
    assert weights_digest(mlflow.pytorch.load_model("models:/clf/2")) == best.user_attrs["weights_sha256"]


def test_a_study_that_goes_on_tries_something_new(store, cli):
    """With the same seed, too; and the published setting once."""
    for _ in range(2):
        done = cli(*TUNE, "--forget", FORGET, "--study", "ours", "--n-trials", "2", "--register", "none")
        assert done.code == 0, done.err
    found = optuna.load_study(study_name="ours", storage=f"sqlite:///{store.folder / 'optuna.db'}")
    assert len({tuple(trial.params.values()) for trial in found.trials}) == 4


def test_a_study_is_about_one_task(store, cli):
    """Trials with another seed or forget set cannot be compared with those that are there."""
    spec = (*TUNE, "--study", "ours", "--n-trials", "1", "--register", "none")
    assert cli(*spec, "--forget", FORGET).code == 0
    before = store.everything_registered()
    for options, different in (
        (("--forget", FORGET, "--seed", "1"), "seed"),
        (("--forget", "random:10%"), "forget_sha256"),
        (("--forget", "random:10%", "--seed", "1"), "forget_sha256, seed"),
    ):
        refused = cli(*spec, *options)
        assert refused.code == 2
        assert f"study 'ours' was started with another {different}: continue it with the same" in refused.err
    study = optuna.load_study(study_name="ours", storage=f"sqlite:///{store.folder / 'optuna.db'}")
    assert len(study.trials) == 1
    assert store.everything_registered() == before
    assert cli(*spec, "--forget", FORGET).code == 0


def test_the_same_seed_searches_the_same(store, cli):
    for study in ("a", "b"):
        assert cli(*TUNE, "--forget", FORGET, "--study", study, "--n-trials", "3", "--register", "none").code == 0
    params = [[run.data.params for run in trials_of(store, parent)] for parent in command_runs(store)]
    assert params[0] == params[1]


def frozen_norm() -> torch.nn.Module:
    """A network whose BatchNorm was never adapted to the data: one pass in training mode takes its accuracy away."""
    model = toy.net()
    norm = model[1]
    norm.momentum = 1.0
    norm.running_mean.fill_(-5.0)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    images, labels = toy.digits(0, 200).tensors
    model.eval()
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def test_nothing_is_registered_where_no_trial_meets_the_constraints(empty_store, cli, tmp_path):
    data = digits_folder(tmp_path / "images")
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            frozen_norm(), name="m", registered_model_name="frozen", serialization_format="pickle",
            pip_requirements=["torch"],
        )  # fmt: skip
    arguments = ("--model-uri", "models:/frozen/1", "--data", f"folder:{data}", "--transform", "none")
    arguments += ("--classes", ",".join(CLASSES), "--forget", "random:20%")
    assert cli("request", *arguments[:4], "--forget", "random:20%").code == 0
    before = empty_store.everything_registered()
    done = cli("tune", *arguments, "--n-trials", "2")
    assert done.code == 3, done.err
    assert "none of 2 trials (2 finished) met the constraints" in done.err
    assert empty_store.everything_registered() == before
    parent = command_runs(empty_store)[0]
    assert parent.info.status == "FAILED"
    assert "none of 2 trials" in parent.data.tags["unlearn.error"]
    assert [run.data.metrics["feasible"] for run in trials_of(empty_store, parent)] == [0.0, 0.0]
