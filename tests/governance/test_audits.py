"""Which audit of a version a review is judged by."""

from types import SimpleNamespace

import mlflow
import pytest
import records
from records import audit, evidence

from mlflow_unlearn.evidence.audit import AUDIT_FILE, ReferenceRecord, RelearnRecord
from mlflow_unlearn.evidence.review import MODEL_URI_TAG
from mlflow_unlearn.governance.audits import check_audit, last_audit
from mlflow_unlearn.registry.clients import experiment_ids


@pytest.fixture
def examined(empty_store):
    experiments = experiment_ids(empty_store.client)
    return SimpleNamespace(uri=evidence().result.uri, evidence=evidence(), experiments=experiments)


def logged(text=None, **values):
    """A run with an audit; returns its id."""
    with mlflow.start_run(tags={"unlearn.command": "audit", MODEL_URI_TAG: evidence().result.uri}) as run:
        record = audit(**{"run_id": run.info.run_id} | values)
        mlflow.log_text(record.to_json() if text is None else text, AUDIT_FILE)
    return run.info.run_id


def test_the_strongest_and_then_the_newest(examined, empty_store, capsys):
    client = empty_store.client
    assert last_audit(client, examined) is None
    logged(tier=1, at="2026-11-26T12:00:00+00:00")
    newest = logged(tier=1, at="2026-11-27T12:00:00+00:00")
    assert last_audit(client, examined).run_id == newest
    strongest = logged(tier=2, at="2026-11-01T12:00:00+00:00")
    assert last_audit(client, examined).run_id == strongest


def test_no_one_tries_again_until_it_passes(examined, empty_store, capsys):
    told_apart = logged(found=0.001, tier=2, at="2026-11-01T12:00:00+00:00")
    logged(tier=2, at="2026-11-02T12:00:00+00:00")
    empty_store.client.delete_run(told_apart)
    assert last_audit(empty_store.client, examined).run_id == told_apart
    assert "others came to: not told apart" in capsys.readouterr().err


def test_no_one_leaves_out_what_did_not_pass(examined, empty_store):
    """A known cheat that was not caught; then the same without it, and with more models without it."""
    client = empty_store.client
    attacks = audit().attacks
    uncaught = {**attacks, "known cheat": {"rmia": records.attack(0.5)}}
    not_decided = logged(tier=2, attacks=uncaught, at="2026-11-01T12:00:00+00:00")
    logged(tier=2, at="2026-11-02T12:00:00+00:00")
    references = [ReferenceRecord(uri="runs:/1", sha256="0" * 64, kind="reference", epochs=3)]
    logged(tier=2, references=references, at="2026-11-03T12:00:00+00:00")
    assert last_audit(client, examined).run_id == not_decided
    unmeasured = logged(tier=2, attacks=uncaught, not_measured={"relearning": "it cannot be trained on"})
    assert last_audit(client, examined).run_id == unmeasured, "that relearning was refused counts as well"
    caught = {**attacks, "known cheat": {"rmia": records.attack(0.001)}}
    again = RelearnRecord(forget=[1.0], unseen=[1.0], ratio=1.0, p_value=1.0, censored=0.0)
    whole = logged(tier=2, attacks=caught, relearning={"audited": again}, references=references)
    assert last_audit(client, examined).run_id == whole


def test_more_models_count_before_fewer(examined, empty_store):
    """With a second gold an audit may decide what one could not."""
    logged(before=0.5, at="2026-11-02T12:00:00+00:00")
    references = [ReferenceRecord(uri="models:/gold/1", sha256="0" * 64, kind="gold")]
    more = logged(references=references, at="2026-11-01T12:00:00+00:00")
    assert last_audit(empty_store.client, examined).run_id == more


@pytest.mark.parametrize("text", ["", "{}", '{"attacks": {}}', "x" * 1000])
def test_what_is_no_record_stands_in_no_one_s_way(examined, empty_store, text):
    logged(text=text)
    assert last_audit(empty_store.client, examined) is None


def test_those_of_others_do_not_count(examined, empty_store):
    logged(weights_sha256="0" * 64)
    logged(forget_sha256="0" * 64)
    logged(run_id="of another run")
    assert last_audit(empty_store.client, examined) is None


def test_whether_its_run_still_says_so(empty_store):
    run_id = logged()
    stored = audit(run_id=run_id)
    assert check_audit(stored).outcome == "same"
    assert check_audit(audit(run_id=run_id, tier=2)).outcome == "differs"
    assert check_audit(audit(run_id=logged(text="{}"))).outcome == "differs"
    assert check_audit(audit(run_id="0" * 32)).outcome == "not checked"
