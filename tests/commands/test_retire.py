"""Where forgotten data still lives, and how it is removed: on a store whose artifacts are this test's own."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import mlflow
import pytest
from stores import DATA, call, make_store, reset_mlflow, use

from mlflow_unlearn import cache

QUICK = '{"epochs": 2, "lr": 0.003}'


@pytest.fixture
def own(tmp_path, monkeypatch):
    """clf 1 → 2, and a copy of version 1 under another name; artifacts lie in the test's folder."""
    store = make_store(tmp_path / "own")
    use(store, monkeypatch)
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "cache"))
    trained = call(
        *("train", "--data", DATA, "--name", "clf", "--architecture", "toy:trainable"),
        *("--epochs", "20", "--lr", "0.05", "--batch-size", "32"),
    )
    assert trained.code == 0, trained.err
    assert call("request", "--model-uri", "models:/clf/1", "--forget", "random:20").code == 0
    done = call("unlearn", "--model-uri", "models:/clf/1", "--params", QUICK)
    assert done.code == 0, done.err
    store.client.copy_model_version("models:/clf/1", "elsewhere")
    yield store
    reset_mlflow()


def weights_files(store) -> list[Path]:
    """Every file of the store with the bytes of version 1's weights."""
    original = hashlib.sha256(WEIGHTS["clf/1"]).hexdigest()
    files = [path for path in store.folder.rglob("*") if path.is_file()]
    return [path for path in files if hashlib.sha256(path.read_bytes()).hexdigest() == original]


WEIGHTS: dict[str, bytes] = {}


def test_exposure_and_retirement(own):
    folder = Path(mlflow.artifacts.download_artifacts("models:/clf/1/extra_files"))
    WEIGHTS["clf/1"] = (folder / "weights.safetensors").read_bytes()
    own.client.set_registered_model_alias("clf", "champion", "1")
    own.client.set_registered_model_alias("elsewhere", "old", "1")
    own.client.set_model_version_tag("elsewhere", "1", "unlearn.endpoint.edge", "https://edge.example.com")

    shown = call("exposure", "--model-uri", "models:/clf/2")
    assert shown.code == 0, shown.err
    rows = {line.split("│")[1].strip(): line for line in shown.out.splitlines() if line.startswith("│ models:/")}
    assert "holds it" in rows["models:/clf/1"] and "champion" in rows["models:/clf/1"]
    assert "forgot it" in rows["models:/clf/2"]
    assert "holds it" in rows["models:/elsewhere/1"] and "edge" in rows["models:/elsewhere/1"]
    entries = [path for path, facts in cache.entries("outputs")]
    assert entries and all(str(path) in shown.out.replace("\n", "") for path in entries)

    refused = call("retire", "--model-uri", "models:/clf/1", "--aliases", "elsewhere@old", "--yes", "true")
    assert refused.code == 3
    assert "clf@champion" in refused.err and "the endpoint edge" in refused.err
    own.client.set_registered_model_alias("clf", "champion", "2")
    own.client.delete_model_version_tag("elsewhere", "1", "unlearn.endpoint.edge")
    assert call("retire", "--model-uri", "models:/clf/1").code == 3  # the copy's alias is not named

    before = own.everything_registered()
    other = call("retire", "--model-uri", "models:/clf/1", "--aliases", "old")
    assert other.code == 2 and "clf@old does not point to models:/clf/1" in other.err  # the target's own name is meant
    planned = call("retire", "--model-uri", "models:/clf/1", "--aliases", "elsewhere@old")
    assert planned.code == 0, planned.err
    assert "would remove the alias elsewhere@old" in planned.out and "Nothing was done" in planned.out
    assert own.everything_registered() == before and len(weights_files(own)) >= 1

    named = ("--aliases", "elsewhere@old", "--reason", "replaced")
    done = call("retire", "--model-uri", "models:/clf/1", *named, "--yes", "true")
    assert done.code == 0, done.err
    assert weights_files(own) == []
    assert not any(path.exists() for path in entries)
    for uri in ("models:/clf/1", "models:/elsewhere/1"):
        with pytest.raises((mlflow.exceptions.MlflowException, OSError)):
            mlflow.pyfunc.load_model(uri)
    mark = json.loads(own.tags("1")["unlearn.retired"])
    assert mark["reason"] == "replaced"
    record = json.loads(mlflow.artifacts.load_text(f"runs:/{mark['run_id']}/evidence/retirement.json"))
    assert record["done"] and set(record["versions"]) == {"models:/clf/1", "models:/elsewhere/1"}
    assert [str(v) for v in own.client.get_registered_model("clf").aliases.values()] == ["2"]
    # What is left still works, and knows what became of its source.
    mlflow.pyfunc.load_model("models:/clf/2")
    checked = call("verify", "--model-uri", "models:/clf/2")
    assert re.search(r"it was retired by \S+", " ".join(checked.out.split()))
    measured = call("verify", "--model-uri", "models:/clf/2", "--recompute", "true")
    assert "metrics" not in measured.err
    assert re.search(r"metrics of original.*not checked", measured.out)
    assert re.search(r"metrics of unlearned.*same", measured.out)
    used = call("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:5")
    assert used.code == 2 and "the files of models:/clf/1 are gone, it was retired by" in used.err
    again = call("retire", "--model-uri", "models:/clf/1", "--yes", "true")
    assert again.code == 2 and "was retired by" in again.err and "replaced; there is nothing left" in again.err
    shown = call("exposure", "--model-uri", "models:/clf/2")
    assert "holds it" not in shown.out and "retired" in shown.out


def test_nothing_to_be_forgotten(own):
    own.client.copy_model_version("models:/clf/2", "plain")
    for key in own.tags("1", "plain"):
        own.client.delete_model_version_tag("plain", "1", key)
    refused = call("exposure", "--model-uri", "models:/plain/1")
    assert refused.code == 2 and "has no forget request" in refused.err


def test_interrupted_and_started_again(own):
    """Marked and its LoggedModel deleted, but the files are still there: the same command finishes it."""
    location = Path(own.client.get_model_version_download_uri("clf", "1").removeprefix("file://"))
    own.client.set_model_version_tag("clf", "1", "unlearn.retired", '{"by": "x", "at": "y", "reason": null}')
    own.client.delete_logged_model(location.parent.name)
    assert (location / "MLmodel").exists()
    shown = call("exposure", "--model-uri", "models:/clf/2")
    assert re.search(r"models:/clf/1 .*holds it", shown.out)
    again = call("retire", "--model-uri", "models:/clf/1", "--yes", "true")
    assert again.code == 0, again.err
    assert not (location / "MLmodel").exists()
    assert call("retire", "--model-uri", "models:/clf/1", "--yes", "true").code == 2


def test_a_copy_of_a_plain_folder_is_served(own, tmp_path):
    """Registered by its path: no LoggedModel tells that the copy has the same files."""
    folder = tmp_path / "plain"
    shutil.copytree(mlflow.artifacts.download_artifacts("models:/clf/1"), folder)
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(re.sub(r"^model_id:.*\n", "", text, flags=re.M))
    own.client.create_registered_model("plain")
    own.client.create_model_version("plain", str(folder))
    own.client.copy_model_version("models:/plain/1", "served")
    own.client.set_registered_model_alias("served", "champion", "1")
    refused = call("retire", "--model-uri", "models:/plain/1", "--yes", "true")
    assert refused.code == 3 and "served@champion" in refused.err
    assert (folder / "MLmodel").exists()
    own.client.delete_registered_model_alias("served", "champion")
    # By the copy's own URI, whose source is no folder.
    done = call("retire", "--model-uri", "models:/served/1", "--yes", "true")
    assert done.code == 0, done.err
    assert not (folder / "MLmodel").exists()
    assert {"unlearn.retired"} <= own.tags("1", "plain").keys() & own.tags("1", "served").keys()
