"""`train --from` an ensemble: its weights are trained together, and it can no longer be unlearned by shards."""

import mlflow
import pytest
from sharding import record_of
from stores import ENSEMBLE, copied

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.evidence.record import Evidence

GROWN = "digits,train=40%"
ON = ("train", "--data", GROWN, "--name", "clf", "--epochs", "2", "--batch-size", "16")
EXACT = ("--method", "exact")


@pytest.fixture
def ensembles(ensemble_template, tmp_path):
    with copied(ensemble_template, tmp_path / "store") as store:
        yield store


def late(store, count: int) -> str:
    """A file of ids that came later."""
    early = {*load_source(ENSEMBLE[1]).train.ids}
    path = store.folder / "late.txt"
    path.write_text("\n".join([i for i in load_source(GROWN).train.ids if i not in early][:count]))
    return str(path)


def exactness(version: str) -> Evidence:
    return Evidence.model_validate(
        mlflow.artifacts.load_dict(f"models:/clf/{version}/evidence/evidence.json")
    ).exactness


@pytest.mark.slow
def test_it_ends_what_could_be_claimed_in_the_record_and_in_words(ensembles, cli):
    done = cli(*ON, "--from", "models:/clf/1", "--keep-checkpoints", "1")
    assert done.code == 0, done.err
    assert (
        "Note: models:/clf/1 can be unlearned exactly, shard by shard; going on trains all of its weights together and "
        "ends that for the new version"
    ) in " ".join(done.err.split())
    before, record = record_of(ensembles, "1").shards, record_of(ensembles, "2")
    assert record.shards == before.model_copy(update={"ended_by": "train"}) and record.origin.uri == "models:/clf/1"
    assert "shards of" not in ensembles.client.get_model_version("clf", "2").description.partition(" trained on ")[0]
    refused = cli("unlearn", "--model-uri", "models:/clf/2", "--forget", late(ensembles, 5), *EXACT)
    assert refused.code == 2 and ensembles.versions() == ["1", "2"]
    assert (
        "exact cannot be used, since models:/clf/2 is not an ensemble that no other method has changed" in refused.err
    )
    on = cli(*ON, "--from", "models:/clf/2")
    assert on.code == 0 and "ends that" not in on.err, on.err
    assert record_of(ensembles, "3").shards.ended_by == "train"


@pytest.mark.slow
def test_of_a_version_that_shards_have_made(ensembles, cli):
    forget = ("--forget", "random:2,seed=3")
    assert cli("unlearn", "--model-uri", "models:/clf/1", *forget, *EXACT).code == 0
    done = cli(*ON, "--from", "models:/clf/2")
    assert done.code == 0 and "ends that for the new version" in done.err, done.err
    assert record_of(ensembles, "3").shards.ended_by == "train" and record_of(ensembles, "3").checkpoints == ()
    assert cli("unlearn", "--model-uri", "models:/clf/3", "--forget", "random:2,seed=4", *EXACT).code == 2


@pytest.mark.nightly
def test_what_came_later_can_still_be_taken_out(ensembles, cli):
    """By going back to the version before, whose weights are those of the ensemble."""
    assert cli(*ON, "--from", "models:/clf/1").code == 0
    rewind = ("--method", "rewind", "--forget", late(ensembles, 5))
    done = cli("unlearn", "--model-uri", "models:/clf/2", *rewind)
    assert done.code == 0 and "Exact: The training was run again from models:/clf/1" in done.out, done.err
    assert cli(*ON, "--from", "models:/clf/1", "--exclude", late(ensembles, 5), "--name", "gold").code == 0
    assert ensembles.tags("3")["unlearn.weights_sha256"] == ensembles.tags("1", "gold")["unlearn.weights_sha256"]
    assert exactness("3").kind == "exact" and record_of(ensembles, "3").shards.ended_by == "train"
    verified = cli("verify", "--model-uri", "models:/clf/3", "--recompute", "true")
    assert verified.code == 0 and "weights, trained anew" not in verified.out, verified.out
