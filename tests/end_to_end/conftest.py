"""A store that earlier code has written, unpacked."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from stores import Store, relocate, reset_mlflow

ARCHIVE = Path(__file__).with_name("earlier_store.tar.xz")
PLACEHOLDER = "EARLIER_STORE"
"""What `make_store.py` puts where the databases name the store's folder."""


class Earlier(Store):
    """The store in a folder of its own."""

    def tags_of(self, version: str) -> dict[str, str]:
        """Of NAME/VERSION."""
        name, number = version.split("/")
        return self.tags(number, name)

    def aliases(self, name: str = "clf") -> dict[str, str]:
        return {alias: str(number) for alias, number in self.client.get_registered_model(name).aliases.items()}

    def registered(self) -> dict[str, dict[str, str]]:
        return {f"{v.name}/{v.version}": dict(v.tags) for v in self.client.search_model_versions()}

    def commands(self, command: str) -> list[Any]:
        """Runs of a command, the newest first."""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return list(self.client.search_runs(experiments, f"tags.`unlearn.command` = '{command}'"))

    def nested(self, parent: Any) -> list[Any]:
        """Runs inside a run, in order."""
        where = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        return sorted(self.client.search_runs([parent.info.experiment_id], where), key=lambda run: run.info.start_time)

    def artifact(self, run_id: str, path: str) -> Any:
        """A JSON file of a run."""
        return mlflow.artifacts.load_dict(f"runs:/{run_id}/{path}")

    def evidence(self, version: str) -> Any:
        return mlflow.artifacts.load_dict(f"models:/{version}/evidence/evidence.json")


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory) -> Path:
    """The archive's files; the database brought up to date, where this MLflow asks for it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    made = json.loads((folder / "made.json").read_text())
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    try:
        MlflowClient(uri).search_experiments()
    except MlflowException:
        upgrade = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
        done = subprocess.run(upgrade, capture_output=True, text=True)
        if done.returncode:
            if numbers(mlflow.__version__) < numbers(made["mlflow"]):
                pytest.skip(f"the store was written by MLflow {made['mlflow']}, and this is {mlflow.__version__}")
            pytest.fail(done.stderr)
    return folder


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]


@pytest.fixture
def earlier(unpacked, tmp_path, monkeypatch) -> Iterator[Earlier]:
    """A copy of it, in use."""
    store = Earlier(tmp_path / "store")
    shutil.copytree(unpacked, store.folder)
    relocate(store.folder, PLACEHOLDER)
    reset_mlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "earlier")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("MLFLOW_DEFAULT_PREDICTION_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(store.folder)
    yield store
    reset_mlflow()


@pytest.fixture
def loadable(earlier) -> None:
    """Programs that a later torch has exported may be unreadable here, which is torch's own affair."""
    made = json.loads((earlier.folder / "made.json").read_text())
    try:
        mlflow.pytorch.load_model("models:/clf/1")
    except Exception as error:
        if numbers(torch.__version__) < numbers(made["torch"]):
            pytest.skip(f"torch {torch.__version__} cannot read what torch {made['torch']} has exported ({error})")
        raise
