"""`compare`: one nested run per method and seed, the table, and reusing what was finished before."""

import json
import signal
import subprocess
import sys
import time

import mlflow
import pytest
import toy
from answers import checked
from stores import call, copied, reset_mlflow, use

METHODS = ["lotus", "finetune", "neggrad_plus", "ssd"]
PARAMS = json.dumps({"finetune": {"epochs": 2}, "neggrad_plus": {"epochs": 2}, "ssd": {"alpha": 1.0}})
FORGET = "random:12%"
"""So few that chance reaches as far as the model tells them apart: else no method would be registered."""
COMPARE = (
    *("compare", "--model-uri", "models:/clf/1", "--methods", ",".join(METHODS), "--seeds", "2"),
    *("--forget", FORGET, "--params", PARAMS),
)


def nested(store, parent):
    runs = [run for run in store.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return sorted(runs, key=lambda run: run.info.start_time)


def parents(store):
    """The newest first."""
    return [run for run in store.runs() if run.data.tags.get("unlearn.command") == "compare"]


def table(run) -> list[dict]:
    return mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/compare/table.json")


def without_times(rows: list[dict]) -> list[dict]:
    return [
        {key: value for key, value in row.items() if not key.startswith("seconds_") and key != "seconds"}
        for row in rows
    ]


@pytest.fixture(scope="module")
def compared(template, tmp_path_factory):
    """Four methods, two seeds, once."""
    with copied(template, tmp_path_factory.mktemp("compare")) as store:
        done = call(*COMPARE)
        assert done.code == 0, done.err
        return store, done


@pytest.fixture
def result(compared, monkeypatch):
    use(compared[0], monkeypatch)
    yield compared[0], parents(compared[0])[-1], compared[1]
    reset_mlflow()


@pytest.mark.slow
def test_one_nested_run_a_method_and_seed(result):
    store, parent, _ = result
    runs = nested(store, parent)
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(run.info.run_name for run in runs) == sorted(
        [f"retrain, seed {seed}" for seed in (1000, 1001)] + [f"{m}, seed {s}" for m in METHODS for s in (0, 1)]
    )
    assert store.versions() == ["1"]
    assert not store.requests()


@pytest.mark.slow
def test_the_table(result):
    """Its figures are those of the nested runs, and the reference rows are there."""
    store, parent, done = result
    rows = {row["method"]: row for row in table(parent)}
    assert list(rows) == ["original", "retrain", "floor", *METHODS]
    for method in METHODS:
        values = [
            run.data.metrics["mia_advantage"]
            for run in nested(store, parent)
            if run.data.tags["unlearn.method"] == method
        ]
        assert rows[method]["mia_advantage"] == pytest.approx(sum(values) / 2)
        assert rows[method]["mia_advantage_sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        assert rows[method]["seconds_relative"] == pytest.approx(rows[method]["seconds"] / rows["retrain"]["seconds"])
    assert rows["retrain"]["avg_gap"] == rows["retrain"]["avg_gap_advantage"] == rows["retrain"]["jsd"] == 0
    assert rows["floor"]["jsd"] > 0 < rows["floor"]["avg_gap_advantage"]
    assert rows["floor"]["seeds"] == 1 and rows["floor"]["jsd_sd"] is None, "two golds have but one distance"
    assert rows["original"]["seconds"] is None
    text = mlflow.artifacts.load_text(f"runs:/{parent.info.run_id}/compare/table.md")
    assert text.startswith("| method | avg_gap_advantage | avg_gap_excess | avg_gap | acc_forget | acc_retain |")
    lines = mlflow.artifacts.load_text(f"runs:/{parent.info.run_id}/compare/table.csv").splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[0].split(",")[:4] == ["method", "seeds", "avg_gap_advantage", "avg_gap_advantage_sd"]
    names = {file.path for file in store.client.list_artifacts(parent.info.run_id, "compare")}
    assert names == {f"compare/{name}" for name in ("table.md", "table.csv", "table.json", "figure.png")}
    for method in METHODS:
        assert method in done.out
    assert "nothing was registered" in done.out
    assert -1 <= parent.data.metrics["pearson_rf_jsd_jsd"] <= 1
    assert f"{parent.data.metrics['pearson_rf_jsd_jsd']:.4f}" in text


@pytest.mark.slow
def test_deterministic_methods_have_no_spread(result):
    """SSD is deterministic: two seeds, one set of weights; only the gold it is measured against differs."""
    store, parent, _ = result
    digests = {
        method: {
            run.data.tags["unlearn.weights_sha256"]
            for run in nested(store, parent)
            if run.data.tags["unlearn.method"] == method
        }
        for method in ("ssd", "lotus")
    }
    assert len(digests["ssd"]) == 1
    assert len(digests["lotus"]) == 2
    ssd = [run for run in nested(store, parent) if run.data.tags["unlearn.method"] == "ssd"]
    assert len({run.data.metrics["unlearn_seconds"] for run in ssd}) == 1, "it ran once for both seeds"


@pytest.mark.slow
def test_the_epochs_are_in_each_nested_run(result):
    store, parent, _ = result
    lotus = [run for run in nested(store, parent) if run.data.tags["unlearn.method"] == "lotus"]
    for run in lotus:
        steps = [metric.step for metric in store.client.get_metric_history(run.info.run_id, "temperature")]
        assert steps == list(range(len(steps))) and steps


@pytest.mark.slow
def test_gold_models_differ_from_each_other_and_from_the_original(result):
    store, parent, _ = result
    rows = {row["method"]: row for row in table(parent)}
    assert rows["floor"]["jsd"] > 1e-4
    assert rows["original"]["jsd"] > rows["floor"]["jsd"]


@pytest.mark.slow
def test_done_again_it_runs_nothing(result):
    store, parent, _ = result
    done = call(*COMPARE)
    assert done.code == 0
    again = parents(store)[0]
    assert again.info.run_id != parent.info.run_id
    assert nested(store, again) == []
    assert table(again) == table(parent)


@pytest.mark.slow
def test_another_setting_runs_again(result):
    """Only the method whose setting is another one."""
    store, _, _ = result
    params = json.loads(PARAMS) | {"finetune": {"epochs": 3}}
    done = call(*COMPARE[:-1], json.dumps(params))
    assert done.code == 0, done.err
    assert {run.data.tags["unlearn.method"] for run in nested(store, parents(store)[0])} == {"finetune"}


@pytest.mark.nightly
def test_killed_half_way_and_started_again(compared, template, tmp_path):
    """SIGKILL: the next one closes what was left RUNNING, runs what is missing, and has the undisturbed table."""
    undisturbed = table_of_first(compared)
    with copied(template, tmp_path / "store") as store:
        process = subprocess.Popen([sys.executable, "-m", "mlflow_unlearn", *COMPARE], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 240
            while time.monotonic() < deadline:
                found = parents(store)
                if found and sum(run.info.status == "FINISHED" for run in nested(store, found[0])) >= 4:
                    break
                if process.poll() is not None:
                    pytest.fail("it was over before it could be killed")
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        dead = parents(store)[0]
        finished = {run.info.run_name for run in nested(store, dead) if run.info.status == "FINISHED"}
        assert dead.info.status == "RUNNING"
        assert 4 <= len(finished) < 10
        done = call(*COMPARE)
        assert done.code == 0, done.err
        assert f"run {dead.info.run_id} had died and is closed as KILLED" in done.err
        assert store.client.get_run(dead.info.run_id).info.status == "KILLED"
        assert {run.info.status for run in nested(store, dead)} <= {"FINISHED", "KILLED"}
        resumed = parents(store)[0]
        assert not finished & {run.info.run_name for run in nested(store, resumed)}
        assert without_times(table(resumed)) == without_times(undisturbed)


def table_of_first(compared) -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        use(compared[0], patch)
        rows = table(parents(compared[0])[-1])
    reset_mlflow()
    return rows


@pytest.mark.nightly
def test_two_at_once(store, cli):
    """The second one is refused while the first one lives, and not after its death."""
    process = subprocess.Popen([sys.executable, "-m", "mlflow_unlearn", *COMPARE], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not any(nested(store, run) for run in parents(store)):  # it has its lock, and trains
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)  # alive, and no faster than we are
        while not store.writable():
            process.send_signal(signal.SIGCONT)
            time.sleep(0.01)
            process.send_signal(signal.SIGSTOP)
        done = cli(*COMPARE)
    finally:
        process.kill()
        process.wait()
    assert done.code == 2
    assert "another compare is running in experiment" in done.err
    statuses = [run.info.status for run in parents(store)]
    assert statuses == ["FAILED", "RUNNING"]
    assert cli("compare", "--model-uri", "models:/clf/1", "--seeds", "0").code == 2
    assert [run.info.status for run in parents(store)] == ["FAILED", "KILLED"], "bad input makes none"


@pytest.mark.slow
def test_the_best_is_registered_by_the_stated_rule(result, tmp_path):
    """Selected on the validation set, from runs that are finished; the table's figures come from the test set."""
    store, parent, _ = result
    runs = [run for run in nested(store, parent) if run.data.tags["unlearn.method"] != "retrain"]
    with copied(store, tmp_path / "store") as own:
        done = call(*COMPARE, "--register", "best")
        assert done.code == 0, f"choose params with which a method meets the constraints: {done.err}"
        tags = own.tags("2")
        assert f"The best is {tags['unlearn.method']} with seed" in done.out
        same = [run for run in runs if run.data.tags["unlearn.method"] == tags["unlearn.method"]]
        best = min(same, key=lambda run: run.data.metrics["avg_gap_advantage_val"])
        assert tags["unlearn.weights_sha256"] == best.data.tags["unlearn.weights_sha256"]
        assert [state for state, _ in own.requests().values()] == ["done"]
        assert "gold.acc_test" in parents(own)[0].data.metrics


@pytest.mark.nightly
def test_audits_rank_the_methods(result, tmp_path):
    """The golds of the comparison calibrate the attacks; what was measured without them is measured again."""
    store, _, _ = result
    with copied(store, tmp_path / "store") as own:
        refused = call(*COMPARE, "--by", "audit", "--register", "best")
        assert refused.code == 2 and "--by audit ranks by attacks on the test set" in refused.err
        done = call(*COMPARE, "--by", "audit")
        assert done.code == 0, done.err
        parent = parents(own)[0]
        assert {run.data.tags["unlearn.method"] for run in nested(own, parent)} == set(METHODS), "golds are reused"
        rows = {row["method"]: row for row in table(parent)}
        assert rows["original"]["share_remembered"] == 1
        gaps = [rows[method]["audit_gap"] for method in list(rows)[3:]]
        assert gaps == sorted(gaps) and set(list(rows)[3:]) == set(METHODS)
        assert all("audit_gap" in run.data.metrics for run in nested(own, parent))
        assert call(*COMPARE, "--by", "audit").code == 0
        assert nested(own, parents(own)[0]) == [], "the same again is reused"


@pytest.mark.slow
def test_the_best_is_recommended_or_none_is(store, cli):
    """By the rule of `--register best`, whichever that is on this machine."""
    given = ("compare", "--model-uri", "models:/clf/1", "--methods", "finetune,scrub", "--seeds", "1", "--hash-ids")
    given += ("--forget", "random:20%", "--params", '{"scrub": {"epochs": 1}}')
    shown, answered = cli(*given), cli(*given, "--format", "json")
    assert shown.code == answered.code == 0, shown.err
    result = json.loads(answered.out)["result"]
    said = " ".join(shown.out.split())
    if result["best"] is None:
        assert "None is recommended" in said and "Next:" not in shown.err
    else:
        assert f"The best on the validation set is {result['best']}, by avg_gap_advantage_val" in said
        following = shown.err.splitlines()[-1]
        assert following.startswith("Next: mlflow-unlearn unlearn --model-uri models:/clf/1 --forget random:20%")
        assert f"--method {result['best']}" in following and "--hash-ids true" in following
        assert ('"epochs": 1' in following) == (result["best"] == "scrub") == (result["best_params"] == {"epochs": 1})
    by_audit = json.loads(cli(*given, "--by", "audit", "--format", "json").out)["result"]
    assert by_audit["best"] is None, "audits take the test set for unseen"


def test_what_did_not_move_is_not_registered(store, cli):
    """An unmoved model meets every constraint, and has unlearned nothing all the same."""
    done = cli(
        *("compare", "--model-uri", "models:/clf/1", "--forget", "random:20%", "--methods", "ssd", "--seeds", "1"),
        *("--register", "best"),
    )
    assert done.code == 3
    assert "no method moved the weights" in done.err
    assert store.versions() == ["1"] and not store.requests()
    [parent] = parents(store)
    assert parent.info.status == "FAILED"
    assert table(parent)[-1]["warnings"][-1] == "left every weight as it was"


@pytest.mark.nightly
def test_another_order_of_classes_runs_again(store, cli):
    """It decides every label, though data, splits and weights are the same."""
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            toy.original(), name="model", registered_model_name="theirs", serialization_format="pickle"
        )
    compare = (
        *("compare", "--model-uri", "models:/theirs/1", "--data", "digits,train=15%,split=drawn"),
        *("--transform", "none"),
        *("--force", "true", "--forget", "random:20", "--methods", "finetune", "--seeds", "1"),
        *("--params", '{"finetune": {"epochs": 1}, "retrain": {"epochs": 20, "batch_size": 32}}'),
    )
    right, swapped = "0,1,2,3,4,5,6,7,8,9", "0,1,2,3,4,5,6,7,9,8"
    accuracies = []
    for classes in (right, swapped):
        done = cli(*compare, "--classes", classes)
        assert done.code == 0, done.err
        assert len(nested(store, parents(store)[0])) == 3
        accuracies.append(table(parents(store)[0])[-1]["acc_retain"])
    assert accuracies[0] > accuracies[1] + 0.05
    assert cli(*compare, "--classes", swapped).code == 0
    assert nested(store, parents(store)[0]) == [], "the same again is reused"


@pytest.fixture(scope="module")
def theirs(blank, tmp_path_factory):
    """A good model whose registration says nothing of its training."""
    with copied(blank, tmp_path_factory.mktemp("theirs")) as store:
        with mlflow.start_run():
            mlflow.pytorch.log_model(
                toy.original(), name="model", registered_model_name="theirs", serialization_format="pickle"
            )
    return store


THEIRS = (
    *("compare", "--model-uri", "models:/theirs/1", "--data", "digits,train=15%,split=drawn", "--transform", "none"),
    *("--force", "true", "--forget", "random:20", "--methods", "finetune", "--seeds", "1"),
)
WEAK = json.dumps({"finetune": {"epochs": 1}, "retrain": {"epochs": 1, "lr": 0.01}})
STRONG = json.dumps({"finetune": {"epochs": 1}, "retrain": {"epochs": 40, "batch_size": 32}})


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(("--by", "audit"), marks=pytest.mark.slow),
        pytest.param(("--register", "best"), marks=pytest.mark.slow),
    ],
)
def test_nothing_is_ranked_by_a_gold_that_is_useless(theirs, tmp_path, more):
    with copied(theirs, tmp_path / "store") as store:
        answered = checked(call(*THEIRS, "--params", WEAK, *more, "--format", "json"), "compare", code=3)
        result = answered["result"]
        assert answered["error"]["kind"] == "refused" and answered["error"]["message"].startswith(result["unranked"])
        rows = {row["method"]: row for row in result["rows"]}
        accuracies = [rows[name]["columns"]["acc_retain"]["mean"] for name in ("retrain", "original")]
        assert (
            "acc_retain is {:.4f}, more than 0.05 below the original's {:.4f}".format(*accuracies) in result["unranked"]
        )
        assert """--params '{"retrain": {"epochs": 3}}'""" in result["unranked"] and "--gold-uri" in result["unranked"]
        assert result["correlation"] is None and result["registered"] is None and store.versions("theirs") == ["1"]
        assert list(rows) == ["original", "retrain", "floor", "finetune"]
        for row in rows.values():
            assert all(row["columns"][name] is None for name in ("avg_gap_advantage", "avg_gap", "jsd")), row
            assert row["columns"]["acc_test"] is not None
        [taken] = rows["retrain"]["warnings"]
        assert (
            "theirs/1 does not record how it was trained; retraining takes the defaults of `retrain` but for" in taken
        )
        [parent] = parents(store)
        assert parent.info.status == "FAILED" and parent.data.tags["unlearn.error"].startswith(result["unranked"])
        text = mlflow.artifacts.load_text(f"runs:/{parent.info.run_id}/compare/table.md")
        assert result["unranked"] in text and "decides" not in text and "avg_gap" not in text.splitlines()[0]
        assert "compare/figure.png" not in {f.path for f in store.client.list_artifacts(parent.info.run_id, "compare")}


@pytest.mark.nightly
def test_a_gold_that_was_trained_well_ranks(theirs, tmp_path):
    """What the sentence recommends leads out, by more epochs and by a model that is given."""
    with copied(theirs, tmp_path / "store") as store:
        done = call(*THEIRS, "--params", STRONG)
        assert done.code == 0, done.err
        rows = {row["method"]: row for row in table(parents(store)[0])}
        assert rows["finetune"]["avg_gap_advantage"] is not None and "no method is ranked" not in done.err.lower()
        assert rows["retrain"]["warnings"] and "does not record how it was trained" in done.err
        train = ("train", "--data", "digits,train=15%,split=drawn", "--architecture", "toy:trainable", "--exclude")
        good = call(*train, "random:20", "--name", "good", "--epochs", "40", "--batch-size", "32")
        weak = call(*train, "random:20", "--name", "weak", "--epochs", "1", "--lr", "0.01")
        assert good.code == weak.code == 0, good.err + weak.err
        assert call(*THEIRS, "--params", WEAK, "--gold-uri", "models:/good/1").code == 0
        rows = {row["method"]: row for row in table(parents(store)[0])}
        assert rows["floor"]["warnings"] and not rows["retrain"]["warnings"]
        refused = call(*THEIRS, "--params", WEAK, "--gold-uri", "models:/weak/1")
        assert refused.code == 3 and "give another model with --gold-uri, or leave it out" in refused.err


@pytest.mark.slow
def test_a_weak_gold_of_a_recorded_recipe_is_named(store, cli):
    """The recipe was changed by the command itself: the row says what it has led to."""
    params = json.dumps({"finetune": {"epochs": 1}, "retrain": {"epochs": 1}})
    done = cli(*COMPARE[:3], "--methods", "finetune", "--seeds", "1", "--forget", FORGET, "--params", params)
    assert done.code == 0, done.err
    rows = {row["method"]: row for row in table(parents(store)[0])}
    assert rows["finetune"]["avg_gap_advantage"] is not None
    assert "more than 0.05 below the original's" in rows["retrain"]["warnings"][0]


@pytest.mark.slow
def test_a_source_that_was_deleted(store, cli):
    """After a request is fulfilled its version may be deleted; its record of the training goes with it."""
    assert cli("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    store.client.delete_model_version("clf", "1")
    done = cli(
        *("compare", "--model-uri", "models:/clf/2", "--forget", "random:10", "--methods", "finetune", "--seeds", "1"),
        *("--params", '{"finetune": {"epochs": 1}, "retrain": {"epochs": 20, "batch_size": 32}}'),
    )
    assert done.code == 0, done.err
    assert "models:/clf/1, from which models:/clf/2 was made, cannot be opened" in done.err
    assert "retraining takes the defaults" in done.err


@pytest.mark.slow
def test_a_gold_differs_from_an_original_with_its_seed(empty_store, cli):
    train = ("train", "--data", "digits,train=15%", "--name", "clf", "--architecture", "toy:trainable", "--epochs", "5")
    assert cli(*train, "--seed", "1000").code == 0
    done = cli(
        *("compare", "--model-uri", "models:/clf/1", "--forget", "random:30", "--methods", "finetune", "--seeds", "1"),
        *("--params", '{"finetune": {"epochs": 1}}', "--force", "true"),
    )
    assert done.code == 0, done.err
    names = [run.info.run_name for run in nested(empty_store, parents(empty_store)[0])]
    assert names == ["retrain, seed 2000", "retrain, seed 2001", "finetune, seed 0"]


def test_a_run_with_another_lock_stays_as_it_is(store, cli):
    """A RUNNING comparison whose lock is not ours may well be alive: another machine's, or another TMPDIR's."""
    tags = {"unlearn.command": "compare", "unlearn.lock": "elsewhere:/tmp/other.lock"}
    experiment = store.client.get_experiment_by_name("tests").experiment_id
    alive = store.client.create_run(experiment, tags=tags).info.run_id
    assert cli("compare", "--model-uri", "models:/clf/1", "--seeds", "0").code == 2
    assert store.client.get_run(alive).info.status == "RUNNING"


@pytest.mark.slow
def test_a_given_gold_is_not_retrained(store, cli):
    trained = cli(
        *("train", "--data", "digits,train=15%", "--name", "gold", "--architecture", "toy:trainable", "--seed", "3"),
        *("--epochs", "5", "--lr", "0.05", "--batch-size", "32", "--exclude", FORGET),
    )
    assert trained.code == 0, trained.err
    done = cli(
        *("compare", "--model-uri", "models:/clf/1", "--methods", "finetune", "--seeds", "1", "--forget", FORGET),
        *("--gold-uri", "models:/gold/1", "--params", '{"finetune": {"epochs": 1}}'),
    )
    assert done.code == 0, done.err
    [parent] = parents(store)
    assert [run.info.run_name for run in nested(store, parent)] == ["retrain, seed 1000", "finetune, seed 0"]
    rows = {row["method"]: row for row in table(parent)}
    assert rows["retrain"]["jsd"] == 0 < rows["floor"]["jsd"]
    assert rows["retrain"]["seconds"] is None
    assert rows["finetune"]["seconds_relative"] > 0


@pytest.mark.slow
def test_a_method_that_fails_is_a_row(store, cli):
    done = cli(
        *("compare", "--model-uri", "models:/clf/1", "--methods", "finetune,scrub", "--seeds", "1", "--forget", FORGET),
        *("--params", '{"finetune": {"lr": 10, "momentum": 0.99, "epochs": 200}, "scrub": {"epochs": 1}}'),
    )
    assert done.code == 0, done.err
    [parent] = parents(store)
    statuses = {run.data.tags["unlearn.method"]: run.info.status for run in nested(store, parent)}
    assert statuses == {"retrain": "FINISHED", "finetune": "FAILED", "scrub": "FINISHED"}
    row = next(row for row in table(parent) if row["method"] == "finetune")
    assert row["avg_gap"] is None
    assert row["warnings"] == ["failed with 1 of 1 seeds"]
    assert "finetune with seed 0 failed: the loss became" in done.err


TUNED = (
    *("compare", "--model-uri", "models:/clf/1", "--methods", "neggrad_plus,ssd", "--seeds", "1", "--forget", FORGET),
    *("--params", '{"neggrad_plus": {"epochs": 2}, "ssd": {"alpha": 1000}, "retrain": {"epochs": 3}}', "--tuned", "3"),
)


@pytest.mark.slow
def test_tuned_rows(store, cli):
    """Beside the defaults, by the rule of `tune` from figures of the validation set; SSD has none, and says why."""
    done = cli(*TUNED, "--register", "best")
    assert done.code == 0, done.err
    [parent] = parents(store)
    rows = {row["method"]: row for row in table(parent)}
    assert list(rows)[3:] == ["neggrad_plus", "neggrad_plus, tuned", "ssd"]
    [reason] = [sentence for sentence in rows["ssd"]["warnings"] if sentence.startswith("not tuned: ")]
    assert "3 failed" in reason and reason in " ".join(done.out.split())
    runs = {run.info.run_name: run for run in nested(store, parent)}
    trials = [run for name, run in sorted(runs.items()) if name.startswith("neggrad_plus, trial")]
    values = [run.data.metrics["rf_jsd_val"] + run.data.metrics["mia_advantage_val"] for run in trials]
    feasible = [
        number
        for number, run in enumerate(trials)
        if run.data.metrics["mia_advantage_val"] <= run.data.metrics["mia_advantage_null_val"]
        and run.data.metrics["acc_val"] >= rows["original"]["acc_val"] - 0.01
        and run.data.metrics["acc_retain"] >= rows["original"]["acc_retain"] - 0.05
    ]
    best = min(feasible, key=lambda number: values[number])
    near = [n for n in feasible if values[n] <= values[best] + trials[best].data.metrics["mia_advantage_se_val"]]
    chosen = next(n for n in range(3) if rows["neggrad_plus, tuned"]["warnings"][0].startswith(f"trial {n} of 3, "))
    assert chosen in near
    params = mlflow.artifacts.load_dict(f"runs:/{parent.info.run_id}/compare/tuned.json")
    assert list(params) == ["neggrad_plus"]
    own = trials[chosen].data.params
    assert float(own["unlearn.params.beta"]) == params["neggrad_plus"]["beta"]
    assert "The best is neggrad_plus" in done.out and store.versions() == ["1", "2"]


@pytest.mark.nightly
def test_tuning_resumes(store, cli):
    """What a killed one has not done is done, with the same rows at the end; what was chosen can be given as params."""
    first = cli(*TUNED)
    assert first.code == 0, first.err
    undisturbed = parents(store)[0]
    runs = nested(store, undisturbed)
    at = next(number for number, run in enumerate(runs) if run.info.run_name == "neggrad_plus, trial 1")
    for run in runs[at:]:  # as if it had been killed before that trial
        store.client.delete_run(run.info.run_id)
    assert cli(*TUNED).code == 0
    again = parents(store)[0]
    assert [run.info.run_name for run in nested(store, again)] == [run.info.run_name for run in runs[at:]]
    assert without_times(table(again)) == without_times(table(undisturbed))
    params = mlflow.artifacts.load_dict(f"runs:/{again.info.run_id}/compare/tuned.json") | {"retrain": {"epochs": 3}}
    done = cli(*TUNED[:3], "--methods", "neggrad_plus", *TUNED[5:9], "--params", json.dumps(params))
    assert done.code == 0, done.err
    assert nested(store, parents(store)[0]) == []
    [_, _, _, given] = table(parents(store)[0])
    [tuned] = [row for row in table(again) if row["method"] == "neggrad_plus, tuned"]
    assert given["jsd"] == tuned["jsd"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--seeds", "0"), "--seeds 0 is not usable: give a number"),
        (("--methods", "lotus,skrub"), "unknown method 'skrub': known methods, nearest first, are scrub"),
        (("--methods", ""), "names no method to compare"),
        (("--params", '{"scrub": {"alhpa": 1}}'), "did you mean 'alpha'?"),
        (("--params", '{"alpha": 1}'), "params names 'alpha', which is not compared: its keys are methods"),
        (("--params", '{"scrub": 1}'), "params of scrub are 1: give names with values"),
        (("--params", '{"scrub": '), "line 1 column 11"),
    ],
)
def test_bad_input(arguments, sentence, store, cli):
    before = store.everything_registered()
    done = cli("compare", "--model-uri", "models:/clf/1", "--forget", FORGET, *arguments)
    assert done.code == 2
    assert sentence in done.err.replace("\n", " ")
    assert store.everything_registered() == before
    assert parents(store) == []
