"""`unlearn --until pass`: what it registers, when it registers nothing, and how it goes on after a kill."""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import yaml
from answers import answer
from stores import FORGET

from mlflow_unlearn.evidence.record import read_evidence

# By accuracies that are the same on the validation and on the test set: what passes does not depend on luck.
RULES = [
    {"metric": "acc_forget", "relative_to": "original", "at_most": -0.01},
    {"metric": "acc_retain", "at_least": 0.3},
]
RUNGS = json.dumps(
    [
        {"method": "lotus", "params": {"epochs": 1}},
        {"method": "finetune", "params": {"epochs": 1, "lr": 0.05}},
        {"method": "perturb", "params": {"epochs": 3, "amount": 1.0}},
    ]
)
UNTIL = ("unlearn", "--model-uri", "models:/clf/1", "--until", "pass", "--budget", "2")


@pytest.fixture
def policy(store):
    def written(**changes):
        path = store.folder / "policy.yaml"
        path.write_text(yaml.safe_dump({"name": "ours", "membership": None, "rules": RULES, **changes}))
        return ("--policy", str(path))

    return written


@pytest.fixture
def filed(store, cli):
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    return store


@pytest.mark.slow
def test_the_first_that_passes_is_registered_with_all_attempts(filed, cli, policy):
    lenient = policy()
    done = cli(*UNTIL, *lenient, "--rungs", RUNGS)
    assert done.code == 0, done.err
    version = filed.client.get_model_version("clf", "2")
    evidence, _ = read_evidence(Path(mlflow.artifacts.download_artifacts(version.source)))
    selection = evidence.provenance.selection
    attempts = selection.attempts
    assert selection.by == "until" and version.tags["unlearn.n_attempts"] == str(len(attempts))
    assert [attempt.passed for attempt in attempts] == [False] * (len(attempts) - 1) + [True]
    assert attempts[-1].weights_sha256 == evidence.result.weights_sha256
    assert evidence.provenance.method == attempts[-1].method
    # Each is a run inside the command's, and what was chosen by stands beside the figure on the test set.
    for attempt in attempts:
        run = filed.client.get_run(attempt.run_id)
        assert run.data.tags["mlflow.parentRunId"] == version.run_id and run.info.status == "FINISHED"
        assert run.data.metrics["validation.mia_advantage"] == attempt.metrics["mia_advantage"]
    assert {"mia_advantage", "acc_test"} <= evidence.metrics["unlearned"].values.keys()
    assert f"Attempt {len(attempts)}: " in done.out
    # By its own policy it passes a review, and the requests are done: nothing is left for the same command.
    assert cli("review", "--model-uri", "models:/clf/2", *lenient).code == 0
    again = cli(*UNTIL, *lenient, "--rungs", RUNGS)
    assert again.code == 2 and "models:/clf/2 has fulfilled them" in again.err and filed.versions() == ["1", "2"]


@pytest.mark.nightly
def test_a_request_that_a_weaker_version_fulfilled_is_taken_up_again(filed, cli, policy):
    weaker = cli("unlearn", "--model-uri", "models:/clf/1", "--params", '{"epochs": 1}')
    # What is left of the forget set is said, with the command that goes on.
    assert weaker.code == 0 and f"Next: mlflow-unlearn {' '.join(UNTIL[:5])}  # stronger" in weaker.err
    done = cli(*UNTIL, *policy(rules=RULES[1:]), "--rungs", "finetune")
    assert done.code == 0, done.err
    assert "it is carried out again here" in " ".join(done.err.split()) and filed.versions() == ["1", "2", "3"]


@pytest.mark.nightly
def test_a_weaker_version_that_was_deleted_is_in_no_ones_way(filed, cli, policy):
    assert cli("unlearn", "--model-uri", "models:/clf/1", "--params", '{"epochs": 1}').code == 0
    filed.client.delete_model_version("clf", "2")
    done = cli(*UNTIL, *policy(rules=RULES[1:]), "--rungs", "finetune")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_what_passes_on_the_validation_set_alone_is_not_registered(filed, cli, policy):
    before, models = filed.everything_registered(), filed.client.search_logged_models(["1"])
    refused = cli(*UNTIL, *policy(minimum={"test": 100_000}), "--rungs", RUNGS)
    assert refused.code == 3 and "does not on the test set: samples, test set is" in refused.err
    assert ": passed" in refused.out and filed.everything_registered() == before
    assert len(filed.client.search_logged_models(["1"])) == len(models)


@pytest.mark.slow
def test_a_rung_that_fails_is_recorded_and_the_next_one_tried(filed, cli, policy):
    rungs = json.dumps([{"method": "retrain_from", "params": {"split": "nowhere"}}, "finetune"])
    done = cli(*UNTIL, *policy(rules=RULES[1:]), "--rungs", rungs)
    assert done.code == 0, done.err
    evidence, _ = read_evidence(Path(mlflow.artifacts.download_artifacts("models:/clf/2")))
    failed, passed = evidence.provenance.selection.attempts
    assert "nowhere" in failed.outcome and not failed.passed and passed.passed
    assert filed.client.get_run(failed.run_id).info.status == "FAILED"


@pytest.mark.slow
def test_nothing_passes(filed, cli, policy):
    impossible = policy(rules=[{"metric": "acc_test", "relative_to": "original", "at_least": 0.9}])
    before = filed.everything_registered()
    refused = cli(*UNTIL, *impossible, "--rungs", RUNGS, "--budget", "1")
    assert refused.code == 3, refused.err
    assert "none of 3 attempts passed the policy 'ours'" in refused.err and "the nearest was" in refused.err
    assert filed.everything_registered() == before
    # The same command knows what it has tried.
    again = cli(*UNTIL, *impossible, "--rungs", RUNGS, "--budget", "1")
    assert again.code == 3 and again.err.count("Note: tried before") == 3


@pytest.mark.slow
def test_the_budget_counts_what_was_trained_on(filed, cli, policy):
    impossible = policy(rules=[{"metric": "acc_test", "relative_to": "original", "at_least": 0.9}])
    refused = cli(*UNTIL, *impossible, "--rungs", "finetune,finetune,lotus", "--budget", "0.1")
    assert refused.code == 3 and "the one attempt did not pass the policy" in refused.err


@pytest.mark.slow
def test_too_few_samples_are_said_before_anything_is_trained(store, cli):
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", "random:12").code == 0
    refused = cli(*UNTIL)
    assert refused.code == 3 and "12 forgotten samples are too few to be judged" in refused.err
    assert "Attempt" not in refused.out and store.versions() == ["1"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--until", "pass", "--budget", "0"), "budget"),
        (("--until", "pass", "--budget", "11"), "budget"),
        (("--until", "pass", "--method", "scrub"), "--method scrub and --until pass contradict"),
        (("--until", "pass", "--prefix", "auto"), "--prefix auto and --until pass contradict"),
        (("--until", "pass", "--rungs", "lotos"), "unknown method 'lotos'"),
        (("--until", "pass", "--policy", "missing.yaml"), "cannot be read"),
        (("--budget", "1"), "--budget 1 has no effect without --until pass"),
        (("--rungs", "lotus"), "--rungs lotus has no effect without --until pass: add that, or leave it out"),
        (("--claim", "exact"), "--claim exact has no effect without --plan: add that, or leave it out"),
        (("--claim", "hidden", "--plan", "true"), "claim"),
        (("--until", "pas"), "until"),
    ],
)
def test_options_that_do_not_go_together(store, cli, arguments, sentence):
    refused = cli("unlearn", "--model-uri", "models:/clf/1", *arguments)
    assert refused.code == 2 and sentence in refused.err and "Traceback" not in refused.err
    assert store.versions() == ["1"]


def test_a_policy_that_needs_what_the_validation_set_cannot_give(filed, cli, policy):
    needs_gold = policy(rules=[{"metric": "jsd", "at_most": 0.1}])
    refused = cli(*UNTIL, *needs_gold)
    assert refused.code == 2 and "cannot be judged on the validation set: jsd" in refused.err


@pytest.mark.slow
def test_the_plan_compares_the_ways_and_its_recommendation_runs(filed, cli):
    planned = cli(*UNTIL, "--plan", "true", "--claim", "exact")
    assert planned.code == 0 and "of retraining" in planned.out and "until pass" in planned.out
    assert "Recommended for --claim exact: retraining, recorded recipe" in planned.out and filed.versions() == ["1"]
    command = next(line for line in planned.out.splitlines() if line.startswith("  mlflow-unlearn "))
    done = cli(*shlex.split(command)[1:])
    assert done.code == 0, done.err
    assert filed.tags("2")["unlearn.method"] == "retrain"


@pytest.mark.slow
def test_the_fast_recipe_of_the_plan_runs(filed, cli):
    planned = answer("unlearn", "--model-uri", "models:/clf/1", "--plan", "true")["result"]
    ways = {way["kind"]: way for way in planned["ways"]}
    # What is cheapest is measured, and differs from machine to machine.
    assert planned["recommended"] in ("until_pass", "fast_retraining")
    fast = ways["fast_retraining"]
    assert fast["claim"] == "unseen" and fast["of_retraining"] == pytest.approx(7 / 20)
    done = cli(*shlex.split(fast["command"])[1:])
    assert done.code == 0, done.err
    evidence, _ = read_evidence(Path(mlflow.artifacts.download_artifacts("models:/clf/2")))
    assert (evidence.provenance.method, evidence.provenance.params["epochs"]) == ("retrain", 7)


@pytest.mark.nightly
def test_killed_on_the_way_it_comes_to_the_same_weights(filed, cli, policy, tmp_path, monkeypatch):
    # A last rung that is long enough to be killed in, however fast the machine is.
    rungs = json.loads(RUNGS)
    rungs[-1]["params"]["epochs"] = 30
    arguments = (*UNTIL, *policy(), "--rungs", json.dumps(rungs), "--seed", "5")
    command = [sys.executable, "-m", "mlflow_unlearn", *arguments]
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "cache"))
    # The first one dies after an attempt that is noted, the second one while it trains the last rung.
    for told in ("Attempt 1", "Note: tried before: lotus"):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert any(line.startswith(told) for line in process.stdout)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert filed.versions() == ["1"]
    done = cli(*arguments)
    assert done.code == 0, done.err
    assert "tried before: lotus" in done.err
    killed = filed.tags("2")["unlearn.weights_sha256"]
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", "off")
    [request_id] = filed.requests()
    whole = cli(*arguments, "--forget", f"request:{request_id}")
    assert whole.code == 0, whole.err
    assert filed.tags("3")["unlearn.weights_sha256"] == killed
