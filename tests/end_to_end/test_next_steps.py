"""What to do next: each command ends with the one that follows it, and that runs as it is printed."""

import json
import shlex

import mlflow
import pytest
from chains import LENIENT, QUICK
from stores import DATA, Outcome, call

from mlflow_unlearn.commands.compare import CompareResult
from mlflow_unlearn.config import Compare

CLF = ("--model-uri", "models:/clf/1")


def following(done: Outcome) -> list[str]:
    """The arguments of the command that is shown, as a shell would read them."""
    assert done.code == 0, done.err
    [line] = [line for line in done.err.splitlines() if line.startswith("Next: ")]
    assert line == done.err.splitlines()[-1] and "Next:" not in done.out
    program, *arguments = shlex.split(line.removeprefix("Next: "), comments=True)
    assert program == "mlflow-unlearn"
    return arguments


def ways_out(refused: Outcome) -> list[list[str]]:
    lines = refused.err.partition("What can be done now:\n")[2].splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture
def lenient(store):
    (store.folder / "policy.yaml").write_text(LENIENT)
    return store


def test_from_data_to_the_plan_to_retire(lenient):
    """Nothing is typed but the first command, hyperparameters of a second, and the limits of the judge."""
    assert following(call("data", "--data", DATA)) == ["train", "--data", DATA, "--name", "clf"]
    step = following(call("request", *CLF, "--forget", "random:20%"))
    assert step == ["unlearn", *CLF]
    step = following(call(*step, "--until", "pass", "--policy", "policy.yaml", "--rungs", "lotus"))
    assert step == ["review", "--model-uri", "models:/clf/2", "--policy", "policy.yaml"]
    step = following(call(*step))
    assert step == ["promote", "--model-uri", "models:/clf/2"]
    step = following(call(*step))
    assert step == ["exposure", "--model-uri", "models:/clf/2"]
    step = following(call(*step))
    assert step == ["retire", *CLF]
    plan = call(*step)
    assert plan.code == 0 and "Nothing was done" in plan.out and lenient.versions() == ["1", "2"]


@pytest.mark.slow
def test_a_training_is_followed_by_a_request(store):
    small = ("--architecture", "toy:trainable", "--epochs", "1")
    step = following(call("train", "--data", DATA, "--name", "my clf", *small))
    assert step == ["request", "--model-uri", "models:/my clf/1", "--forget", "ids.csv"]
    step = following(call("train", "--data", DATA, "--name", "gold", *small, "--exclude", "random:10%"))
    assert step == ["evaluate", "--model-uri", "models:/NAME/VERSION", "--gold-uri", "models:/gold/1"]


def test_the_best_of_a_comparison_is_to_unlearn():
    options = Compare(model_uri="models:/clf/1", forget="class:3", hash_ids=True, prefix="auto", seeds="0,1")
    step = CompareResult(run_id="1", best="scrub, tuned", best_params={"lr": 0.01}).next_step(options)
    program, command, *arguments = shlex.split(str(step))
    assert (program, command) == ("mlflow-unlearn", "unlearn")
    assert dict(zip(arguments[::2], arguments[1::2], strict=True)) == {
        **{"--model-uri": "models:/clf/1", "--forget": "class:3", "--hash-ids": "true", "--prefix": "auto"},
        **{"--method": "scrub", "--params": '{"lr": 0.01}'},
    }
    assert CompareResult(run_id="1").next_step(options) is None


def test_under_mlflow_run_the_next_one_is_typed_so_too(store, monkeypatch):
    with mlflow.start_run() as there:
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", there.info.run_id)
    done = call("request", *CLF, "--forget", "random:9")
    assert done.code == 0 and done.err.endswith("Next: mlflow run . -e unlearn -P model_uri=models:/clf/1\n")
    with mlflow.start_run() as another:
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", another.info.run_id)
    refused = call("unlearn", *CLF, "--claim", "exact")
    assert "Error: -P claim=exact has no effect without -P plan=true: add that" in refused.err
    assert "-P claim=exact" in store.client.get_run(another.info.run_id).data.tags["unlearn.error"]


def test_programs_are_not_told(store):
    done = call("request", *CLF, "--forget", "random:9", "--format", "json")
    assert done.code == 0 and "Next:" not in done.out + done.err


@pytest.mark.nightly
def test_the_inbox_and_the_search(store):
    done = call("locate", "--forget", "class:3", "--data", DATA)
    assert following(done) == ["request", "--forget", "class:3", "--all", "true"]
    assert call("request", *CLF, "--forget", "class:3", "--requester", "p 7").code == 0
    step = following(call("requests", "--subject", "p 7"))
    assert step == ["requests", "--subject", "p 7", "--fulfil", "true"]
    quick = json.dumps({"params": QUICK})
    done = call(*step, "--unlearn-options", quick)
    assert following(done) == ["review", "--model-uri", "models:/clf/2"]
    nothing = call("requests")
    assert nothing.code == 0 and "Next:" not in nothing.err


@pytest.mark.slow
def test_a_trial_says_so_and_how_to_file_it(store):
    done = call("unlearn", *CLF, "--forget", "random:20,seed=1", "--params", QUICK)
    assert done.code == 0 and "Note: this is a trial" in done.err
    command = done.err.partition("To file it: ")[2].splitlines()[0]
    filed = call(*shlex.split(command)[1:])
    assert filed.code == 0 and "was filed before and was carried out by models:/clf/2" in filed.out
    assert following(filed) == ["review", "--model-uri", "models:/clf/2"]
    assert call("requests", "--state", "all").out.count("random:20,seed=1") == 1
    again = call("unlearn", *CLF, "--forget", "random:20,seed=1", "--params", QUICK)
    assert again.code == 0 and "trial" not in again.err, "it is filed now"


@pytest.mark.slow
def test_a_request_that_was_carried_out_says_by_which_version(store):
    assert call("request", *CLF, "--forget", "random:20,seed=1").code == 0
    [request] = store.requests()
    assert call("unlearn", *CLF, "--params", QUICK).code == 0
    again = call("unlearn", *CLF, "--params", QUICK)
    assert again.code == 2 and f"request {request} was carried out by models:/clf/2" in again.err
    assert f"--forget request:{request}" in again.err
    assert call("unlearn", *CLF, "--params", QUICK, "--forget", f"request:{request}").code == 0


@pytest.mark.slow
def test_a_review_that_refuses_is_a_verdict_with_ways_out(chain):
    refused = call("review", "--model-uri", "models:/clf/2", "--policy", "strict.yaml")
    assert refused.code == 3 and "Error" not in refused.err
    assert refused.err.startswith("models:/clf/2 does not pass the policy 'strict': acc_test is 0.")
    [request] = chain.requests("1")
    assert ways_out(refused) == [
        ["unlearn", *CLF, "--forget", f"request:{request}", "--method", "retrain"],
        ["review", "--model-uri", "models:/clf/2", "--policy", "policy.yaml"],
        ["promote", "--model-uri", "models:/clf/2", "--override"],
    ]
    answer = json.loads(
        call("review", "--model-uri", "models:/clf/2", "--policy", "strict.yaml", "--format", "json").out
    )
    assert answer["error"]["kind"] == "refused" and "What can be done" not in answer["error"]["message"]
    promotion = ways_out(refused)[-1]
    assert call(*promotion).code == 2, "pasted as it is, it has no reason"
    assert call(*promotion, "the board decided").code == 0


def test_too_few_samples_are_to_be_batched(chain):
    """Twenty samples are too few for the default policy."""
    refused = call("review", "--model-uri", "models:/clf/2")
    ways = ways_out(refused)
    assert refused.code == 3 and ["request", *CLF, "--forget", "ids.csv"] in ways
    assert ["promote", "--model-uri", "models:/clf/2", "--override"] in ways
    assert not any("--until" in way for way in ways), "in vain, where nothing can be told"
    assert call("request", *CLF, "--forget", "random:7,seed=5").code == 0
    planned = call("retire", *CLF)
    assert "models:/clf/1 has a pending request, which nothing will carry out" in planned.err, planned


@pytest.mark.slow
def test_an_audit_and_a_check_that_refuse_are_verdicts_as_well(chain):
    refused = call("audit", "--model-uri", "models:/clf/2")
    assert refused.code == 3 and "Error" not in refused.err and "models:/clf/2: not decided (" in refused.err
    assert ways_out(refused) == [
        ["audit", "--model-uri", "models:/clf/2", "--references", "16"],
        ["review", "--model-uri", "models:/clf/2"],
    ]
    chain.client.set_model_version_tag("clf", "2", "unlearn.warning", "edited")
    refused = call("verify", "--model-uri", "models:/clf/2")
    assert refused.code == 3 and refused.err.startswith("models:/clf/2 does not agree with its evidence: tag ")
    answer = json.loads(call("verify", "--model-uri", "models:/clf/2", "--format", "json").out)
    assert answer["error"]["kind"] == "refused" and answer["exit_code"] == 3


def test_without_a_verdict_it_is_an_error(chain):
    for version in ("1", "99"):
        refused = call("review", "--model-uri", f"models:/clf/{version}")
        assert refused.code in (2, 3) and "Error: " in refused.err and "What can be done" not in refused.err
