"""The canaries that a version committed to, and those that join a request."""

import os
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest

from mlflow_unlearn.data.canaries import draw_canaries
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.registry.versions import Commitment
from mlflow_unlearn.session.canaries import FILE, canaries_of, next_tranche

IDS = tuple(f"s{i}" for i in range(400))
SOURCE = SimpleNamespace(train=SimpleNamespace(ids=IDS))


@pytest.fixture
def planted(empty_store):
    """A version trained with 70 pairs, and its canaries."""
    canaries = draw_canaries(IDS, np.arange(400) % 4, np.arange(400), 70)
    with mlflow.start_run() as run:
        mlflow.log_text(canaries.model_dump_json(), FILE)
    committed = Commitment(run_id=run.info.run_id, sha256=canaries.digest, pairs=70)
    return SimpleNamespace(uri="models:/clf/1", record=SimpleNamespace(canaries=committed), tags={}), canaries


def mask_of(canaries):
    ghosts = {pair.ghost for pair in canaries.pairs}
    return np.array([name not in ghosts for name in IDS])


def test_as_they_were_committed_to(planted):
    version, canaries = planted
    assert canaries_of(version) == canaries
    assert canaries_of(SimpleNamespace(uri="models:/clf/1", record=None)) is None


@pytest.mark.parametrize("what", ["coin", "number", "text", "gone"])
def test_what_was_changed_is_refused(planted, what):
    version, canaries = planted
    path = mlflow.get_run(version.record.canaries.run_id).info.artifact_uri.removeprefix("file://") + f"/{FILE}"
    first = canaries.pairs[0]
    turned = first.model_copy(update={"twin": first.ghost, "ghost": first.twin})
    texts = {
        "coin": canaries.model_copy(update={"pairs": (turned, *canaries.pairs[1:])}).model_dump_json(),
        "number": canaries.model_copy(update={"pairs": canaries.pairs[1:]}).model_dump_json(),
        "text": "{}",
    }
    if what == "gone":
        os.remove(path)
    else:
        with open(path, "w") as file:
            file.write(texts[what])
    with pytest.raises(UnlearnError if what == "gone" else Refused, match="the canaries of models:/clf/1, in run"):
        canaries_of(version)


def test_a_tranche_is_of_trained_twins_that_nothing_has_named(planted):
    version, canaries = planted
    mask, twins = mask_of(canaries), [IDS.index(pair.twin) for pair in canaries.pairs]
    asked = np.array(twins[:2])
    found = next_tranche(version, SOURCE, mask, asked, None)
    assert found.tolist() == twins[2:50], "48 by default, those that are asked for anyhow left out"
    assert next_tranche(version, SOURCE, mask, asked, 5).tolist() == twins[2:7]
    assert next_tranche(version, SOURCE, mask, asked, 0).size == 0
    mask[twins[2]] = False
    assert next_tranche(version, SOURCE, mask, asked, 5).tolist() == twins[3:8], "what an earlier request has forgotten"


def test_a_version_without():
    version = SimpleNamespace(uri="models:/clf/1", record=None)
    assert next_tranche(version, SOURCE, np.ones(400, bool), np.array([1]), None).size == 0
    with pytest.raises(UnlearnError, match="canaries=5: models:/clf/1 was trained without; `train` with canaries="):
        next_tranche(version, SOURCE, np.ones(400, bool), np.array([1]), 5)
