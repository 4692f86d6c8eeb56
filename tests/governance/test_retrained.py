"""`verify --recompute` of an ensemble: trained from scratch, the same bits."""

import re
from dataclasses import replace

import pytest
from chains import evidence_of
from stores import call

from mlflow_unlearn.config import Evaluate
from mlflow_unlearn.governance.retrained import PART, check_trained_anew
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.versions import TRAINING_TAG
from mlflow_unlearn.session.measured import open_measured


@pytest.mark.slow
def test_from_scratch_the_weights_are_the_same(sharded):
    done = call("verify", "--model-uri", "models:/clf/2", "--recompute", "true")
    assert done.code == 0, done.err
    assert re.search(rf"{PART}\s*│ same", done.out)


def test_on_another_machine_or_of_another_recipe(sharded, tmp_path):
    """The bits depend on the machine; another seed gives other ones."""
    reading = Evaluate(model_uri="models:/clf/2", device="cpu")
    session, _ = open_measured(tracking.connect(), reading, tmp_path, progress=False)
    evidence = evidence_of("2")
    version, record = session.version, session.version.record
    # Numerics are those of the training, whatever the command has.
    [found] = check_trained_anew(replace(session, hardware=replace(session.hardware, precision="bf16")), evidence)
    assert found.outcome == "same"
    elsewhere = record.model_copy(update={"machine": record.machine.model_copy(update={"instructions": "none"})})
    [found] = check_trained_anew(replace(session, version=replace(version, record=elsewhere)), evidence)
    assert found.outcome == "not checked" and "the training had instructions none and not" in found.message
    other = record.model_copy(update={"shards": record.shards.model_copy(update={"seed": 1})})
    [found] = check_trained_anew(replace(session, version=replace(version, record=other)), evidence)
    assert found.outcome == "not checked" and "is not what its tags say" in found.message
    tags = {**version.tags, TRAINING_TAG: other.training_sha256}
    [found] = check_trained_anew(
        replace(session, version=replace(version, record=other, tags=tags, model_id=None, name=None)), evidence
    )
    assert found.outcome == "differs"
    mixed = record.model_copy(update={"shards": record.shards.model_copy(update={"mixed": True})})
    [found] = check_trained_anew(replace(session, version=replace(version, record=mixed)), evidence)
    assert (found.outcome, found.message) == ("not checked", "its shards were trained on several machines")
    [found] = check_trained_anew(
        replace(session, version=replace(version, record=record.model_copy(update={"machine": None}))), evidence
    )
    assert found.outcome == "not checked"
