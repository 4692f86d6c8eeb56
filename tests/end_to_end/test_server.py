"""The story through a real tracking server: HTTP for runs and registry, and artifacts that only it can reach."""

import json
import shutil

import mlflow
import pytest
import toy
from mlflow import MlflowClient
from servers import mlflow_server
from stores import DATA, FORGET, reset_mlflow

from mlflow_unlearn.engine.architectures import weights_digest


@pytest.fixture
def server(blank, tmp_path):
    """The URI of a server of this test's own, and the folder where it keeps artifacts."""
    shutil.copy(blank.folder / "mlflow.db", tmp_path / "server.db")
    with mlflow_server(tmp_path, f"sqlite:///{tmp_path / 'server.db'}") as uri:
        yield uri, tmp_path / "kept"
    reset_mlflow()


@pytest.mark.nightly
def test_the_story_over_http(server, cli, tmp_path, monkeypatch):
    uri, kept = server
    reset_mlflow()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "over http")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    client = MlflowClient(uri)
    trained = cli(
        *("train", "--data", DATA, "--name", "clf", "--architecture", "toy:trainable"),
        *("--epochs", "10", "--batch-size", "32"),
    )
    assert trained.code == 0, trained.err
    client.set_registered_model_alias("clf", "champion", "1")
    filed = cli("request", "--model-uri", "models:/clf@champion", "--forget", FORGET, "--reason", "asked")
    assert filed.code == 0, filed.err
    done = cli("unlearn", "--model-uri", "models:/clf@champion", "--params", '{"epochs": 1}')
    assert done.code == 0, done.err

    version = client.get_model_version("clf", "2")
    run = client.get_run(version.tags["unlearn.run_id"])
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert version.tags["unlearn.source_uri"] == "models:/clf/1"
    assert len(version.description) > 100
    [request] = [v for k, v in client.get_model_version("clf", "1").tags.items() if k.startswith("unlearn.request.")]
    assert request.startswith("done ")
    assert json.loads(request.removeprefix("done "))["by"] == ["models:/clf/2"]
    assert weights_digest(mlflow.pytorch.load_model("models:/clf/2")) == version.tags["unlearn.weights_sha256"]
    assert [m.model_id for m in run.inputs.model_inputs] == [mlflow.models.get_model_info("models:/clf/1").model_id]
    assert {entry.tags[0].value for entry in run.inputs.dataset_inputs} == {"forget", "retain", "val", "test"}
    # The files are stored with the server and not in the working directory.
    names = {path.name for path in kept.rglob("*") if path.is_file()}
    assert {"evidence.json", "request.json", "manifest.csv", "config.yaml", "weights.safetensors"} <= names
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.nightly
def test_the_server_s_password_is_told_nobody(server, cli, tmp_path, monkeypatch):
    """In the URI, where MLflow takes it from: not in errors, not in tags, and not in MLflow's own lines."""
    uri, kept = server
    hidden = uri.replace("://", "://me:***@")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("://", "://me:secret@"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "over http")
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    reset_mlflow()
    refused = cli("unlearn", "--model-uri", "models:/none/1")
    assert (
        refused.code == 2
        and f"there is no registered model 'none' in {uri.replace('://', '://me:***@')}" in refused.err
    )
    # Under `mlflow run` the sentence of a usage error is left on the project's run.
    run = MlflowClient().create_run(MlflowClient().create_experiment("over http"))
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    usage = cli("unlearn", "--model-uri", "models:/none/1", "--precision", uri.replace("://", "://you:secret@"))
    assert usage.code == 2
    monkeypatch.delenv("MLFLOW_RUN_ID")
    errors = [run.data.tags["unlearn.error"] for run in MlflowClient().search_runs([run.info.experiment_id])]
    assert len(errors) == 1 and all("***" in sentence and "secret" not in sentence for sentence in errors)
    # What people type is kept for good: reasons, and specs of what is not there.
    module = toy.original()
    with mlflow.start_run(experiment_id=run.info.experiment_id):
        mlflow.pytorch.log_model(
            module, name="model", registered_model_name="clf", serialization_format="pickle", pip_requirements=["torch"]
        )
    typed = uri.replace("://", "://you:secret@")
    filed = cli(
        *("request", "--model-uri", "models:/clf/1", "--data", "digits,split=drawn", "--forget", "random:5"),
        *("--reason", f"see {typed}", "--requester", typed),
    )
    assert filed.code == 0 and f"View run request clf v1 at: {hidden}/#/experiments/" in filed.out
    lost = cli("train", "--data", f"folder:{typed}", "--name", "new")
    assert lost.code == 2
    assert "secret" not in "".join(end.out + end.err for end in (refused, usage, filed, lost))
    stored = [tmp_path / "server.db", *(path for path in kept.rglob("*") if path.is_file())]
    # MLflow's own tables have columns that are called secret.
    assert len(stored) > 5 and not [path for path in stored if b":secret@" in path.read_bytes()]
