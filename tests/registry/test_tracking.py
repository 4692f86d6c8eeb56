"""The run of a command: how it ends, what it records, and the store's first answer."""

import multiprocessing
import os
import shutil
import socket
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service.utils import _get_store
from servers import free_port
from stores import Store, reset_mlflow

from mlflow_unlearn import config
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry import tracking

HIDDEN = config.Unlearn(model_uri="models:/clf/1", forget="group:patient=17", hash_ids=True)


@pytest.mark.parametrize(
    ("error", "raised", "status", "tag"),
    [
        (UnlearnError("no such file: give another"), UnlearnError, "FAILED", "no such file: give another"),
        (OSError(28, "No space left"), UnlearnError, "FAILED", "a file cannot be read or written ([Errno 28] No space"),
        (MlflowException("gone\nTraceback"), UnlearnError, "FAILED", "MlflowException: gone"),
        (ZeroDivisionError("0"), ZeroDivisionError, "FAILED", "ZeroDivisionError: 0"),
        (KeyboardInterrupt(), KeyboardInterrupt, "KILLED", "stopped by a signal"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_how_a_run_ends(empty_store, error, raised, status, tag):
    with pytest.raises(raised), tracking.run("data", config.Data(data="digits")):
        raise error
    [run] = empty_store.runs()
    assert run.info.status == status
    assert run.data.tags["unlearn.error"].startswith(tag)
    options = {"data": "digits", "ids": "None", "format": "table", "debug": "False"}
    assert run.data.params == {f"unlearn.{name}": value for name, value in options.items()}
    assert mlflow.active_run() is None


def test_runs_that_start_meanwhile_can_be_tagged_with_ours(empty_store):
    with tracking.run("data", config.Data(data="digits")) as run_id:
        assert (os.environ["MLFLOW_UNLEARN_RUN_ID"], os.environ["MLFLOW_UNLEARN_COMMAND"]) == (run_id, "data")
    assert not {"MLFLOW_UNLEARN_RUN_ID", "MLFLOW_UNLEARN_COMMAND"} & os.environ.keys()


def test_hashed_ids_are_in_no_error_of_a_run_inside(empty_store):
    with pytest.raises(UnlearnError), tracking.run("unlearn", HIDDEN), tracking.nested_run("attempt 1"):
        raise UnlearnError("patient 17 is unknown")
    with pytest.raises(UnlearnError), tracking.run("data", config.Data(data="digits")), tracking.nested_run("one"):
        raise UnlearnError("patient 17 is unknown")
    tags = [run.data.tags["unlearn.error"] for run in empty_store.runs()]
    assert len(tags) == 4 and ["17" in tag for tag in tags] == [True, True, False, False]


def test_hashed_ids_are_in_no_option_and_no_error(empty_store):
    assert tracking.recorded_options(HIDDEN, "forget") == {"forget": "group:…"}
    with pytest.raises(UnlearnError, match="patient 17"), tracking.run("unlearn", HIDDEN):
        raise UnlearnError("patient 17 is unknown")
    [run] = empty_store.runs()
    assert "17" not in run.data.tags["unlearn.error"] and run.data.params["unlearn.forget"] == "group:…"


@pytest.mark.parametrize(("error", "status"), [(UnlearnError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_nested_runs_end_by_themselves(empty_store, error, status):
    with tracking.run("data", config.Data(data="digits")) as parent:
        with pytest.raises(type(error)), tracking.nested_run("trial 0") as first:
            raise error
        with tracking.nested_run("trial 1", parent=first) as second:
            pass
    runs = {run.info.run_id: run for run in empty_store.runs()}
    assert {run_id: runs[run_id].info.status for run_id in (parent, first, second)} == {
        **{parent: "FINISHED", first: status, second: "FINISHED"}
    }
    assert runs[first].data.tags["mlflow.parentRunId"] == parent
    assert runs[second].data.tags["mlflow.parentRunId"] == first


def test_a_lost_run_is_closed_once(empty_store):
    with tracking.run("data", config.Data(data="digits")) as finished:
        pass
    lost = empty_store.client.create_run(mlflow.get_run(finished).info.experiment_id).info.run_id
    for run_id in (finished, lost):
        tracking.fail_lost_run(run_id)
    assert mlflow.get_run(finished).info.status == "FINISHED"
    assert mlflow.get_run(lost).info.status == "FAILED"
    assert mlflow.get_run(lost).data.tags["unlearn.error"] == "a process of this command was killed"


def test_a_server_that_never_answers(store, monkeypatch):
    """It takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UnlearnError) as refused:
            tracking.connect(patience=1)
    assert str(refused.value).startswith(
        f"the tracking store {uri} cannot be reached (no answer within 1 seconds): start it, or set MLFLOW_TRACKING_URI"
    )


def test_retries_of_the_user_do_not_lengthen_the_first_question(store, monkeypatch):
    """They hold for what comes after it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UnlearnError, match="cannot be reached") as refused:
        tracking.connect(patience=8)
    assert "no answer within" not in str(refused.value)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_a_database_that_is_full(empty_store):
    """SQLite's own error, for a limit on the file's size."""
    with pytest.raises(UnlearnError) as refused, tracking.run("data", config.Data(data="digits")) as run_id:
        engine = _get_store().engine

        @sqlalchemy.event.listens_for(engine, "checkout")
        def full(connection, *_):
            [pages] = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")

        for number in range(99):
            mlflow.set_tag(f"tag {number}", "x" * 5000)
    sqlalchemy.event.remove(engine, "checkout", full)
    assert str(refused.value).startswith("the tracking store failed (database or disk is full): check its space")
    assert mlflow.get_run(run_id).info.status == "FAILED"


def database(path, *tables: str) -> None:
    with closing(sqlite3.connect(path)) as made:
        for table in tables:
            made.execute(f"CREATE TABLE {table} (x)")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("{}", "set MLFLOW_TRACKING_URI to a server or a database"),
        ("file://{}", "set MLFLOW_TRACKING_URI to a server or a database"),
        ("sqlite:///{}", "Is a directory"),
        ("sqlite:///{}/text.db", "the file is not a SQLite database"),
        ("sqlite:///{}/theirs.db", "the database is another program's, with the tables 'alembic_version', 'studies'"),
        ("sqlite+pysqlite:///{}/theirs.db", "the database is another program's"),
        ("sqlite:///{}/text.db/mlflow.db", "no file can be made in"),
        ("sqlite:////proc/nowhere/mlflow.db", "cannot be opened"),
    ],
)
def test_what_is_not_a_store(store, monkeypatch, capsys, tmp_path, uri, says):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "text.db").write_text("not a database\n")
    database(folder / "theirs.db", "studies", "alembic_version")
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(folder))
    mlflow.set_tracking_uri(None)
    started = time.monotonic()
    with pytest.raises(UnlearnError) as refused:
        tracking.connect(new=True)
    assert time.monotonic() - started < 5
    assert says in str(refused.value) and str(refused.value).startswith("the tracking store ")
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before
    assert capsys.readouterr() == ("", "")  # MLflow announces its own attempts


def test_a_store_that_is_made_and_one_that_is_in_use(store, blank, monkeypatch, tmp_path):
    """A file that is empty, and a database that somebody is writing to."""
    tracking.connect()
    shutil.copy(blank.folder / "mlflow.db", tmp_path / "busy.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'busy.db'}")
    mlflow.set_tracking_uri(None)
    with closing(sqlite3.connect(tmp_path / "busy.db")) as busy:
        busy.execute("BEGIN IMMEDIATE")
        assert tracking.connect().search_experiments()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("closed", "says"),
    [
        ("mlflow.db", "cannot be opened ([Errno 13] Permission denied"),
        ("", "attempt to write a readonly database"),
        ("artifacts", "a file cannot be read or written ([Errno 13] Permission denied"),
    ],
)
def test_what_another_user_may_not_write(blank, closed, says):
    """As root everything may be written: in a process that is nobody's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        own = make_writable(blank, Path(folder), but=closed)
        child = multiprocessing.get_context("fork").Process(target=nobody, args=(own, f"{folder}/said"))
        child.start()
        child.join(60)
        said = Path(folder, "said").read_text()
        assert child.exitcode == 0 and says in said, said
        with closing(sqlite3.connect(own.folder / "mlflow.db")) as stored:
            assert stored.execute("SELECT count(*) FROM runs WHERE status != 'FAILED'").fetchall() == [(0,)]


def make_writable(blank: Store, folder: Path, *, but: str) -> Store:
    """A store that everybody may write to, but for one part of it."""
    folder.chmod(0o777)
    own = Store(folder / "store")
    for part in (own.folder, own.folder / "artifacts"):
        part.mkdir()
    shutil.copy(blank.folder / "mlflow.db", own.folder)
    own.client.create_experiment("open", artifact_location=(own.folder / "artifacts").as_uri())
    for part in (own.folder, own.folder / "artifacts", own.folder / "mlflow.db"):
        part.chmod(0o777)
    part = own.folder / but
    part.chmod(0 if but == "mlflow.db" else 0o555)
    if not but:
        (own.folder / "mlflow.db").chmod(0o444)
    return own


def nobody(store: Store, said: str) -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    reset_mlflow()
    os.environ |= {"MLFLOW_TRACKING_URI": store.uri, "MLFLOW_EXPERIMENT_NAME": "open"}
    try:
        with tracking.run("data", config.Data(data="digits")):
            pass
    except UnlearnError as error:
        Path(said).write_text(str(error))
        os._exit(0)
    os._exit(1)
