"""`tune`: nested runs, selected without the test set, and the very weights of the best one."""

import html
import json

import mlflow
import optuna
import pytest
import torch
import toy
from stores import CLASSES, DATA, call, copied, digits_folder, reset_mlflow, use

from mlflow_unlearn import config
from mlflow_unlearn.commands.tune import tune
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.errors import UnlearnError

DEFAULT = ("tune", "--model-uri", "models:/clf/1")
TUNE = (*DEFAULT, "--methods", "lotus")
FORGET = "random:8%"
"""So few that chance reaches as far as the model tells them apart: else no trial of LoTUS would be feasible."""
SEARCHED = {"alpha", "lr", "epochs"}
SELECTION = ("unlearn.study", "unlearn.trial", "unlearn.selection", "unlearn.n_trials")


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


@pytest.mark.slow
def test_six_nested_finished_runs(result):
    store, parent = result
    trials = trials_of(store, parent)
    assert parent.info.status == "FINISHED"
    assert [run.info.run_name for run in trials] == [f"trial {number}" for number in range(6)]
    assert {run.info.status for run in trials} == {"FINISHED"}
    assert not any("unlearn.error" in run.data.tags for run in [parent, *trials])
    for run in trials:
        assert {f"unlearn.params.{name}" for name in SEARCHED} <= run.data.params.keys()
        assert {
            "objective",
            "rf_jsd_val",
            "acc_val",
            "acc_retain",
            "feasible",
            "unlearn_seconds",
        } <= run.data.metrics.keys()
        assert store.client.get_metric_history(run.info.run_id, "loss")


@pytest.mark.slow
def test_no_trial_saw_the_test_set(result):
    store, parent = result
    for run in trials_of(store, parent):
        assert not [key for key in run.data.metrics if "test" in key]
    # Only the winner is measured on it.
    assert "unlearned.acc_test" in parent.data.metrics


@pytest.mark.slow
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


def stored(parent):
    """The trials of the study."""
    return optuna.load_study(study_name=parent.data.tags["unlearn.study"], storage="sqlite:///optuna.db").trials


@pytest.mark.slow
def test_the_winner_is_registered_as_it_was(result):
    """Of the feasible trials within a standard error of the best the gentlest, and its very weights."""
    store, parent = result
    trials = trials_of(store, parent)
    feasible = [run for run in trials if run.data.metrics["feasible"] == 1]
    least = min(feasible, key=lambda run: run.data.metrics["objective"]).data.metrics
    within = least["objective"] + least["mia_advantage_se_val"]
    change = {
        run.info.run_id: trial.user_attrs["weight_change"] for run, trial in zip(trials, stored(parent), strict=True)
    }
    near = [run for run in feasible if run.data.metrics["objective"] <= within]
    best = min(near, key=lambda run: change[run.info.run_id])
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
    evidence = json.loads(mlflow.artifacts.load_text(f"runs:/{parent.info.run_id}/evidence/evidence.json"))
    selection = evidence["provenance"]["selection"]
    assert selection["trial"] == trials.index(best)
    keys = {"study": "study", "trial": "trial", "selection": "rule", "n_trials": "trials"}
    assert {f"unlearn.{tag}": str(selection[key]) for tag, key in keys.items()} == {k: tags[k] for k in SELECTION}


@pytest.mark.slow
def test_what_it_was_chosen_by_stands_beside_the_test_set(result, searched):
    """The winner's own figures on the validation set, in evidence, report, card and terminal."""
    store, parent = result
    best = trials_of(store, parent)[int(parent.data.metrics["best_trial"])].data.metrics
    run_id = parent.info.run_id
    evidence = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/evidence/evidence.json"))
    on_validation = evidence["provenance"]["selection"]["metrics"]
    tested = evidence["metrics"]["unlearned"]["values"]
    for key, name in (("mia_advantage", "mia_advantage_val"), ("rf_jsd", "rf_jsd_val"), ("acc_test", "acc_val")):
        assert on_validation[key] == best[name]
        line = f"{best[name]:.4f} (validation set), {tested[key]:.4f} (test set)"
        assert line in searched[1].out
        assert line in html.unescape(mlflow.artifacts.load_text(f"runs:/{run_id}/evidence/report.html"))
        assert line in html.unescape(mlflow.artifacts.load_text(f"runs:/{run_id}/evidence/model_card.md"))


@pytest.mark.slow
def test_by_default_lotus_and_the_strongest_method_are_searched(store, cli):
    """The published setting of each comes first; the repair's rate is that of the recorded training."""
    space = '{"transpose": {"epochs": 1}}'
    done = cli(*DEFAULT, "--forget", FORGET, "--n-trials", "3", "--space", space, "--register", "none")
    assert done.code in (0, 3), done.err
    trials = trials_of(store, command_runs(store)[0])
    assert [run.data.tags["unlearn.method"] for run in trials][:2] == ["lotus", "transpose"]
    assert float(trials[0].data.params["unlearn.params.alpha"]) == 2.0
    recorded = mlflow.models.get_model_info("models:/clf/1").metadata["mlflow_unlearn"]["recipe"]["lr"]
    assert float(trials[1].data.params["unlearn.params.lr"]) == recorded


@pytest.mark.slow
def test_feasible_is_what_the_constraints_say(result):
    """Loss of accuracy against the original, on the selection splits."""
    store, parent = result
    before = parent.data.metrics
    for run in trials_of(store, parent):
        after = run.data.metrics
        met = (
            before["original.acc_val"] - after["acc_val"] <= 0.01 + 1e-12
            and before["original.acc_retain"] - after["acc_retain"] <= 0.05 + 1e-12
            and after["mia_advantage_val"] <= after["mia_advantage_null_val"] + 1e-12
        )
        assert bool(after["feasible"]) == met


@pytest.mark.slow
def test_the_study_lies_in_a_database_of_its_own(result, searched):
    store, parent = result
    study = optuna.load_study(
        study_name=parent.data.tags["unlearn.study"], storage=f"sqlite:///{store.folder / 'optuna.db'}"
    )
    trials = trials_of(store, parent)
    assert [trial.user_attrs["run_id"] for trial in study.trials] == [run.info.run_id for run in trials]
    assert [trial.value for trial in study.trials] == [run.data.metrics["objective"] for run in trials]
    for run in trials:
        parts = run.data.metrics["rf_jsd_val"], run.data.metrics["mia_advantage_val"]
        assert run.data.metrics["objective"] == pytest.approx(sum(parts))
    assert len(mlflow.artifacts.load_text(f"runs:/{parent.info.run_id}/tune/trials.csv").splitlines()) == 7
    assert {trial.user_attrs["command_run_id"] for trial in study.trials} == {parent.info.run_id}
    assert study.user_attrs["parent_run_id"] == parent.info.run_id
    assert f"study {study.study_name}" in searched[1].out
    assert f"{int(parent.data.metrics['best_trial'])} (best)" in searched[1].out


@pytest.mark.slow
def test_the_study_is_kept_as_artifacts(result):
    store, parent = result
    kept = {artifact.path for artifact in store.client.list_artifacts(parent.info.run_id, "tune")}
    plots = ("optimization_history", "param_importances", "slice", "parallel_coordinate")
    assert {"tune/study.json", "tune/best.yaml", *(f"tune/{plot}.png" for plot in plots)} <= kept
    record = mlflow.artifacts.load_dict(f"runs:/{parent.info.run_id}/tune/study.json")
    trials = trials_of(store, parent)
    assert record["winner"] == parent.data.metrics["best_trial"]
    assert [trial["run_id"] for trial in record["trials"]] == [run.info.run_id for run in trials]
    assert [trial["weights_sha256"] for trial in record["trials"]] == [
        run.data.tags["unlearn.weights_sha256"] for run in trials
    ]
    assert record["rule"] == (
        "the smallest rf_jsd_advantage_val among the trials that meet the constraints, and of those within one "
        "standard error of it the one that changed the weights least; of equal ones the first"
    )
    assert store.tags("2")["unlearn.selection"] == record["rule"]
    assert store.tags("2")["unlearn.study"] == record["study"]
    assert store.tags("2")["unlearn.trial"] == str(record["winner"])
    assert store.tags("2")["unlearn.n_trials"] == "6"


@pytest.mark.slow
def test_the_best_setting_makes_the_same_weights(result, searched, tmp_path):
    """`unlearn` takes the YAML that `tune` leaves, and comes to the registered weights bit by bit."""
    store, parent = result
    best = tmp_path / "best.yaml"
    best.write_text(mlflow.artifacts.load_text(f"runs:/{parent.info.run_id}/tune/best.yaml"))
    with copied(store, tmp_path / "again") as own:
        done = call("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET, "--params", best, "--seed", "2")
        assert done.code == 0, done.err
        assert own.tags("3")["unlearn.weights_sha256"] == own.tags("2")["unlearn.weights_sha256"]
        assert own.tags("3")["unlearn.method"] == "lotus"
        # The run's parameters name the method that was carried out, whoever named it.
        best.write_text("method: scrub\nprefix: none\nepochs: 1\n")
        assert call("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET, "--params", best).code == 0
        assert own.client.get_run(own.tags("4")["unlearn.run_id"]).data.params["unlearn.method"] == "scrub"
        refused = call("unlearn", "--model-uri", "models:/clf/1", "--params", best, "--method", "salun")
        assert refused.code == 2
        assert "--params names method = 'scrub', and --method salun is given: leave out one of them" in refused.err


@pytest.mark.nightly
def test_a_study_goes_on(store, cli):
    """Until there are as many trials as asked for; the winner of the first command is made again, bit by bit."""
    storage = f"sqlite:///{store.folder / 'studies.db'}"
    spec = ("--forget", FORGET, "--study", "ours", "--storage", storage, "--objective", "rf_jsd_val")
    for n_trials in ("2", "4"):
        first = cli(*TUNE, *spec, "--n-trials", n_trials, "--register", "none")
        assert first.code == 0, first.err
    study = optuna.load_study(study_name="ours", storage=storage)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 4, "with the same seed something new"
    best = study.best_trial
    # The most that can be done: it damages the model and cannot win.
    study.enqueue_trial({"alpha": 16.0, "lr": 1e-3, "epochs": 20, "prefix": "none"})
    second = cli(*TUNE, *spec, "--n-trials", "5")
    assert second.code == 0, second.err
    found = optuna.load_study(study_name="ours", storage=storage)
    assert [trial.number for trial in found.trials] == [0, 1, 2, 3, 4]
    assert found.trials[4].value > best.value
    newer, *older = command_runs(store)
    assert [len(trials_of(store, parent)) for parent in (*reversed(older), newer)] == [2, 2, 1]
    assert trials_of(store, newer)[0].info.run_name == "trial 4"
    assert older[0].data.metrics["best_trial"] == newer.data.metrics["best_trial"] == best.number
    assert store.tags("2")["unlearn.weights_sha256"] == best.user_attrs["weights_sha256"]
    assert weights_digest(mlflow.pytorch.load_model("models:/clf/2")) == best.user_attrs["weights_sha256"]
    third = cli(*TUNE, *spec, "--n-trials", "5")
    assert third.code == 0, third.err
    assert f"The best trial is still {best.number}, which is registered as models:/clf/2." in third.out
    assert store.versions() == ["1", "2"]


@pytest.mark.slow
def test_time_is_up(store, cli):
    """What was done by then counts."""
    done = cli(*TUNE, "--forget", FORGET, "--study", "ours", "--n-trials", "100", "--timeout", "1")
    assert done.code == 0, done.err
    found = optuna.load_study(study_name="ours", storage=f"sqlite:///{store.folder / 'optuna.db'}")
    states = [trial.state for trial in found.trials]
    assert len(states) == 100 and 0 < states.count(optuna.trial.TrialState.COMPLETE) < 100
    assert store.versions() == ["1", "2"]


@pytest.mark.nightly
def test_a_front_of_two_objectives(store, cli):
    done = cli(*TUNE, "--forget", FORGET, "--n-trials", "6", "--mode", "pareto", "--sampler", "nsga2")
    assert done.code == 0, done.err
    parent = command_runs(store)[0]
    record = mlflow.artifacts.load_dict(f"runs:/{parent.info.run_id}/tune/study.json")
    runs = trials_of(store, parent)
    assert [trial["values"] for trial in record["trials"]] == [
        [run.data.metrics["objective"], run.data.metrics["acc_val"]] for run in runs
    ]
    assert "front" in done.out and record["rule"].startswith("of the front of rf_jsd_advantage_val and acc_val")
    kept = {artifact.path for artifact in store.client.list_artifacts(parent.info.run_id, "tune")}
    assert {"tune/pareto_front.png", "tune/pareto_front.html"} <= kept
    winner = runs[record["winner"]]
    assert store.tags("2")["unlearn.weights_sha256"] == winner.data.tags["unlearn.weights_sha256"]


@pytest.mark.nightly
def test_several_methods_and_a_pruner(store, cli):
    """Random order, so that bad trials come after good ones; the median pruner ends some."""
    space = '{"lotus": {"epochs": 6, "lr": [1e-4, 0.05]}, "scrub": {"epochs": 6, "lr": [1e-4, 0.05]}}'
    arguments = ("--methods", "lotus,scrub", "--sampler", "random", "--pruner", "median", "--space", space)
    done = cli(*TUNE, "--forget", FORGET, "--n-trials", "16", "--register", "none", *arguments)
    assert done.code == 0, done.err
    parent = command_runs(store)[0]
    runs = trials_of(store, parent)
    assert {run.data.tags["unlearn.method"] for run in runs} == {"lotus", "scrub"}
    assert runs[0].data.tags["unlearn.method"] == "lotus"
    pruned = [run for run in runs if run.data.tags["unlearn.trial_state"] == "pruned"]
    assert pruned and len(pruned) < 16
    for run in pruned:
        history = store.client.get_metric_history(run.info.run_id, "penalised_value")
        assert history[-1].step == run.data.metrics["pruned_after_epochs"] <= 6
        assert run.info.status == "FINISHED" and "rf_jsd_val" not in run.data.metrics
    record = mlflow.artifacts.load_dict(f"runs:/{parent.info.run_id}/tune/study.json")
    states = [trial["state"] for trial in record["trials"]]
    assert states.count("pruned") == len(pruned) and len(states) == 16
    # Trials that break a constraint never look better to the pruner than those that break none.
    last = [
        (t["broken"], list(t["penalised_values"].values())[-1]) for t in record["trials"] if t["state"] == "complete"
    ]
    assert all((value >= 1) == bool(broken) for broken, value in last)


@pytest.mark.nightly
def test_a_pruner_does_not_change_a_trial(store, cli):
    """Looking at a model that learns leaves it as it is: the same weights as without."""
    for pruner in ("none", "hyperband"):
        done = cli(*TUNE, "--forget", FORGET, "--study", pruner, "--n-trials", "1", "--pruner", pruner)
        assert done.code == 0, done.err
    assert store.tags("2")["unlearn.weights_sha256"] == store.tags("3")["unlearn.weights_sha256"]


@pytest.mark.slow
def test_a_grid_ends_with_its_points(store, cli):
    space = '{"alpha": {"choices": [1, 8]}, "lr": {"choices": [1e-4, 1e-3]}, "epochs": 2, "prefix": "none"}'
    done = cli(
        *TUNE, "--forget", FORGET, "--n-trials", "40", "--sampler", "grid", "--space", space, "--register", "none"
    )
    assert done.code == 0, done.err
    params = [run.data.params for run in trials_of(store, command_runs(store)[0])]
    found = [(float(p["unlearn.params.alpha"]), float(p["unlearn.params.lr"])) for p in params]
    # The published alpha is none of the choices; what comes first is one of the points.
    assert sorted(found) == [(1.0, 1e-4), (1.0, 1e-3), (8.0, 1e-4), (8.0, 1e-3)]


@pytest.mark.nightly
def test_by_a_gold_standard(store, cli):
    """Its distance on the validation set is the objective; on the test set the winner alone is measured by it."""
    gold = cli(
        *("train", "--data", DATA, "--name", "gold", "--architecture", "toy:trainable", "--epochs", "20"),
        *("--lr", "0.05", "--batch-size", "32", "--exclude", FORGET),
    )
    assert gold.code == 0, gold.err
    arguments = ("--gold-uri", "models:/gold/1", "--objective", "avg_gap_advantage_val")
    done = cli(*TUNE, "--forget", FORGET, "--n-trials", "3", *arguments)
    assert done.code == 0, done.err
    parent = command_runs(store)[0]
    runs = trials_of(store, parent)
    feasible = [run.data.metrics["avg_gap_advantage_val"] for run in runs if run.data.metrics["feasible"] == 1]
    assert runs[int(parent.data.metrics["best_trial"])].data.metrics["avg_gap_advantage_val"] == min(feasible)
    assert not [key for run in runs for key in run.data.metrics if "test" in key]
    assert {"unlearned.avg_gap_advantage", "gold.acc_test"} <= parent.data.metrics.keys()


@pytest.mark.slow
def test_trials_that_diverge(store, cli):
    """Each is told and kept; where all do, the first reason is the error."""
    before = store.everything_registered()
    space = '{"lr": 10, "beta": 0, "epochs": 20, "prefix": "none"}'
    done = cli(*TUNE, "--forget", FORGET, "--n-trials", "2", "--methods", "neggrad_plus", "--space", space)
    assert done.code == 2, done.err
    assert "Note: trial 1 failed: the loss became " in done.err
    assert "none of 2 trials was completed, 2 failed; the first one: the loss became " in done.err
    parent = command_runs(store)[0]
    assert {run.info.status for run in trials_of(store, parent)} == {"FAILED"}
    record = mlflow.artifacts.load_dict(f"runs:/{parent.info.run_id}/tune/study.json")
    assert [trial["state"] for trial in record["trials"]] == ["fail", "fail"]
    assert store.everything_registered() == before


@pytest.mark.slow
def test_a_model_that_did_not_move_is_no_winner(store, cli):
    """SSD selects no weight: what comes out is the original, which breaks no constraint."""
    before = store.everything_registered()
    space = '{"alpha": 1e6, "lam": 1.0, "prefix": "none"}'
    done = cli(*TUNE, "--forget", FORGET, "--n-trials", "1", "--methods", "ssd", "--space", space)
    assert done.code == 2, done.err
    assert "the first one: nothing was unlearned: ssd left every weight as it was" in done.err
    assert store.everything_registered() == before


def test_ranks_and_workers_do_not_mix(store):
    """Nor a pruner, which would evaluate the model on one rank alone."""
    for name, value in (("workers", 2), ("pruner", "median")):
        with pytest.raises(UnlearnError, match=f"{name}={value} cannot be combined with several processes: use one"):
            tune(config.Tune(model_uri="models:/clf/1", processes=2, **{name: value}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--n-trials", "0"), "--n-trials 0 is not usable"),
        (("--timeout", "-1"), "--timeout -1 is not usable"),
        (("--mode", "pareto", "--pruner", "median"), "--pruner median compares one value, and --mode"),
        (("--mode", "pareto", "--sampler", "gp"), "--sampler gp cannot search for two objectives under constraints"),
        (("--objective", "avg_gap_advantage_val"), "--objective avg_gap_advantage_val needs a gold standard"),
        (("--methods", "lotos"), "unknown method 'lotos'"),
        (("--methods", "lotus,scrub", "--sampler", "grid"), "--sampler grid needs one method"),
        (("--space", '{"alpha": [1, 100]}'), "space: hyperparameter alpha = 100.0 of lotus is not usable"),
        (("--space", '{"alhpa": 3}'), "space: unknown hyperparameter 'alhpa' of lotus"),
        (("--storage", "postgresql://me:secret@127.0.0.1:1/x"), "'postgresql://me:***@127.0.0.1:1/x' cannot be"),
        (("--prefix", "layer9"), "layer9"),
        (("--space", '{"prefix": ["none", "layer9"]}'), "layer9"),
        (("--storage", "sqlite://"), "--storage sqlite:// lives in memory"),
        (("--storage", "postgresql://host:abc/db?user=me&password=secret"), "is not a database URL"),
    ],
)  # fmt: skip
def test_bad_input(store, cli, arguments, sentence):
    before, known = store.everything_registered(), len(store.runs())
    done = cli(*TUNE, "--forget", FORGET, *arguments)
    assert done.code == 2, done.out + done.err
    assert sentence in done.err
    assert "Traceback" not in done.err and "secret" not in done.err + str([run.data for run in store.runs()])
    assert store.everything_registered() == before
    assert {run.info.status for run in store.runs()[: len(store.runs()) - known]} <= {"FAILED"}


@pytest.mark.nightly
def test_a_study_is_about_one_task(store, cli):
    """Trials with another seed or forget set cannot be compared with those that are there."""
    before = store.everything_registered()
    spec = (*TUNE, "--study", "ours", "--n-trials", "1", "--register", "none")
    done = cli(*spec, "--forget", FORGET)
    assert done.code == 0 and "nothing was registered, as asked" in done.out
    [parent] = command_runs(store)
    assert parent.info.status == "FINISHED" and parent.data.metrics["best_trial"] == 0
    for options, different in (
        (("--forget", FORGET, "--seed", "1"), "seed"),
        (
            ("--forget", FORGET, "--objective", "entropy_ks_val"),
            "objective (rf_jsd_advantage_val, here entropy_ks_val)",
        ),
        (("--forget", FORGET, "--space", '{"alpha": [1, 8]}'), "space"),
        (("--forget", "random:10%"), "forget_sha256, pixels_sha256"),
        (("--forget", "random:10%", "--seed", "1"), "forget_sha256, seed, pixels_sha256"),
    ):
        refused = cli(*spec, *options)
        assert refused.code == 2
        assert f"study 'ours' was started with another {different}: continue it with the same" in refused.err
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        refused = cli(*spec, "--forget", FORGET)
    finally:
        torch.set_num_threads(threads)
    assert refused.code == 2
    assert f"study 'ours' was started with another threads ({threads}, here {threads + 1}): continue" in refused.err
    study = optuna.load_study(study_name="ours", storage=f"sqlite:///{store.folder / 'optuna.db'}")
    assert len(study.trials) == 1
    assert store.everything_registered() == before
    assert cli(*spec, "--forget", FORGET).code == 0


@pytest.mark.slow
def test_the_same_seed_searches_the_same(result, tmp_path):
    store, parent = result
    with copied(store, tmp_path / "again") as own:
        assert call(*TUNE, "--forget", FORGET, "--n-trials", "3", "--seed", "2", "--register", "none").code == 0
        params = [run.data.params for run in trials_of(own, command_runs(own)[0])]
    assert params == [run.data.params for run in trials_of(store, parent)[:3]]


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


@pytest.mark.slow
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
    assert "none of 2 complete trials met the constraints" in done.err
    assert "acc_val was broken by 2" in done.err and "came nearest (" in done.err
    assert empty_store.everything_registered() == before
    parent = command_runs(empty_store)[0]
    assert parent.info.status == "FAILED"
    assert "none of 2 complete trials" in parent.data.tags["unlearn.error"]
    assert [run.data.metrics["feasible"] for run in trials_of(empty_store, parent)] == [0.0, 0.0]
