"""SIGKILL at any moment: afterwards the same command ends as if nothing had happened.

``MLFLOW_UNLEARN_KILLS`` moments are tried, spread over the commands; `make nightly` tries many more, by another seed.
"""

import os
import random
import shutil
import signal
from functools import cache
from typing import Any

import pytest
from chains import LENIENT
from kills import Ended, Forge, contents, leftovers
from stores import DATA, Store, make_store, relocate, reset_mlflow

from mlflow_unlearn import config

KILLS = int(os.environ.get("MLFLOW_UNLEARN_KILLS", "4"))
SEED = int(os.environ.get("MLFLOW_UNLEARN_KILL_SEED", "0"))
TRAIN = ("--data", DATA, "--architecture", "toy:trainable", "--lr", "0.05", "--batch-size", "32")
LAST = ("--model-uri", "models:/clf/2")
SPACE = '{"lr": {"choices": [0.001, 0.003]}}'
COMMANDS = {
    "unlearn": (*LAST, "--params", '{"epochs": 2, "lr": 0.003}'),
    "train": ("--name", "new", *TRAIN, "--epochs", "2"),
    "promote": (*LAST, "--alias", "champion"),
    "retire": ("--model-uri", "models:/clf/1", "--yes", "true"),
    "review": (*LAST, "--policy", "lenient.yaml"),
    "request": ("--model-uri", "models:/clf/1", "--forget", "random:5,seed=9"),
    "compare": (*LAST, "--methods", "finetune", "--seeds", "1", "--register", "best", "--register-as", "best"),
    "tune": (
        *(*LAST, "--methods", "lotus", "--sampler", "grid", "--n-trials", "2", "--space", SPACE),
        *("--storage", "sqlite:///optuna.db", "--study", "kills", "--register-as", "best"),
    ),
}
"""In the order in which they take turns."""


@pytest.fixture(scope="module")
def forge():
    running = Forge({"MLFLOW_UNLEARN_CHECKPOINT_SECONDS": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "COLUMNS": "200"})
    yield running
    running.close()


@pytest.fixture(scope="module")
def base(forge, tmp_path_factory) -> Store:
    """clf: 1 → 2, which has passed a review; a request on each of them, and that on 2 is open."""
    store = make_store(tmp_path_factory.mktemp("base"))
    reset_mlflow()
    (store.folder / "lenient.yaml").write_text(LENIENT)
    for command in (
        ("train", "--name", "clf", *TRAIN, "--epochs", "20"),
        ("request", "--model-uri", "models:/clf/1", "--forget", "random:20,seed=1"),
        ("unlearn", "--model-uri", "models:/clf/1", "--params", '{"epochs": 2, "lr": 0.003}'),
        ("review", *LAST, "--policy", "lenient.yaml"),
        ("request", *LAST, "--forget", "random:20,seed=2"),
    ):
        done = forge.run(store, *command)
        assert done.code == 0, done.err
    return store


@pytest.fixture(scope="module")
def another(base, tmp_path_factory):
    """Copies of the store, with their files."""

    def copy(name: str) -> Store:
        folder = tmp_path_factory.mktemp(name) / "store"
        shutil.copytree(base.folder, folder)
        relocate(folder, str(base.folder))
        return Store(folder)

    return copy


@pytest.fixture(scope="module")
def undisturbed(forge, another):
    """How a command ends that nothing stops, and what the registry holds then."""

    @cache
    def run(command: str) -> tuple[Ended, dict[str, Any]]:
        store = another(command)
        ended = forge.run(store, command, *COMMANDS[command])
        assert ended.code == 0 and not leftovers(store), ended.out + ended.err
        return ended, contents(store)

    return run


def test_all_commands_that_register_or_mark_something_are_killed():
    """Of the others some write nothing, and some but their runs.

    `requests` starts `unlearn`, `listen` is killed in tests of its own, `manifest` stores its list before its one tag.
    """
    nothing = {"data", "methods", "new-method", "policy", "verify", "exposure", "locate"}
    assert {*config.COMMANDS} - {*COMMANDS} - nothing == {*("evaluate audit dossier requests listen manifest".split())}


@pytest.mark.nightly
@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_random_moment(number, forge, another, undisturbed):
    """The commands take turns; where one is killed is drawn by the seed."""
    draw = random.Random(f"{SEED} {number}")
    command = [*COMMANDS][number % len(COMMANDS)]
    ended, expected = undisturbed(command)
    moment = draw.randint(1, ended.writes)
    print(f"MLFLOW_UNLEARN_KILL_SEED={SEED}: {command} is killed before write {moment} of {ended.writes}")
    store = another("killed")
    killed = forge.run(store, command, *COMMANDS[command], die_at=moment)
    assert killed.code == -signal.SIGKILL, killed.err
    again = forge.run(store, command, *COMMANDS[command])
    assert again.code == 0, again.err
    found = contents(store)
    assert found == expected
    assert not leftovers(store)
