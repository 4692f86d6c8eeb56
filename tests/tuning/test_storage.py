"""Storage, queue and leadership of a study, on real databases."""

import multiprocessing
import sqlite3
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.tuning.storage import (
    LeaderLock,
    QueueEmpty,
    count,
    open_storage,
    queue_trials,
    retry,
    storage_errors,
)

FIRST = {"x": 2.0}


def on_dead(study, trial):
    raise AssertionError(f"trial {trial.number} is not dead")


def opened(url, name="ours"):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(storage=open_storage(url, on_dead), study_name=name, load_if_exists=True)


@pytest.fixture(params=["sqlite:///{}/optuna.db", "journal:{}/optuna.log"])
def url(request, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return request.param.format(tmp_path)


def x_squared(trial):
    return trial.suggest_float("x", 0, 10) ** 2


def test_a_study_has_the_trials_that_were_queued(url):
    study = opened(url)
    queue_trials(study, 4, [FIRST])
    queue_trials(study, 4, [FIRST])  # another leader: nothing is missing
    assert count(study, TrialState.WAITING) == 4
    for _ in range(4):
        study.optimize(x_squared, n_trials=1)
    with pytest.raises(QueueEmpty):
        study.optimize(x_squared, n_trials=1)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    assert study.trials[0].params == FIRST
    assert FIRST not in [trial.params for trial in study.trials[1:]]
    queue_trials(study, 6, [FIRST])
    assert count(study, TrialState.WAITING) == 2


def test_failed_trials_are_made_up_for_by_the_next_leader(url):
    study = opened(url)
    queue_trials(study, 2, [FIRST])

    def failing(trial):
        trial.suggest_float("x", 0, 10)
        raise UnlearnError("diverged")

    study.optimize(failing, n_trials=1, catch=(UnlearnError,))
    queue_trials(study, 2, [FIRST])
    assert count(study, TrialState.WAITING) == 2
    assert sum(t.system_attrs.get("fixed_params") == FIRST for t in study.trials) == 1


@pytest.mark.parametrize("sampler", ["qmc", "random", "gp"])
def test_samplers_sample_for_queued_trials(tmp_path, sampler):
    study = opened(f"journal:{tmp_path}/optuna.log")
    study.sampler = {
        "qmc": lambda: optuna.samplers.QMCSampler(seed=0, warn_independent_sampling=False),
        "random": lambda: optuna.samplers.RandomSampler(seed=0),
        "gp": lambda: optuna.samplers.GPSampler(seed=0, n_startup_trials=2),
    }[sampler]()
    queue_trials(study, 4, [FIRST])
    for _ in range(4):
        study.optimize(x_squared, n_trials=1)
    found = [trial.params["x"] for trial in study.trials]
    assert found[0] == 2.0 and len(set(found)) == 4


def test_points_of_a_grid_are_queued_once(url):
    study = opened(url)
    points = [{"x": float(x)} for x in range(5)]
    queue_trials(study, 3, [FIRST], points)
    queue_trials(study, 3, [FIRST], points)
    assert count(study, TrialState.WAITING) == 3
    queue_trials(study, 40, [FIRST], points)
    while count(study, TrialState.WAITING):
        study.optimize(x_squared, n_trials=1)
    assert study.trials[0].params == FIRST
    assert sorted(trial.params["x"] for trial in study.trials) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_claim_is_a_sign_of_life(tmp_path):
    """A process may die between its claim and the first heartbeat: the trial must be missed all the same."""
    url = f"sqlite:///{tmp_path}/optuna.db"
    study = opened(url)
    queue_trials(study, 1, [FIRST])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.ask()
    [(trial_id,)] = sqlite3.connect(tmp_path / "optuna.db").execute("SELECT trial_id FROM trial_heartbeats").fetchall()
    assert trial_id == study.trials[0]._trial_id


def _fail(url, barrier, results):
    storage = open_storage(url, on_dead)
    ids = [trial._trial_id for trial in optuna.load_study(study_name="ours", storage=storage).trials]
    barrier.wait(60)
    done = 0
    for trial_id in ids:
        try:
            done += storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            continue
    results.put(done)


@pytest.mark.slow
def test_a_dead_trial_fails_once(tmp_path):
    """The process that sees it fail queues it again: with plain SQLite storage of Optuna's two processes may."""
    url = f"sqlite:///{tmp_path}/optuna.db"
    study = opened(url)
    queue_trials(study, 20, [FIRST])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(20):
            study.ask()
    assert sum(in_processes(_fail, url, 2)) == 20


def in_processes(function, url, number):
    spawn = multiprocessing.get_context("spawn")
    # They import this file as `tests.…` and have the path that is set here.
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2])
        barrier, results = spawn.Barrier(number), spawn.Queue()
        processes = [spawn.Process(target=function, args=(url, barrier, results)) for _ in range(number)]
        for process in processes:
            process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    return found


def _work(url, barrier, results):
    study = opened(url)

    def objective(trial):
        if done == 0:  # both hold a trial at once: a file's lock may go to one process many times in a row
            barrier.wait(60)
        return x_squared(trial)

    done = 0
    while True:
        try:
            study.optimize(objective, n_trials=1)
            done += 1
        except QueueEmpty:
            results.put(done)
            return


@pytest.mark.slow
def test_two_processes_never_take_the_same_trial(url):
    """On plain SQLite storage of Optuna they do."""
    queue_trials(opened(url), 20, [FIRST])
    taken = in_processes(_work, url, 2)
    assert sum(taken) == 20 and max(taken) < 20
    assert [trial.state for trial in opened(url).trials] == [TrialState.COMPLETE] * 20


def test_one_leads(url):
    study = opened(url)
    first, second, other = LeaderLock(url, study), LeaderLock(url, study), LeaderLock(url, opened(url, "theirs"))
    assert first.take() and first.take()
    assert not second.take()
    assert other.take()
    first.release()
    assert second.take() and not first.take()


def test_one_leads_by_whatever_path_the_file_is_named(tmp_path, monkeypatch):
    """A worker is given the absolute one."""
    monkeypatch.chdir(tmp_path)
    relative, absolute = "sqlite:///own.db", f"sqlite:///{tmp_path / 'own.db'}"
    first, second = LeaderLock(relative, opened(relative)), LeaderLock(absolute, opened(absolute))
    assert first.take() and not second.take()


HOLD = """
import sys, time, optuna
from mlflow_unlearn.tuning.storage import LeaderLock, open_storage
url = sys.argv[1]
study = optuna.load_study(study_name="ours", storage=open_storage(url, None))
held = LeaderLock(url, study)
print(held.take(), flush=True)
time.sleep(100)
"""


def test_leadership_ends_with_its_process(url):
    study = opened(url)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    mine = LeaderLock(url, study)
    assert not mine.take()
    holder.kill()
    holder.wait()
    deadline = time.monotonic() + 10
    while not mine.take():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_dead_trial_is_retried_once(url):
    study = opened(url)
    queue_trials(study, 1, [FIRST])

    def dying(trial):
        trial.suggest_float("x", 0, 10)
        raise UnlearnError("as if killed")

    for again in (True, False):
        study.optimize(dying, n_trials=1, catch=(UnlearnError,))
        assert retry(study, study.trials[-1]) is again
    assert [trial.params for trial in study.trials] == [FIRST, FIRST]
    assert count(study, TrialState.WAITING) == 0


def test_tables_are_made_by_several_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda _: opened(f"sqlite:///{tmp_path}/new.db").study_name, range(4)))
    assert names == ["ours"] * 4


@pytest.mark.parametrize(
    ("storage", "sentence"),
    [
        ("sqlite:///{}/mlflow.db", "is a database of MLflow's: Optuna needs another one"),
        ("sqlite:///:memory:", "storage=sqlite:///:memory: lives in memory"),
        ("optuna.db", "storage=optuna.db is not a database URL: give one such as sqlite:///optuna.db"),
        ("oracle://me:secret@host/db", "'oracle://me:***@host/db': use sqlite, postgresql, mysql, or journal:PATH"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/db", "'postgresql+psycopg://me:***@127.0.0.1:1/db' cannot be"),
        ("mysql://me@127.0.0.1:1/db", "storage=mysql://me@127.0.0.1:1/db needs a driver"),
        ("sqlite:////nowhere/at/all.db", "cannot be opened (unable to open database file)"),
        ("journal:/proc/nowhere/log", "storage=journal:/proc/nowhere/log cannot be read or written"),
        ("sqlite:///{}/text.db", "cannot be opened (file is not a database)"),
        ("sqlite:///{}/other.db", "and is it Optuna's alone?"),
    ],
)  # fmt: skip
def test_unusable_storages(tmp_path, monkeypatch, storage, sentence):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "text.db").write_text("this is not a database, but a long enough text to be read as one. " * 20)
    with sqlite3.connect(tmp_path / "mlflow.db") as mlflows:
        mlflows.execute("CREATE TABLE experiments (experiment_id INTEGER)")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        other.execute("INSERT INTO alembic_version VALUES ('of another program')")
    with pytest.raises(UnlearnError) as error:
        open_storage(storage.format(tmp_path), on_dead)
    assert sentence in str(error.value)
    assert "secret" not in str(error.value)


def test_a_database_that_fails_during_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    url = f"sqlite:///{tmp_path}/optuna.db"
    study = opened(url)
    with sqlite3.connect(tmp_path / "optuna.db") as other:
        other.execute("DROP TABLE trials")
    with pytest.raises(UnlearnError, match="failed .*finished trials are kept"), storage_errors(url):
        study.get_trials()
