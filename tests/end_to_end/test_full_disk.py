"""A disk that is full, wherever a command writes: a sentence, a run that has FAILED, and nothing half registered."""

import builtins
import errno
import os
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import pytest
from chains import QUICK
from stores import DATA, call

TWO, FOUR = ("--model-uri", "models:/clf/2"), ("--model-uri", "models:/clf/4")
COMMANDS = {
    "train": ("train", "--data", DATA, "--name", "new", "--architecture", "toy:trainable", "--epochs", "1"),
    "request": ("request", *FOUR, "--forget", "random:9,seed=4"),
    "unlearn": ("unlearn", *FOUR, "--forget", "random:9,seed=5", "--params", QUICK),
    "review": ("review", *TWO, "--policy", "lenient.yaml"),
    "promote": ("promote", *TWO, "--policy", "lenient.yaml", "--override", "in spite of all"),
    "evaluate": ("evaluate", *TWO),
}


@pytest.fixture
def disk(monkeypatch, chain_template):
    """The artifact store's: `left` is how many files more have room; the next one meets the system's own error."""
    root = str(chain_template.client.get_experiment_by_name("tests").artifact_location).removeprefix("file://")
    disk = SimpleNamespace(left=10**9, written=0)
    opened, created = builtins.open, os.open

    def write(file):
        if not isinstance(file, int) and os.fsdecode(file).startswith(root):
            disk.written += 1
            if disk.written > disk.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(file))

    def full_open(file, mode="r", *arguments, **options):
        if set(mode) & set("wax+"):
            write(file)
        return opened(file, mode, *arguments, **options)

    def full_create(file, flags, *arguments, **options):
        if flags & (os.O_WRONLY | os.O_RDWR):
            write(file)
        return created(file, flags, *arguments, **options)

    monkeypatch.setattr(builtins, "open", full_open)
    monkeypatch.setattr(os, "open", full_create)
    return disk


def registered(store) -> list[list[tuple]]:
    """What is registered, the models that are logged, and the runs that have not ended."""
    there = "FROM model_versions WHERE current_stage != 'Deleted_Internal'"
    questions = (
        "SELECT name FROM registered_models",
        "SELECT name, alias, version FROM registered_model_aliases",
        f"SELECT name, version, source, description {there}",
        f"SELECT * FROM model_version_tags WHERE (name, version) IN (SELECT name, version {there})",
        "SELECT model_id FROM logged_models WHERE lifecycle_stage = 'active'",
        "SELECT run_uuid FROM runs WHERE status = 'RUNNING'",
    )
    with closing(sqlite3.connect(store.folder / "mlflow.db")) as database:
        return [sorted(database.execute(question).fetchall(), key=repr) for question in questions]


def check(store, disk, arguments, left: int) -> None:
    before = registered(store)
    disk.left, disk.written = left, 0
    outcome = call(*arguments)
    disk.left = 10**9
    assert outcome.code == 2, (left, outcome)
    sentence = outcome.err.splitlines()[-1]
    assert sentence.startswith("Error: ") and "No space left on device" in sentence and "Traceback" not in outcome.err
    assert registered(store) == before, left
    run = store.runs()[0]
    assert (run.info.status, f"Error: {run.data.tags['unlearn.error']}") == ("FAILED", sentence)


def writes(disk, arguments) -> int:
    """How many files a command writes."""
    disk.written = 0
    done = call(*arguments)
    assert done.code == 0, done.err
    return disk.written


STEPS = {"train": (0, 1, 8), "unlearn": (0, 4, 12), "evaluate": (0,)}


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS)
def test_at_some_steps(chain, disk, command):
    """The first file, the last one, and some between: before the model, in it, and after its registration."""
    steps = STEPS.get(command, (0, 1))
    for left in steps:
        check(chain, disk, COMMANDS[command], left)
    writes(disk, COMMANDS[command])
    if command in ("train", "unlearn"):
        count = writes(disk, COMMANDS[command])  # once more: a request that has been filed is not filed again
        assert count > max(steps)
        check(chain, disk, COMMANDS[command], count - 1)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_at_every_step(chain, disk, command):
    writes(disk, COMMANDS[command])
    for left in range(writes(disk, COMMANDS[command])):
        check(chain, disk, COMMANDS[command], left)
