"""Real MLflow stores, and the command line run in this process or as one of its own."""

import contextlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.models import infer_signature
from mlflow.tracking import fluent
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from mlflow_unlearn.cli import main

DATA = "digits,train=15%"
FORGET = "random:20%"
TRAIN = ("--data", DATA, "--architecture", "toy:trainable", "--epochs", "10", "--batch-size", "32")
ENSEMBLE = (
    *("--data", "digits,train=30%", "--architecture", "toy:trainable", "--epochs", "12", "--batch-size", "16"),
    *("--ensemble", "2", "--slices", "3"),
)
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@dataclass
class Store:
    """A SQLite store in a folder of its own."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def versions(self, name: str = "clf") -> list[str]:
        return sorted(str(v.version) for v in self.client.search_model_versions(f"name='{name}'"))

    def writable(self) -> bool:
        """Whether no process, stopped during a write, holds SQLite's lock: no other one could go on then."""
        with contextlib.closing(sqlite3.connect(self.folder / "mlflow.db", timeout=0.2)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            connection.rollback()
        return True

    def everything_registered(self) -> dict[str, list[tuple[str, dict[str, str]]]]:
        """Names, versions and their tags: what "the registry is unchanged" means."""
        return {
            model.name: sorted(
                (str(v.version), dict(v.tags)) for v in self.client.search_model_versions(f"name='{model.name}'")
            )
            for model in self.client.search_registered_models()
        }

    def runs(self):
        """All runs, the newest first."""
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        return self.client.search_runs(experiments, order_by=["attributes.start_time DESC"])

    def tags(self, version: str, name: str = "clf") -> dict[str, str]:
        return dict(self.client.get_model_version(name, version).tags)

    def requests(self, version: str = "1", name: str = "clf") -> dict[str, tuple[str, dict]]:
        """id → (state, details)."""
        found = {}
        for key, value in self.tags(version, name).items():
            if key.startswith("unlearn.request."):
                state, _, details = value.partition(" ")
                found[key.removeprefix("unlearn.request.")] = (state, json.loads(details))
        return found


def log_pt2(module: nn.Module, name: str, shape: tuple[int, int, int] = (1, 8, 8)) -> None:
    """Register a module as a team would that does not know us: exported, with an example and a signature."""
    example = np.zeros((2, *shape), np.float32)
    signature = infer_signature(example, np.zeros((2, 10), np.float32))
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            module, name="model", registered_model_name=name, input_example=example, signature=signature,
            pip_requirements=["torch"],
        )  # fmt: skip


def reset_mlflow() -> None:
    """MLflow keeps its URI, active runs and stores in globals."""
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    fluent._active_experiment_id = None


def make_store(folder: Path) -> Store:
    """A store whose artifacts are beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder)
    store.client.create_experiment("tests", artifact_location=(folder / "artifacts").as_uri())
    return store


def use(store: Store, patch: pytest.MonkeyPatch) -> None:
    reset_mlflow()
    patch.setenv("MLFLOW_TRACKING_URI", store.uri)
    patch.setenv("MLFLOW_EXPERIMENT_NAME", "tests")
    patch.delenv("MLFLOW_RUN_ID", raising=False)
    # For `toy` and for the code that is being tested, in processes of their own.
    tests = Path(__file__).parent
    patch.setenv("PYTHONPATH", os.pathsep.join([str(tests), str(tests.parent)]))
    patch.chdir(store.folder)


def relocate(folder: Path, before: str) -> None:
    """Have the databases name their own folder, which was ``before``."""
    for name in ("mlflow.db", "optuna.db"):
        if not (folder / name).exists():
            continue
        connection = sqlite3.connect(folder / name)
        with connection:
            for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for column in [row[1] for row in connection.execute(f"PRAGMA table_info('{table}')")]:
                    connection.execute(
                        f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)',
                        (before, str(folder), before),
                    )
        connection.close()


@contextlib.contextmanager
def copied(template: Store, folder: Path) -> Iterator[Store]:
    """A copy of a store's database, in use inside the block; the template's artifacts stay where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(template.folder / "mlflow.db", folder / "mlflow.db")
    own = Store(folder)
    with pytest.MonkeyPatch.context() as patch:
        use(own, patch)
        yield own
    reset_mlflow()


def call(*arguments: object) -> Outcome:
    """The command line in this process, where `cli` cannot be had: in fixtures that many tests share."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    if mlflow.active_run() is not None:
        pytest.fail("the command left its run active")
    return Outcome(int(end.value.code or 0), out.getvalue(), err.getvalue())


def shell(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own."""
    environment = os.environ | options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-m", "mlflow_unlearn", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        **options,
    )


def digits_folder(root: Path, train: int = 200, held_out: int = 200) -> Path:
    """The first digits as PNG files, one folder a class."""
    data = load_digits()
    for index in range(train + held_out):
        part = "train" if index < train else "test"
        folder = root / part / CLASSES[data.target[index]]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.rint(data.images[index] * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:04}.png")
    return root
