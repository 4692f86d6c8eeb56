"""Processes that have died on this machine, and the notes that are kept of their runs."""

import json
import os
import signal

import pytest

from mlflow_unlearn.registry import dead as module
from mlflow_unlearn.registry.dead import RunNote, died, notes, of_run, this_process


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "mlflow-unlearn" / "runs"


@pytest.fixture
def dead() -> str:
    """A process that has been killed."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, this_process().encode())
        signal.pause()
    name = os.read(read, 1000).decode()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return name


def test_who_has_died(dead):
    host, place, pid, started = dead.rsplit(" ", 3)
    assert died(dead) and died(f"{host} {place} {os.getpid()} {started}"), "another process has its number now"
    assert not died(this_process())
    others = (f"x{host} {place} {pid} {started}", f"{host} 000000000000 {pid} {started}", f"{host} {place} {pid} None")
    assert not any(map(died, (*others, "", "x", f"{host} {place} x {started}")))


def test_one_that_was_not_waited_for_has_died():
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, this_process().encode())
        os._exit(0)
    name = os.read(read, 1000).decode()
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and is still listed
    assert died(name)
    os.waitpid(child, 0)


def test_a_note_is_of_one_store_and_goes_with_its_run(empty_store, state, monkeypatch):
    own = RunNote.begin(command="data")
    assert of_run("r") is None
    own.add(run="r")
    assert of_run("r").facts == own.facts and own.facts["command"] == "data"
    assert state.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(module, "_store", lambda: "another")
    assert notes() == []
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(state.parents[1]))
    (state / "damaged.json").write_text("{")
    (state / "list.json").write_text("[]")
    assert [one.name for one in notes()] == [own.name]
    own.drop()
    own.drop()
    assert notes() == []


def test_notes_of_dead_processes_do_not_stay_for_ever(empty_store, state, dead):
    own = RunNote.begin(process=dead)
    assert len(notes()) == 1
    os.utime(state / f"{own.name}.json", (0, 0))
    assert notes() == [] and not list(state.iterdir())


def test_where_no_note_can_be_kept_the_command_goes_on(empty_store, state, capsys):
    state.parents[1].write_text("a file where the folder should be")
    own = RunNote.begin()
    own.add(run="r")
    own.drop()
    assert capsys.readouterr().err.count("its run stays open") == 1 and notes() == []


def test_what_a_note_says_is_whole(empty_store, state):
    own = RunNote.begin()
    for number in range(3):
        own.add(run=str(number))
    assert [path.suffix for path in state.iterdir()] == [".json"]
    assert json.loads(next(state.iterdir()).read_text())["run"] == "2"
