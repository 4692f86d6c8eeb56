"""Training: the first version, and the gold standard that never saw what is to be forgotten."""

import io
import os
import signal
import tarfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from stores import DATA, FORGET

from mlflow_unlearn import cache
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.source import stratified
from mlflow_unlearn.engine.checkpoint import Checkpoint

SHORT = ("--data", DATA, "--architecture", "toy:trainable", "--epochs", "1", "--batch-size", "32")


def folder_of(version: str, name: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}"))


def manifest_of(version: str, name: str) -> Manifest:
    return Manifest.from_csv(folder_of(version, name) / "extra_files" / "training_manifest.csv")


def excluded_by_hand() -> set[str]:
    """What `random:20%` names, drawn here."""
    train = load_source(DATA).train
    return {train.ids[i] for i in stratified(train.labels, round(0.2 * len(train)), 0)}


@pytest.mark.parametrize("form", ["ID", "file"])
def test_gold(store, cli, form, tmp_path):
    """Neither trained on nor in the manifest, however it is named."""
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET, "--hash-ids").code == 0
    [request_id] = store.requests()
    (tmp_path / "ids.txt").write_text("\n".join(excluded_by_hand()))
    spec = {"ID": request_id, "file": str(tmp_path / "ids.txt")}
    done = cli("train", *SHORT, "--name", "gold", "--exclude", spec[form])
    assert done.code == 0, done.err
    manifest = manifest_of("1", "gold")
    assert manifest.salt
    assert all(len(one) == 64 and int(one, 16) >= 0 for one in manifest.ids)
    train = load_source(DATA).train
    assert {i for i, held in zip(train.ids, manifest.mask(train.ids), strict=True) if held} == (
        set(train.ids) - excluded_by_hand()
    )
    assert "216 training samples" in done.out
    record = mlflow.models.Model.load(str(folder_of("1", "gold"))).metadata["mlflow_unlearn"]
    assert record["recipe"]["exclude"] == spec[form]
    assert record["method"] == "train"
    [entry] = store.client.get_run(store.runs()[0].info.run_id).inputs.dataset_inputs
    assert entry.dataset.digest == Manifest(tuple(set(train.ids) - excluded_by_hand())).digest[:36]
    # The request is about version 1: training something else changes nothing there.
    assert store.requests()[request_id][0] == "pending"


def test_what_was_excluded_has_no_influence(store, cli, tmp_path):
    """Exclude all but two classes: the model cannot say the others."""
    train = load_source(DATA).train
    gone = [i for i, label in zip(train.ids, train.labels, strict=True) if label not in (3, 8)]
    (tmp_path / "ids.txt").write_text("\n".join(gone))
    done = cli(
        *("train", *SHORT[:-4], "--epochs", "20", "--batch-size", "32", "--name", "few"),
        *("--exclude", str(tmp_path / "ids.txt")),
    )
    assert done.code == 0, done.err
    test = load_source(DATA).test
    images = np.stack([np.asarray(test.images[i], np.float32) / 255 for i in range(len(test))])[:, None]
    with torch.no_grad():
        said = mlflow.pytorch.load_model("models:/few/1")(torch.from_numpy(images)).argmax(1)
    assert set(said.tolist()) <= {3, 8}


def test_it_learns_and_says_how_well(store, cli):
    """The template: metrics on the version, measured here from the registered program."""
    tags = store.tags("1")
    for role in ("retain", "val", "test"):
        part = {"retain": load_source(DATA).train}.get(role) or getattr(load_source(DATA), role)
        images = np.stack([np.asarray(part.images[i], np.float32) / 255 for i in range(len(part))])[:, None]
        with torch.no_grad():
            said = mlflow.pytorch.load_model("models:/clf/1")(torch.from_numpy(images)).argmax(1).numpy()
        assert float(tags[f"unlearn.metric.acc_{role}"]) == pytest.approx((said == part.labels).mean(), abs=1e-12)
    assert float(tags["unlearn.metric.acc_test"]) > 0.8
    run = store.client.get_run(tags["unlearn.run_id"])
    assert run.info.status == "FINISHED"
    assert store.client.get_metric_history(run.info.run_id, "loss")[-1].step == 19


def test_the_input_example_shows_test_images_alone(store):
    """It travels with every later version: a training image in it could not be forgotten."""
    folder = folder_of("1", "clf")
    example = mlflow.models.Model.load(str(folder)).load_input_example(str(folder))
    assert example.shape == (2, 1, 8, 8)
    source = load_source(DATA)

    def shown(part) -> list[bool]:
        images = [np.asarray(part.images[i], np.float32) / 255 for i in range(len(part))]
        return [any(np.allclose(image, one[0], atol=1e-6) for image in images) for one in example]

    assert shown(source.test) == [True, True]
    assert shown(source.train) == [False, False]


@pytest.mark.slow
def test_same_seed_same_weights(store, cli):
    for seed in ("7", "7", "8"):
        assert cli("train", *SHORT, "--name", "again", "--seed", seed).code == 0
    digests = [store.tags(version, "again")["unlearn.weights_sha256"] for version in "123"]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.slow
def test_augmentation_is_for_training_alone(store, cli):
    """Other weights than without, the same sets, metrics of plain images."""
    for augment in ("none", "crop-flip"):
        done = cli("train", *SHORT, "--name", "clf-augmented", "--augment", augment)
        assert done.code == 0, done.err
    plain, augmented = (store.tags(version, "clf-augmented")["unlearn.weights_sha256"] for version in "12")
    assert plain != augmented
    record = mlflow.models.Model.load(str(folder_of("2", "clf-augmented"))).metadata["mlflow_unlearn"]
    assert record["recipe"]["augment"] == "crop-flip"
    test = load_source(DATA).test
    images = np.stack([np.asarray(test.images[i], np.float32) / 255 for i in range(len(test))])[:, None]
    with torch.no_grad():
        said = mlflow.pytorch.load_model("models:/clf-augmented/2")(torch.from_numpy(images)).argmax(1).numpy()
    measured = float(store.tags("2", "clf-augmented")["unlearn.metric.acc_test"])
    assert measured == pytest.approx((said == test.labels).mean(), abs=1e-12)


@pytest.mark.slow
def test_pickle(store, cli):
    """A pickled version is unlearned as it is, and its successor is one, too."""
    trained = cli(
        *("train", *SHORT[:-4], "--epochs", "10", "--batch-size", "32", "--name", "p", "--serialization", "pickle")
    )
    assert trained.code == 0, trained.err
    module = mlflow.pytorch.load_model("models:/p/1")
    assert type(module).__name__ == "Net"
    done = cli("unlearn", "--model-uri", "models:/p/1", "--forget", FORGET, "--params", '{"epochs": 1}')
    assert done.code == 0, done.err
    folder = folder_of("2", "p")
    assert (folder / "data" / "model.pth").exists()
    assert not (folder / "data" / "model.pt2").exists()
    successor = mlflow.pytorch.load_model("models:/p/2")
    assert type(successor) is type(module)
    assert not successor.training
    assert not torch.equal(successor[6].weight, module[6].weight)
    old, new = (mlflow.models.Model.load(str(folder_of(version, "p"))) for version in "12")
    assert new.signature == old.signature is not None


def test_requirements_name_releases_and_never_this_package(store, cli):
    lines = (folder_of("1", "clf") / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in lines
    assert all("==" in line and "+" not in line and "unlearn" not in line for line in lines)


@pytest.mark.slow
def test_shards_are_trained_on_and_unlearned_from_the_command_line(empty_store, cli):
    """The path in the record is absolute: `unlearn` finds the shards without data=."""
    data = load_digits()
    Path("tars").mkdir()
    for name, rows in {"train-0": range(100), "train-1": range(100, 200), "test-0": range(200, 400)}.items():
        with tarfile.open(f"tars/{name}.tar", "w") as tar:
            for i in rows:
                image = io.BytesIO()
                Image.fromarray((data.images[i] * 15.9).astype(np.uint8)).save(image, "PNG")
                for kind, content in (("png", image.getvalue()), ("cls", str(data.target[i]).encode())):
                    member = tarfile.TarInfo(f"{i:04d}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    shown = cli("data", "--data", "shards:tars", "--ids", "ids.csv")
    assert shown.code == 0 and "train-0/0000" in shown.out and "train-1/0150,train" in Path("ids.csv").read_text()
    trained = cli(
        *("train", "--data", "shards:tars", "--architecture", "toy:trainable", "--name", "clf"),
        *("--epochs", "8", "--batch-size", "32"),
    )
    assert trained.code == 0, trained.err
    Path("forget.txt").write_text("train-0/0007\ntrain-1/0150\n")
    done = cli(
        "unlearn", "--model-uri", "models:/clf/1", "--forget", "forget.txt", "--force", "--method", "finetune",
        *("--params", '{"epochs": 1}'),
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = manifest_of("2", "clf").mask([f"train-{i // 100}/{i:04d}" for i in range(200)])
    assert np.flatnonzero(~manifest).tolist() == [7, 150]


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_there(store, cli, monkeypatch, tmp_path):
    """As if nothing had happened: one new version with the same weights, no run RUNNING, no checkpoint left."""
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_UNLEARN_CHECKPOINT_SECONDS", "0")
    command = (
        "train",
        *SHORT[:4],
        "--epochs",
        "3",
        "--batch-size",
        "64",
        "--augment",
        "crop-flip",
        "--num-workers",
        "0",
    )
    child, write = os.fork(), Checkpoint.save
    if not child:
        saves = iter(range(1, 9))

        def save(self, state):
            write(self, state)
            if next(saves) == 8:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(Checkpoint, "save", save)
        cli(*command, "--name", "new")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    [killed] = [run for run in store.runs() if run.info.status == "RUNNING"]
    assert len(list(cache.entries(cache.CHECKPOINTS))) == 1
    again, undisturbed = (cli(*command, "--name", name) for name in ("new", "undisturbed"))
    assert (again.code, undisturbed.code) == (0, 0), again.err
    assert f"run {killed.info.run_id} had died and is closed as KILLED" in " ".join(again.err.split())
    assert "continues where this command was killed, in epoch 2" in again.err
    assert store.versions("new") == ["1"]
    digests = [store.tags("1", name)["unlearn.weights_sha256"] for name in ("new", "undisturbed")]
    assert digests[0] == digests[1]
    assert {run.info.status for run in store.runs()} == {"FINISHED", "KILLED"}
    assert not list(cache.entries(cache.CHECKPOINTS))
