"""`audit`: what a version gives away, by the models at hand."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
from stores import FORGET, TRAIN, copied

from mlflow_unlearn.evidence.audit import REFERENCE_FILE, REFERENCE_TAG, AuditRecord

GOLDS = "models:/gold/1,models:/gold/2"


@pytest.fixture(scope="module")
def audited(gold_template, tmp_path_factory):
    """clf/1, clf/2 that has forgotten a fifth, and two models that never saw it."""
    with copied(gold_template, tmp_path_factory.mktemp("audited")) as store:
        from stores import call

        [request_id] = store.requests()
        assert call("train", *TRAIN, "--name", "gold", "--exclude", request_id, "--seed", "2").code == 0
        yield store


@pytest.fixture
def audit(audited, cli):
    """Run it; returns the outcome and the record. Whatever it says, the registry stays as it was."""

    def run(*arguments):
        before, known = audited.everything_registered(), len(audited.runs())
        outcome = cli("audit", *arguments)
        assert audited.everything_registered() == before
        if len(audited.runs()) == known:  # a look-up that failed makes none
            assert outcome.code == 2
            return outcome, None
        run = audited.runs()[0]
        while "mlflow.parentRunId" in run.data.tags:
            run = audited.client.get_run(run.data.tags["mlflow.parentRunId"])
        assert run.info.status == ("FINISHED" if outcome.code == 0 else "FAILED")
        try:
            text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/evidence/audit.json")
        except mlflow.MlflowException:
            return outcome, None
        return outcome, AuditRecord.model_validate_json(text)

    return run


@pytest.mark.nightly
def test_with_two_golds_the_original_is_told_apart(audit, audited):
    [request_id] = audited.requests()
    outcome, record = audit("--model-uri", "models:/clf/1", "--forget", f"request:{request_id}", "--gold-uri", GOLDS)
    assert outcome.code == 3, outcome.out
    assert record.decision[0] == "told apart" and "told apart" in outcome.err
    assert list(record.attacks) == ["audited", "original", "gold 1", "gold 2"]
    assert set(record.attacks["audited"]) == {"margin", "quantile", "probe", "rmia", "iam", "posterior"}
    assert record.attacks["audited"] == record.attacks["original"]
    assert record.share_remembered.value == 1.0
    assert record.tier == 2 and record.two_versions_auc is None
    assert len(record.worst) == 10 and record.worst[0].id.startswith("digits/")
    assert "share remembered: 1.000" in outcome.out and record.worst[0].id in outcome.out
    kept = record.retained
    assert kept.samples == 216 and list(kept.attacks) == ["audited", "gold 1", "gold 2"]
    assert kept.worst == [], "nobody stands out more than before"
    assert kept.rise_p95 == 0.0 and "retained samples against unseen ones, AUC by margin: audited" in outcome.out


@pytest.mark.slow
def test_of_a_gold_standard_nothing_is_told_apart(audit, audited):
    """Audited as if it were what came of unlearning."""
    [request_id] = audited.requests()
    forget = ("--forget", f"request:{request_id}", "--original-uri", "models:/clf/1")
    outcome, record = audit("--model-uri", "models:/gold/1", *forget, "--gold-uri", "models:/gold/2")
    assert record.decision[0] == "not told apart" and outcome.code == 0, outcome.out + outcome.err
    assert "no gold control of rmia, iam" in " ".join(outcome.out.split()) and record.tier == 1
    assert record.not_measured.keys() == {"posterior"}
    share = record.share_remembered
    assert share.low <= 0 <= share.high and share.golds == 1


@pytest.mark.slow
def test_a_version_by_its_own_record(audit):
    outcome, record = audit("--model-uri", "models:/clf/2", "--gold-uri", GOLDS)
    assert record.uri == "models:/clf/2" and record.original_uri == "models:/clf/1"
    kept = record.retained
    assert list(kept.attacks) == ["audited", "original", "gold 1", "gold 2"] and len(kept.worst) == 10
    assert kept.worst[0].rise >= kept.worst[-1].rise >= kept.rise_p95 and kept.worst[0].id.startswith("digits/")
    assert record.two_versions_auc is not None
    assert outcome.code == (0 if record.decision[0] == "not told apart" else 3)
    assert [r.uri for r in record.references] == GOLDS.split(",")


@pytest.mark.slow
def test_without_any_retrained_model(audit):
    outcome, record = audit("--model-uri", "models:/clf/2")
    assert record.tier == 0 and set(record.attacks["audited"]) == {"margin", "quantile", "probe"}
    assert record.share_remembered is None and "needs a gold standard" in record.share_missing
    assert record.completeness is None and record.worst == []
    assert "share remembered: not measurable" in outcome.out


@pytest.mark.slow
def test_a_gold_standard_that_saw_the_samples_is_none(audit):
    outcome, record = audit("--model-uri", "models:/clf/2", "--gold-uri", "models:/gold/1,models:/clf/1")
    assert record.unusable.keys() == {"models:/clf/1"}
    assert "models:/clf/1 was trained on 54 samples" in outcome.err and "it is left out" in outcome.err
    assert [r.uri for r in record.references] == ["models:/gold/1"]


@pytest.mark.slow
def test_what_was_not_retrained_controls_nothing(audit):
    """The audited version, one that was unlearned as well, and the same gold twice."""
    golds = "models:/clf/2,models:/gold/1,models:/gold/1"
    outcome, record = audit("--model-uri", "models:/clf/2", "--gold-uri", golds)
    assert [r.uri for r in record.references] == ["models:/gold/1"] and record.tier == 1
    assert set(record.unusable) == {"models:/clf/2", "models:/gold/1"}
    assert "does not record that it was trained anew" in outcome.err
    assert "has the weights of models:/gold/1: it is not another gold standard" in outcome.err


@pytest.mark.nightly
def test_references_are_trained_once(audit, audited):
    arguments = ("--model-uri", "models:/clf/2", "--references", "4")
    outcome, record = audit(*arguments)
    assert "trained now: 4 of 4 references" in outcome.err
    assert [r.kind for r in record.references] == ["reference"] * 4 and record.tier == 2
    assert "posterior" in record.attacks["audited"]
    again, same = audit(*arguments)
    assert "trained now: 0 of 4 references" in again.err
    assert same.attacks == record.attacks and same.references == record.references
    # Another request on the same source.
    other, _ = audit("--model-uri", "models:/clf/1", "--forget", "random:40,seed=5", "--references", "4")
    assert "trained now: 0 of 4 references" in other.err


@pytest.mark.nightly
def test_eight_halves_serve_every_later_request(audit, audited):
    """Of each sample half of them have not seen it, whatever is forgotten."""
    first = audit("--model-uri", "models:/clf/2", "--references", "8")[0]
    # Those of the test before are among them, where it ran.
    assert re.search(r"trained now: [48] of 8 references", first.err)
    other, record = audit("--model-uri", "models:/clf/1", "--forget", "random:40,seed=6", "--references", "8")
    assert "trained now: 0 of 8 references" in other.err
    assert record.attacks["audited"]["rmia"].n_forget == 40, "each forgotten sample was left out by some"
    runs = [r.uri.removeprefix("runs:/") for r in record.references]
    outputs = []
    for run in runs:
        path = mlflow.artifacts.download_artifacts(f"runs:/{run}/{REFERENCE_FILE}")
        with np.load(path) as stored:
            outputs.append(stored["trained_on"])
    trained = np.stack(outputs)
    known = trained.any(axis=0)
    assert set(trained[:, known].sum(axis=0)) == {4}, "the original's samples, each in four of eight"


@pytest.mark.nightly
def test_a_fast_recipe_is_another_reference(audit):
    outcome, record = audit("--model-uri", "models:/clf/2", "--references", "2", "--recipe", "fast")
    assert "trained now: 2 of 2 references" in outcome.err
    epochs = {
        mlflow.get_run(r.uri.removeprefix("runs:/")).data.params["unlearn.params.epochs"] for r in record.references
    }
    assert epochs == {"7"}, "a third of twenty"
    assert [reference.epochs for reference in record.references] == [7, 7]
    again, _ = audit("--model-uri", "models:/clf/2", "--references", "2", "--recipe", "fast")
    assert "trained now: 0 of 2 references" in again.err


@pytest.mark.nightly
def test_versions_made_alike(audit, audited):
    """Two of them are too few for distributions, and what was made otherwise is none of them."""
    from stores import call

    again = ("unlearn", "--model-uri", "models:/clf/1", "--params", '{"epochs": 2, "lr": 0.003}', "--seed", "5")
    [request_id] = audited.requests()
    made = call(*again, "--forget", f"request:{request_id}", "--register-as", "alike")
    assert made.code == 0, made.err
    arguments = ("--model-uri", "models:/clf/2", "--gold-uri", GOLDS, "--alike-uri")
    outcome, record = audit(*arguments, "models:/alike/1")
    assert record is not None, outcome.err
    assert record.many is None
    assert "not measured: u-lira, klom (need 16 versions made alike and 16 golds: there are 2 and 2)" in outcome.out
    for uri, sentence in (
        ("models:/gold/1", "models:/gold/1 was made otherwise than models:/clf/2, its method and setting differ"),
        ("models:/clf/2", "has the weights of models:/clf/2: it counts once"),
    ):
        refused, _ = audit(*arguments, uri)
        assert refused.code == 2 and sentence in refused.err, refused.err


@pytest.mark.nightly
def test_relearning_and_a_known_cheat(audit, audited):
    """Each model is measured by both, the golds as controls; nothing of it is registered."""
    outcome, record = audit("--model-uri", "models:/clf/2", "--gold-uri", GOLDS, "--relearn", "true", "--cheat", "true")
    assert list(record.attacks) == ["audited", "original", "gold 1", "gold 2", "known cheat"]
    assert list(record.relearning) == ["audited", "original", "gold 1", "gold 2", "known cheat"]
    assert all(len(one.forget) == len(one.unseen) == 6 for one in record.relearning.values())
    assert "relearning, epochs of forgotten to those of unseen samples" in outcome.out
    assert "known cheat" in outcome.out
    run = audited.runs()[0]
    assert run.data.metrics["audit.gold_1.relearning.p"] == record.relearning["gold 1"].p_value
    again = audit("--model-uri", "models:/clf/2", "--gold-uri", GOLDS, "--relearn", "true", "--cheat", "true")[1]
    assert again.relearning == record.relearning and again.attacks == record.attacks, "nobody chooses a seed"


@pytest.mark.slow
def test_ids_stay_hidden_where_the_request_hides_them(gold_template, cli, tmp_path):
    with copied(gold_template, tmp_path / "hidden") as store:
        forget = ("--forget", "random:20%,seed=4", "--hash-ids", "true")
        assert cli("request", "--model-uri", "models:/clf/1", *forget).code == 0
        [request_id] = [key for key, (state, _) in store.requests().items() if state == "pending"]
        arguments = ("--model-uri", "models:/clf/1", "--forget", f"request:{request_id}", "--references", "2")
        outcome = cli("audit", *arguments)
        assert re.search("[0-9a-f]{64}", outcome.out) and "digits/" not in outcome.out


POLICY = """
rules: [{metric: acc_test, at_least: 0.1}]
membership: null
minimum: {}
audit: {tier: 2, accept: [told apart, not told apart, not decided]}
"""


@pytest.mark.nightly
def test_a_review_is_judged_by_it(gold_template, cli, tmp_path):
    """No audit, too weak a one, a strong one; then what becomes of its record."""
    with copied(gold_template, tmp_path / "reviewed") as store:
        (store.folder / "policy.yaml").write_text(POLICY)
        review = ("review", "--model-uri", "models:/clf/2", "--policy", "policy.yaml")
        refused = cli(*review)
        assert refused.code == 3 and "was never audited: `mlflow-unlearn audit` does that" in refused.err
        cli("audit", "--model-uri", "models:/clf/2")
        weak = cli(*review)
        assert weak.code == 3 and "audit: tier is tier 0, but must be ≥ 2" in weak.err
        cli("audit", "--model-uri", "models:/clf/2", "--references", "4")
        passed = cli(*review)
        assert passed.code == 0, passed.out + passed.err
        verified = cli("verify", "--model-uri", "models:/clf/2")
        assert verified.code == 0 and "says what its review has" in " ".join(verified.out.replace("│", " ").split())
        run = next(run for run in store.runs() if run.data.params.get("unlearn.references") == "4")
        path = Path(run.info.artifact_uri.removeprefix("file://")) / "evidence" / "audit.json"
        path.write_text(path.read_text().replace('"tier": 2', '"tier": 1'))
        changed = cli("verify", "--model-uri", "models:/clf/2")
        assert changed.code == 3 and "says something else than its review has it" in changed.err
        assert cli(*review).code == 3, "the strongest that is left has too low a tier"


@pytest.mark.nightly
def test_killed_midway_it_goes_on(gold_template, cli, tmp_path):
    """What has been trained is kept."""
    with copied(gold_template, tmp_path / "killed") as store:
        arguments = ("audit", "--model-uri", "models:/clf/2", "--references", "12")
        process = subprocess.Popen([sys.executable, "-m", "mlflow_unlearn", *arguments], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while len(finished(store)) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
        process.wait()
        kept = len(finished(store))
        again = cli(*arguments)
        assert f"trained now: {12 - kept} of 12 references" in again.err, again.err
        assert {run.info.status for run in store.runs()} <= {"FINISHED", "FAILED", "KILLED"}


def finished(store):
    return [run for run in store.runs() if REFERENCE_TAG in run.data.tags and run.info.status == "FINISHED"]


@pytest.mark.slow
def test_references_are_exposure_and_go_with_the_version(gold_template, cli, tmp_path):
    """Their outputs tell what they were trained on."""
    with copied(gold_template, tmp_path / "exposed") as store:
        # The files of the template are shared: a version of this store alone.
        assert cli("train", *TRAIN, "--name", "own").code == 0
        assert cli("request", "--model-uri", "models:/own/1", "--forget", FORGET).code == 0
        assert "references that audits have trained: none" in cli("exposure", "--model-uri", "models:/own/1").out
        cli("audit", "--model-uri", "models:/own/1", "--forget", FORGET, "--references", "2")
        runs = [run for run in store.runs() if REFERENCE_TAG in run.data.tags]
        shown = cli("exposure", "--model-uri", "models:/own/1").out
        assert len(runs) == 2 and all(f"runs:/{run.info.run_id}/{REFERENCE_FILE}" in shown for run in runs)
        done = cli("retire", "--model-uri", "models:/own/1", "--yes", "true")
        assert done.code == 0, done.err
        for run in runs:
            assert f"done: delete the outputs of the reference of run {run.info.run_id}" in done.out
            assert not store.client.list_artifacts(run.info.run_id)


@pytest.mark.slow
def test_references_of_a_version_that_does_not_state_its_weights(gold_template, cli, tmp_path):
    """As one of another tool: they are found by what they say of it."""
    with copied(gold_template, tmp_path / "foreign") as store:
        assert cli("train", *TRAIN, "--name", "own").code == 0
        assert cli("request", "--model-uri", "models:/own/1", "--forget", FORGET).code == 0
        cli("audit", "--model-uri", "models:/own/1", "--forget", FORGET, "--references", "2")
        store.client.delete_model_version_tag("own", "1", "unlearn.weights_sha256")
        runs = [run for run in store.runs() if REFERENCE_TAG in run.data.tags]
        shown = cli("exposure", "--model-uri", "models:/own/1").out
        assert len(runs) == 2 and all(f"runs:/{run.info.run_id}/{REFERENCE_FILE}" in shown for run in runs)


@pytest.mark.slow
def test_a_folder_of_that_name_is_no_reference(gold_template, cli, tmp_path):
    """Whoever may tag a run could have `retire` delete one."""
    with copied(gold_template, tmp_path / "forged") as store:
        weights = store.tags("1")["unlearn.weights_sha256"]
        with mlflow.start_run(tags={REFERENCE_TAG: weights}) as run:
            mlflow.log_text("precious", f"{REFERENCE_FILE}/data.txt")
        assert run.info.run_id not in cli("retire", "--model-uri", "models:/clf/1").out
        assert "audits have trained: none" in cli("exposure", "--model-uri", "models:/clf/2").out


@pytest.mark.nightly
def test_an_audit_has_the_digest_of_the_evidence(gold_template, cli, tmp_path):
    """A request in plain ids that was unlearned with hashed ones: it counts, and names no sample."""
    with copied(gold_template, tmp_path / "salted") as store:
        filed = cli("request", "--model-uri", "models:/clf/1", "--forget", "random:20%,seed=4")
        assert filed.code == 0, filed.err
        made = cli("unlearn", "--model-uri", "models:/clf/1", "--params", '{"epochs": 1}', "--hash-ids", "true")
        version = re.search(r"Registered clf version (\d+)", made.out)[1]
        shown = cli("audit", "--model-uri", f"models:/clf/{version}", "--references", "4").out
        assert re.search("most remembered: [0-9a-f]{64}", shown) and "digits/" not in shown
        (store.folder / "policy.yaml").write_text(POLICY)
        judged = cli("review", "--model-uri", f"models:/clf/{version}", "--policy", "policy.yaml")
        assert "never audited" not in judged.out + judged.err and "tier 2" in judged.out, judged.out


@pytest.mark.slow
def test_an_audit_of_another_forget_set_does_not_count(gold_template, cli, tmp_path):
    with copied(gold_template, tmp_path / "other") as store:
        (store.folder / "policy.yaml").write_text(POLICY)
        cli("audit", "--model-uri", "models:/clf/2", "--original-uri", "models:/clf/1", "--forget", "random:60,seed=9")
        refused = cli("review", "--model-uri", "models:/clf/2", "--policy", "policy.yaml")
        assert refused.code == 3 and "was never audited" in refused.err, refused.err


def test_a_dry_run_trains_nothing(audit, audited):
    known = len(audited.runs())
    more = ("--relearn", "true", "--cheat", "true")
    outcome, record = audit("--model-uri", "models:/clf/2", "--references", "8", *more, "--plan", "true")
    assert outcome.code == 0 and record is None, outcome.err
    assert "retrain, 4 times" in outcome.out and "known cheat" in outcome.out, "halves are half of the work"
    assert "relearning takes up to 18000 samples more for each model" in outcome.err
    assert len(audited.runs()) == known + 1


@pytest.mark.slow
def test_metrics_of_the_run(audit, audited):
    _, record = audit("--model-uri", "models:/clf/2", "--gold-uri", GOLDS)
    run = next(run for run in audited.runs() if run.data.tags["unlearn.command"] == "audit")
    assert run.data.metrics["audit.audited.rmia.auc"] == pytest.approx(record.attacks["audited"]["rmia"].auc)
    assert run.data.metrics["audit.gold_1.margin.p"] == record.attacks["gold 1"]["margin"].p_value
    assert run.data.tags["unlearn.audit.decision"] == record.decision[0]
    assert json.loads(record.to_json())["tier"] == 2


def test_an_odd_number_of_references_leaves_samples_without_one(cli):
    outcome = cli("audit", "--model-uri", "models:/clf/2", "--references", "3")
    assert outcome.code == 2 and "--references 3 is not usable: input should be a multiple of 2" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--gold-uri", "models:/nothing/1"), "no registered model 'nothing'"),
        (("--data", "digits,train=98%,seed=0"), "unseen samples are too few to audit by"),
    ],
)
def test_bad_input(audit, arguments, sentence):
    outcome, _ = audit("--model-uri", "models:/clf/2", *arguments)
    assert outcome.code == 2 and sentence in outcome.err, outcome.err
    assert "Traceback" not in outcome.err
