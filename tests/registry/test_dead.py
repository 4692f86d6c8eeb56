"""Runs of processes that have died on this machine, and of no others."""

import os
import signal

import mlflow
import pytest

from mlflow_unlearn.registry.dead import PROCESS_TAG, dead_runs, this_process


@pytest.fixture
def dead() -> str:
    """The tag of a process that has been killed."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, this_process().encode())
        signal.pause()
    tag = os.read(read, 1000).decode()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return tag


def test_of_this_machine_and_running(empty_store, dead):
    host, place, pid, started = dead.rsplit(" ", 3)
    experiment = empty_store.client.get_experiment_by_name("tests").experiment_id
    tags = {
        "dead": dead,
        "alive": this_process(),
        "of another host": f"x{host} {place} {pid} {started}",
        "of a container of this name": f"{host} 000000000000 {pid} {started}",
        "another process has its number now": f"{host} {place} {os.getpid()} {started}",
        "no one knows": f"{host} {place} {pid} None",
    }
    runs = {
        what: empty_store.client.create_run(experiment, tags={PROCESS_TAG: tag}).info.run_id
        for what, tag in tags.items()
    }
    ended = empty_store.client.create_run(experiment, tags={PROCESS_TAG: dead}).info.run_id
    empty_store.client.set_terminated(ended)
    with mlflow.start_run():  # not ours
        found = {run.info.run_id for run in dead_runs(empty_store.client, experiment)}
    assert {what for what, run_id in runs.items() if run_id in found} == {"dead", "another process has its number now"}
    assert len(found) == 2


def test_one_that_was_not_waited_for_is_dead(empty_store):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, this_process().encode())
        os._exit(0)
    tag = os.read(read, 1000).decode()
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and is still listed
    experiment = empty_store.client.get_experiment_by_name("tests").experiment_id
    run_id = empty_store.client.create_run(experiment, tags={PROCESS_TAG: tag}).info.run_id
    assert [run.info.run_id for run in dead_runs(empty_store.client, experiment)] == [run_id]
    os.waitpid(child, 0)
