"""`prefix`: what is frozen stays as it was, and reviewers of the version see it."""

import json

import mlflow
import pytest
from stores import DATA, FORGET, call, copied, reset_mlflow, use

pytestmark = pytest.mark.slow
QUICK = ("--params", '{"epochs": 2}')
UNLEARN = ("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET)


@pytest.fixture(scope="module")
def frozen(blank, tmp_path_factory):
    """A ResNet18, unlearned once from layer4 on."""
    with copied(blank, tmp_path_factory.mktemp("prefix")) as store:
        trained = call(
            *("train", "--data", DATA, "--name", "clf", "--epochs", "4", "--lr", "0.02", "--batch-size", "16"),
            *("--serialization", "pickle"),
        )
        assert trained.code == 0, trained.err
        done = call(*UNLEARN, *QUICK, "--prefix", "layer4")
        assert done.code == 0, done.err
        return store, done


@pytest.fixture
def result(frozen, monkeypatch):
    use(frozen[0], monkeypatch)
    yield frozen
    reset_mlflow()


def weights(version):
    return mlflow.pytorch.load_model(f"models:/clf/{version}").state_dict()


def changed(store, version, source="1"):
    before, after = weights(source), weights(version)
    return {name for name in before if not before[name].equal(after[name])}


@pytest.mark.nightly
def test_what_lies_before_the_split_point_is_as_it_was(result):
    """BatchNorm's statistics too; after it every weight has moved."""
    store, _ = result
    moved = changed(store, "2")
    assert moved and all(name.startswith(("layer4.", "fc.")) for name in moved)
    behind = {name for name in weights("1") if name.startswith(("layer4.", "fc."))}
    assert moved == behind


def test_a_reviewer_sees_what_was_frozen(result):
    store, done = result
    version = store.client.get_model_version("clf", "2")
    assert version.tags["unlearn.prefix"] == "layer4"
    assert "The layers before `layer4` were frozen:" in version.description
    run = store.client.get_run(version.tags["unlearn.run_id"])
    assert run.data.tags["unlearn.prefix"] == run.data.params["unlearn.prefix"] == "layer4"
    evidence = json.loads(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/evidence/evidence.json"))
    assert evidence["provenance"]["prefix"] == "layer4"
    assert mlflow.models.get_model_info("models:/clf/2").metadata["mlflow_unlearn"]["recipe"]["prefix"] == "layer4"
    assert "Note: the layers before layer4 stay frozen and cannot forget what they encode." in done.err


def test_auto_is_recorded_by_the_name_that_it_chose(result):
    store, _ = result
    done = call(*UNLEARN, *QUICK, "--prefix", "auto", "--register-as", "auto")
    assert done.code == 0, done.err
    run = store.runs()[0]
    assert run.data.params["unlearn.prefix"] == "auto"
    tags = store.client.get_model_version("auto", "1").tags
    assert run.data.tags["unlearn.prefix"] == tags["unlearn.prefix"] == "layer4"
    assert tags["unlearn.weights_sha256"] == store.tags("2")["unlearn.weights_sha256"]


def test_without_a_prefix_nothing_is_said(store, cli):
    done = cli(*UNLEARN, *QUICK)
    assert done.code == 0, done.err
    assert "unlearn.prefix" not in store.tags("2") and "frozen" not in done.err
    assert "frozen" not in store.client.get_model_version("clf", "2").description


def test_auto_and_a_whole_class(store, cli):
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", "class:3", *QUICK, "--prefix", "auto")
    assert done.code == 0, done.err
    assert "Note: --prefix auto freezes nothing where a class is forgotten wholly." in done.err
    assert "unlearn.prefix" not in store.tags("2")


@pytest.mark.parametrize("command", ["unlearn", "tune", "compare"])
def test_a_bad_name(store, cli, command):
    before, known = store.everything_registered(), len(store.runs())
    refused = cli(command, "--model-uri", "models:/clf/1", "--forget", FORGET, "--prefix", "layer9")
    assert refused.code == 2 and "Traceback" not in refused.err
    assert "the model has no module 'layer9' to cut before: it has 0, 1, 2, 3, 4, 5, 6" in refused.err
    assert store.everything_registered() == before and len(store.runs()) == known, "no run was begun"


def test_retraining_has_none(store, cli):
    refused = cli(*UNLEARN, "--method", "retrain", "--prefix", "3")
    assert refused.code == 2 and "retraining starts every layer anew" in refused.err


@pytest.mark.nightly
def test_tuning_with_one(store, cli):
    spec = ("tune", "--model-uri", "models:/clf/1", "--forget", "random:8%", "--study", "ours", "--n-trials", "1")
    done = cli(*spec, "--prefix", "3")
    assert done.code == 0, done.err
    assert changed(store, "2") == {"6.weight", "6.bias"} and store.tags("2")["unlearn.prefix"] == "3"
    other = cli(*spec, "--prefix", "none")
    assert other.code == 2 and "was started with another space" in other.err


@pytest.mark.nightly
def test_comparing_with_one(store, cli):
    """Retrained models are the same ones with and without; the trials are not."""
    spec = (
        *(
            "compare",
            "--model-uri",
            "models:/clf/1",
            "--methods",
            "finetune,ssd",
            "--seeds",
            "1",
            "--forget",
            "random:8%",
        ),
        *("--params", json.dumps({"finetune": {"epochs": 2}, "ssd": {"alpha": 1.0}})),
    )
    assert cli(*spec).code == 0
    first = {run.info.run_id for run in store.runs()}
    done = cli(*spec, "--prefix", "3", "--register", "best")
    new = [run for run in store.runs() if run.info.run_id not in first]
    assert sorted(run.info.run_name for run in new) == ["compare clf v1", "finetune, seed 0", "ssd, seed 0"]
    assert done.code == 0, done.err
    assert changed(store, "2") == {"6.weight", "6.bias"} and store.tags("2")["unlearn.prefix"] == "3"
