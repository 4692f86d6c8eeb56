"""Several processes on one study: trials are counted exactly, those of a killed one are closed and tried again."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import cache

import optuna
import pytest
import sqlalchemy
from databases import postgres_programs, postgres_server
from optuna.trial import TrialState

FORGET = "random:8%"
"""So few that chance reaches as far as the model tells them apart: else no trial would be feasible."""
TUNE = ("tune", "--model-uri", "models:/clf/1", "--forget", FORGET)
SPACE = '{"epochs": [3, 6]}'
LONG = '{"epochs": [120, 160]}'
"""Trials of seconds, so that a second process comes in time for some."""
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def needs_postgres(test):
    skip = pytest.mark.skipif(postgres_programs() is None, reason="needs Debian's package postgresql")
    return pytest.mark.postgres(skip(test))


@pytest.fixture(scope="module")
def server():
    with postgres_server() as url:
        yield url


@pytest.fixture
def database(server, request):
    """A database of this test's own."""
    name = f"optuna_{abs(hash(request.node.name))}"
    engine = sqlalchemy.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server}/{name}"


def start(*arguments: object, space: str = SPACE) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow_unlearn", *TUNE, "--space", space, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A shell's background job ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end(process, seconds=400) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.05)
    return found


@cache
def reader(url: str) -> optuna.storages.RDBStorage:
    """One for all looks, without a pool: each storage keeps its connections, of which the server has a hundred."""
    return optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": sqlalchemy.pool.NullPool})


def study_of(storage, study="ours"):
    storage = reader(storage) if isinstance(storage, str) else storage
    return optuna.load_study(study_name=study, storage=storage)


def trials(storage, study="ours"):
    try:
        return study_of(storage, study).get_trials(deepcopy=False)
    except (KeyError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError):
        # The command makes its tables at this moment.
        return []


def check_study(store, storage, n_trials, study="ours", epochs=6):
    """Exactly so many, none twice, the published setting once, each with a finished run that names it."""
    found = trials(storage, study)
    done = [trial for trial in found if trial.state in DONE]
    assert len(done) == n_trials
    assert {trial.state for trial in found} <= {*DONE, TrialState.FAIL}
    assert sum((t.params["alpha"], t.params["lr"], t.params["epochs"]) == (2.0, 1e-4, epochs) for t in done) == 1
    runs = {run.info.run_id: run for run in store.runs()}
    ids = [trial.user_attrs["run_id"] for trial in done]
    assert len(set(ids)) == n_trials
    for trial in done:
        run = runs[trial.user_attrs["run_id"]]
        assert run.info.status == "FINISHED"
        assert run.data.tags["unlearn.trial"] == str(trial.number)
        assert run.data.tags["unlearn.study"] == study
    assert not [run for run in runs.values() if run.info.status == "RUNNING"]
    return found


@pytest.mark.slow
@pytest.mark.nightly
@needs_postgres
@pytest.mark.parametrize("victim", ["leader", "another"])
def test_a_worker_is_killed_during_a_trial(store, database, victim):
    """Four commands, 24 trials."""
    arguments = ("--n-trials", 24, "--study", "ours", "--storage", database)
    processes = [start(*arguments) for _ in range(4)]
    by_pid = {process.pid: process for process in processes}

    def doomed():
        """A stopped command in the midst of a trial, when some are done."""
        found = trials(database)
        if sum(trial.state in DONE for trial in found) < 4:
            return None
        parent = study_of(database).user_attrs["parent_run_id"]
        running = [t for t in found if t.state == TrialState.RUNNING and "run_id" in t.user_attrs]
        for trial in running:
            command = trial.user_attrs["command_run_id"]
            if (command == parent) == (victim == "leader"):
                pid = int(store.client.get_run(command).data.tags["unlearn.system.pid"])
                by_pid[pid].send_signal(signal.SIGSTOP)
                time.sleep(0.1)
                # It may have come to the trial's end in the meantime.
                if trials(database)[trial.number].state == TrialState.RUNNING:
                    return trial, parent, command, pid
                by_pid[pid].send_signal(signal.SIGCONT)
        return None

    trial, parent, dead_run, pid = wait_for(doomed)
    by_pid[pid].send_signal(signal.SIGKILL)
    ends = {process.pid: end(process) for process in processes}
    assert {code for other, (code, _, _) in ends.items() if other != pid} == {0}, ends
    found = check_study(store, database, 24)
    [retried] = [t for t in found if t.system_attrs.get("failed_trial") == trial.number]
    assert retried.state in DONE and found[trial.number].state == TrialState.FAIL
    assert retried.params == found[trial.number].params
    assert {store.client.get_run(i).info.status for i in (trial.user_attrs["run_id"], dead_run)} == {"KILLED"}
    assert store.versions() == ["1", "2"]
    # All trials are the children of a run that led, and the other commands' runs point to one.
    leads = {run.info.run_id for run in store.runs() if run.info.run_id == store.tags("2")["unlearn.run_id"]} | {parent}
    assert {run.data.tags["mlflow.parentRunId"] for run in store.runs() if "unlearn.trial" in run.data.tags} <= leads
    commands = [run for run in store.runs() if run.data.tags.get("unlearn.command") == "tune"]
    assert Counter(run.info.status for run in commands) == {"FINISHED": 3, "KILLED": 1}
    assert {run.data.tags["unlearn.study_run"] for run in commands if "unlearn.study_run" in run.data.tags} <= leads


@pytest.mark.nightly
@needs_postgres
def test_two_workers_share_the_trials(store, cli, database):
    done = cli(*TUNE, "--space", LONG, "--n-trials", 16, "--study", "ours", "--storage", database, "--workers", 2)
    assert done.code == 0, done.err
    assert "ended with exit code" not in done.err
    found = check_study(store, database, 16, epochs=120)
    assert len({trial.user_attrs["command_run_id"] for trial in found}) == 2
    assert store.versions() == ["1", "2"]


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    "where",
    ["sqlite:///{}/trials.db", "journal:{}/trials.log"],
)
def test_two_workers_without_a_server(store, cli, tmp_path, where):
    storage = where.format(tmp_path)
    done = cli(*TUNE, "--space", LONG, "--n-trials", 16, "--study", "ours", "--storage", storage, "--workers", 2)
    assert done.code == 0, done.err
    assert ("a journal file has no heartbeats" in done.err) == where.startswith("journal")
    if where.startswith("journal"):
        path = storage.removeprefix("journal:")
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
    found = check_study(store, storage, 16, epochs=120)
    assert len({trial.user_attrs["command_run_id"] for trial in found}) == 2


@pytest.mark.nightly
@pytest.mark.slow
@needs_postgres
def test_two_sweeps_at_once(store, database):
    """One tracking store, one database: both correct."""
    sweeps = {name: start("--n-trials", 6, "--study", name, "--storage", database) for name in ("a", "b")}
    ends = {name: end(process) for name, process in sweeps.items()}
    assert {code for code, _, _ in ends.values()} == {0}, ends
    for name in sweeps:
        check_study(store, database, 6, study=name)
    assert store.versions() == ["1", "2", "3"]
    assert {store.tags(version)["unlearn.study"] for version in "23"} == {"a", "b"}


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_waits_for_the_trial(store, tmp_path, workers):
    """The first one; what is left is done by the command that it prints."""
    storage = f"sqlite:///{tmp_path}/trials.db"
    arguments = ("--n-trials", 16, "--storage", storage, "--study", "ours")
    process = start(*arguments, "--workers", workers, space=LONG)

    def all_work():
        busy = [t for t in trials(storage) if t.state == TrialState.RUNNING and "run_id" in t.user_attrs]
        return len(busy) == workers

    wait_for(all_work)
    process.send_signal(signal.SIGINT)
    code, _, err = end(process)
    assert code == 130
    assert f"of 16 trials. To continue: the same command with --study ours --storage {storage}" in err
    found = trials(storage)
    assert TrialState.RUNNING not in {trial.state for trial in found}
    assert workers <= sum(trial.state in DONE for trial in found) < 16
    assert store.versions() == ["1"]
    commands = [run for run in store.runs() if run.data.tags.get("unlearn.command") == "tune"]
    assert [run.info.status for run in commands] == ["KILLED"] * workers
    assert end(start(*arguments, space=LONG))[0] == 0
    check_study(store, storage, 16, epochs=120)
    assert store.versions() == ["1", "2"]


@pytest.mark.nightly
def test_sigterm_queues_the_trial_again(store, tmp_path):
    storage = f"sqlite:///{tmp_path}/trials.db"
    arguments = ("--n-trials", 3, "--storage", storage, "--study", "ours")
    process = start(*arguments)
    running = wait_for(lambda: [t for t in trials(storage) if t.state == TrialState.RUNNING and t.params])
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 143
    found = trials(storage)
    assert found[running[0].number].state == TrialState.FAIL
    assert found[-1].state == TrialState.WAITING and found[-1].params == found[running[0].number].params
    assert store.client.get_run(running[0].user_attrs["run_id"]).info.status == "KILLED"
    assert end(start(*arguments))[0] == 0
    check_study(store, storage, 3)


@pytest.mark.nightly
@pytest.mark.slow
@needs_postgres
def test_a_suspended_leader_goes_on(store, database):
    """As a laptop's lid does: its trial is given up and run by another; then it goes on and registers."""
    arguments = ("--n-trials", 12, "--study", "ours", "--storage", database)
    first = start(*arguments, space=LONG)
    wait_for(lambda: any(trial.state in DONE for trial in trials(database)))
    second = start(*arguments, space=LONG)
    first_run = study_of(database).user_attrs["parent_run_id"]

    def suspended():
        """The leader, during a trial, while the other is at work."""
        busy = [t for t in trials(database) if t.state == TrialState.RUNNING and "command_run_id" in t.user_attrs]
        mine = [trial for trial in busy if trial.user_attrs["command_run_id"] == first_run]
        if not mine or len(busy) < 2:
            return None
        first.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        running = trials(database)[mine[0].number].state == TrialState.RUNNING
        if running and store.writable():
            return mine[0]
        first.send_signal(signal.SIGCONT)
        return None

    trial = wait_for(suspended)
    wait_for(lambda: trials(database)[trial.number].state == TrialState.FAIL)
    first.send_signal(signal.SIGCONT)
    (code, _, err), (other, _, other_err) = end(first), end(second)
    assert (code, other) == (0, 0), err + other_err
    assert "its trial was given up, so its result is dropped" in err
    check_study(store, database, 12, epochs=120)
    assert store.versions() == ["1", "2"]
    assert store.tags("2")["unlearn.run_id"] == first_run
