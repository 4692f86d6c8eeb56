"""Who reads what a command prints, or nobody, changes neither what it does nor its exit code."""

import os
import subprocess
import sys
from contextlib import contextmanager

import mlflow
import pytest
from chains import QUICK
from stores import DATA, shell

from mlflow_unlearn.cli import main

TWO, FOUR = ("--model-uri", "models:/clf/2"), ("--model-uri", "models:/clf/4")
COMMANDS = (
    ("--help",),
    ("methods",),
    ("data", "--data", DATA),
    ("verify", *TWO),
    ("exposure", *TWO),
    ("retire", *FOUR),
    ("review", *TWO, "--policy", "lenient.yaml"),
    ("promote", *TWO),
    ("request", *FOUR, "--forget", "random:9,seed=4"),
    # Those of some seconds.
    ("evaluate", *TWO),
    ("unlearn", *FOUR, "--forget", "random:9,seed=5", "--params", QUICK),
    ("train", "--data", DATA, "--name", "new", "--architecture", "toy:trainable", "--epochs", "1"),
)


@contextmanager
def unread(kind: str):
    """A file that takes nothing: a pipe without a reader, or a device that is full."""
    if kind == "full":
        number = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, number = os.pipe()
        os.close(reader)
    file = os.fdopen(number, "w")
    try:
        yield file
    finally:
        file.close()  # by then it writes nowhere, and so does not fail


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["pipe", "full"])
def test_every_command_ends_as_ever(chain, monkeypatch, kind):
    before = chain.versions()
    for arguments in COMMANDS if kind == "pipe" else COMMANDS[:-3]:
        with unread(kind) as out, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            if kind == "pipe":  # both
                patch.setattr(sys, "stderr", out)
            with pytest.raises(SystemExit) as end:
                main(list(arguments))
        assert (end.value.code, mlflow.active_run()) == (0, None), arguments
    assert len(chain.versions()) == len(before) + (kind == "pipe")
    assert str(chain.client.get_registered_model("clf").aliases["champion"]) == "2"
    assert not [run for run in chain.runs() if run.info.status != "FINISHED"]


OTHERS = (" >&-", " >&- 2>&-", " 2>/dev/full", " <&- 2>&1 | true")
SHELL = '"$0" -m mlflow_unlearn "$@"'


@pytest.mark.nightly
@pytest.mark.parametrize(
    "how", [" | true", " >/dev/full", *(pytest.param(how, marks=pytest.mark.slow) for how in OTHERS)]
)
def test_a_process_of_its_own(how):
    """The interpreter, too, writes what is left when it ends, and has a code of its own for that: 120."""
    script = f"{SHELL}{how}; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script, sys.executable, "methods"], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0", done
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr and "BrokenPipe" not in done.stderr
    assert ("Note: standard output cannot be written" in done.stderr) == (how == " >/dev/full")


@pytest.mark.nightly
def test_a_closed_descriptor_is_not_the_database(chain):
    """What is opened next gets its number, and with it all that is printed."""
    done = subprocess.run(
        ["bash", "-c", f"{SHELL} >&- 2>&-", sys.executable, "review", *FOUR, "--policy", "lenient.yaml"],
        cwd=chain.folder,
    )
    assert done.returncode == 0
    assert chain.tags("4")["unlearn.verdict"] == "pass"
    assert shell("verify", *FOUR).returncode == 0
