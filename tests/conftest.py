"""What all tests share: no cache of the user's, real MLflow stores, and the command line run in this process."""

import gc
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from chains import LENIENT, QUICK, STRICT
from machine import pytest_collection_modifyitems, pytest_sessionfinish  # noqa: F401  (hooks)
from sharding import SHARDED, placed_at
from stores import DATA, ENSEMBLE, FORGET, TRAIN, Outcome, Store, call, copied, make_store, relocate, reset_mlflow, use

from mlflow_unlearn import console
from mlflow_unlearn.cli import main


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C, and its children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Libraries make a million objects that stay; looking through them for garbage takes a seventh of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """No test reads or fills the user's cache, in this process or in one that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.delenv("COLUMNS", raising=False)  # of the terminal that the tests are started in: tables fit it
        yield


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch):
    """A password that one test uses is hidden in no other: 'hidden' itself stands in every page (``aria-hidden``)."""
    monkeypatch.setattr(console, "_secret_urls", set())


@pytest.fixture(scope="session")
def blank(tmp_path_factory) -> Store:
    """Nothing in it. Made once, since MLflow takes seconds to create its tables."""
    store = make_store(tmp_path_factory.mktemp("blank"))
    reset_mlflow()
    return store


@pytest.fixture(scope="session")
def template(blank, tmp_path_factory) -> Store:
    """clf version 1: a small network that has learned 15 % of the digits. Made once, copied by every test."""
    with copied(blank, tmp_path_factory.mktemp("template")) as store:
        with pytest.raises(SystemExit) as end:
            main(
                [
                    *("train", "--data", DATA, "--name", "clf", "--architecture", "toy:trainable"),
                    *("--epochs", "20", "--lr", "0.05", "--batch-size", "32"),
                ]
            )
        if end.value.code:
            pytest.fail("the template model could not be trained")
    return store


@pytest.fixture
def empty_store(blank, tmp_path) -> Iterator[Store]:
    """A store with nothing in it."""
    with copied(blank, tmp_path / "store") as own:
        yield own


@pytest.fixture
def store(template, tmp_path) -> Iterator[Store]:
    """A copy of the template's database; the template's artifacts stay where they are and are only read."""
    with copied(template, tmp_path / "store") as own:
        yield own


@pytest.fixture(scope="session")
def keys(tmp_path_factory) -> Path:
    """Two pairs of EC keys, ours and theirs."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], check=True)
        subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def chain_template(template, keys, tmp_path_factory) -> Store:
    """clf: 1 → 2 (request A) → 3 (request B) → 4 (request C, signed). Made once, copied by every module."""
    with copied(template, tmp_path_factory.mktemp("chain")) as store:
        (store.folder / "lenient.yaml").write_text(LENIENT)
        (store.folder / "strict.yaml").write_text(STRICT)
        for version, more in (("1", ()), ("2", ()), ("3", ("--sign-key", keys / "ours.pem"))):
            uri = f"models:/clf/{version}"
            filed = call(
                *("request", "--model-uri", uri, "--forget", f"random:20,seed={version}"),
                *("--requester", "pseudonym-7", "--reason", "<script>alert('x')</script>"),
            )
            assert filed.code == 0, filed.err
            done = call("unlearn", "--model-uri", uri, "--params", QUICK, *more)
            assert done.code == 0, done.err
    return store


@pytest.fixture(scope="session")
def ensemble_template(blank, tmp_path_factory) -> Store:
    """clf/1: two shards of three slices, of 30 % of the digits. Made once, copied by every module."""
    with copied(blank, tmp_path_factory.mktemp("ensemble")) as store:
        assert call("train", *ENSEMBLE, "--name", "clf").code == 0
    return store


@pytest.fixture(scope="module")
def ensemble_store(ensemble_template, tmp_path_factory) -> Iterator[Store]:
    """A copy of its database; the artifacts stay where they are and are only read."""
    with copied(ensemble_template, tmp_path_factory.mktemp("ensemble_copy")) as store:
        yield store


@pytest.fixture(scope="session")
def gold_template(template, tmp_path_factory) -> Store:
    """clf/2 has forgotten a fifth, gold/1 never saw it. Made once, copied by every module."""
    with copied(template, tmp_path_factory.mktemp("gold")) as store:
        assert call("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
        [request_id] = store.requests()
        assert call("train", *TRAIN, "--name", "gold", "--exclude", request_id, "--seed", "1").code == 0
        assert call("unlearn", "--model-uri", "models:/clf/1", "--params", '{"epochs": 2, "lr": 0.003}').code == 0
    return store


@pytest.fixture(scope="module")
def gold_store(gold_template, tmp_path_factory) -> Iterator[Store]:
    """A copy of its database; its files are shared and only read."""
    with copied(gold_template, tmp_path_factory.mktemp("gold")) as store:
        yield store


@pytest.fixture(scope="module")
def chain(chain_template, tmp_path_factory) -> Iterator[Store]:
    """A copy of its database; its files are shared, and who changes one puts it back."""
    with copied(chain_template, tmp_path_factory.mktemp("chain")) as store:
        for name in ("lenient.yaml", "strict.yaml"):
            shutil.copy(chain_template.folder / name, store.folder / name)
        yield store


@pytest.fixture(scope="session")
def closed_template(blank, template, keys, tmp_path_factory) -> Store:
    """clf: 1 → 2 by one signed request; audited, failed, passed, champion, and 1 is retired. Its files are its own."""
    store = Store(tmp_path_factory.mktemp("closed") / "store")
    shutil.copytree(blank.folder, store.folder)  # where the files of the template are as well
    shutil.copy(template.folder / "mlflow.db", store.folder / "mlflow.db")
    relocate(store.folder, str(blank.folder))
    with pytest.MonkeyPatch.context() as patch:
        use(store, patch)
        patch.setenv("MLFLOW_UNLEARN_CACHE", str(store.folder / "cache"))  # `retire` deletes from it
        (store.folder / "lenient.yaml").write_text(LENIENT)
        (store.folder / "strict.yaml").write_text(STRICT)
        new = ("--model-uri", "models:/clf/2")
        for code, *arguments in (
            (
                0,
                "request",
                "--model-uri",
                "models:/clf/1",
                "--forget",
                "random:20",
                "--requester",
                "p-7",
                "--reason",
                "&",
            ),
            (0, "unlearn", "--model-uri", "models:/clf/1", "--params", QUICK, "--sign-key", keys / "ours.pem"),
            (3, "audit", *new),
            (3, "review", *new, "--policy", "strict.yaml"),
            (0, "review", *new, "--policy", "lenient.yaml"),
            (0, "promote", *new),
            (0, "retire", "--model-uri", "models:/clf/1", "--reason", "replaced", "--yes", "true"),
        ):
            done = call(*arguments)
            assert done.code == code, done.err
    reset_mlflow()
    return store


@pytest.fixture(scope="module")
def closed(closed_template, tmp_path_factory) -> Iterator[Store]:
    """A copy of its database; its files are shared and only read."""
    with copied(closed_template, tmp_path_factory.mktemp("closed")) as store:
        yield store


@pytest.fixture(scope="session")
def sharded_template(blank, tmp_path_factory) -> Store:
    """clf/1: two shards of three slices; clf/2 has forgotten exactly one sample, of shard 0 and its slice 1."""
    store = Store(tmp_path_factory.mktemp("sharded") / "store")
    store.folder.mkdir()
    shutil.copy(blank.folder / "mlflow.db", store.folder)  # and nothing that other tests have stored beside it
    relocate(store.folder, str(blank.folder))
    with pytest.MonkeyPatch.context() as patch:
        use(store, patch)
        patch.setenv("MLFLOW_UNLEARN_CACHE", str(store.folder / "cache"))
        (store.folder / "ids.csv").write_text(f"id\n{placed_at(0, 1)[0]}\n")
        for command in (
            ("train", *SHARDED, "--name", "clf"),
            ("request", "--model-uri", "models:/clf/1", "--forget", "ids.csv"),
            ("unlearn", "--model-uri", "models:/clf/1", "--method", "exact"),
        ):
            done = call(*command)
            assert done.code == 0, done.err
    reset_mlflow()
    return store


@pytest.fixture
def sharded(sharded_template, tmp_path, monkeypatch) -> Iterator[Store]:
    """A copy with its files."""
    store = Store(tmp_path / "sharded")
    shutil.copytree(sharded_template.folder, store.folder)
    relocate(store.folder, str(sharded_template.folder))
    use(store, monkeypatch)
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(store.folder / "cache"))
    yield store
    reset_mlflow()


@pytest.fixture
def cli(capsys):
    """Run the command line in this process: exit code, standard output, standard error."""

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        reset_active_runs()
        captured = capsys.readouterr()
        return Outcome(int(end.value.code or 0), captured.out, captured.err)

    return run


def reset_active_runs() -> None:
    if mlflow.active_run() is not None:
        pytest.fail("the command left its run active")
