"""What is told of a URL, alone or in a sentence: never its password, whatever it looks like."""

import json
import subprocess
import sys
import warnings

import pytest
from pydantic import ValidationError

from mlflow_unlearn import cli, config
from mlflow_unlearn.console import conceal, first_line, hidden_password, note, storable, without_passwords
from mlflow_unlearn.errors import UnlearnWarning
from mlflow_unlearn.registry.tracking import recorded_options


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@host/db",
        "postgresql+psycopg://me:secret@host:5432/db?sslmode=require",
        "postgresql://host/db?user=me&password=secret",
        "mysql://me:secret@host:abc/db",
        "postgresql:/me:secret@h/db",
        "my-sql://me:secret@host/db",
        " postgresql://me:secret@host/db",
        "postgresql://me:se@secret@host/db",
    ],
)
def test_no_password_is_told(url):
    assert "secret" not in hidden_password(url)
    assert "host" in hidden_password(url) or "h/db" in hidden_password(url)


@pytest.mark.parametrize("url", ["sqlite:///optuna.db", "journal:/shared/log", "optuna.db", "postgresql://me@host/db"])
def test_the_rest_is_told(url):
    assert hidden_password(url) == url


@pytest.mark.parametrize(
    ("uri", "sentence", "told"),
    [
        ("", "at http://me:secret@host:1, or not", "at http://me:***@host:1, or not"),
        ("", "'postgresql+psycopg://me:se@secret@host/db' is none", "'postgresql+psycopg://me:***@host/db' is none"),
        ("", "in mysql://host/db?user=me&password=secret or so", "in mysql://host/db?user=me&password=*** or so"),
        ("https://me:secret@host", "who is secret? http://me:secret@host", "who is ***? http://me:***@host"),
        ("https://me:se/secret#x@host", "https://me:se/secret#x@host has 'secret'", "https://me:***@host has '***'"),
        ("https://me:se%20cret@host", "no user with se cret", "no user with ***"),
        ("https://me:se cret@host", "in https://me:se cret@host", "in https://me:***@host"),
        # What holds none is told as it is.
        ("https://me:pw@host", "models:/pw/1 at http://host:5000/models:/clf@champion", None),
        ("https://me:data@host", "metadata of models:/clf@champion", None),
        ("http://host:5000", "no version at http://host:5000/clf: name@alias", None),
        ("sqlite:////home/me:x/mlflow.db", "in sqlite:////home/me:x/mlflow.db", None),
    ],
)  # fmt: skip
def test_no_sentence_tells_a_password(monkeypatch, uri, sentence, told):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert without_passwords(sentence) == (sentence if told is None else told)


def test_mlflow_s_own_secrets(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret-1")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret-2")
    assert without_passwords("Bearer secret-2, Basic secret-1") == "Bearer ***, Basic ***"


def test_a_sentence_that_is_cut():
    """Amid a password, which then looks like none."""
    assert "sec" not in first_line(OSError("x" * 185 + " http://me:secret@host"))


def test_notes_warnings_and_usage_errors(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", cli._show_warning)
    note("Note: see http://me:secret@host")
    warnings.warn("see http://me:secret@host", UnlearnWarning, stacklevel=1)
    for arguments in (
        ("data", "--data", "http://me:secret@host", "--no-such", "http://me:secret@host"),
        ("http://me:secret@host",),
        ("unlearn", "--model-uri", "models:/clf/1", "--precision", "http://me:secret@host"),
        ("data", "--data", "http://me:secret@host", "--debug", "true"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main([*arguments])
        assert end.value.code == 2
    shown = capsys.readouterr().err
    assert "secret" not in shown and shown.count("http://me:***@host") >= 5 and "Usage: " in shown


@pytest.mark.slow
def test_a_crash_tells_no_password():
    code = (
        "import mlflow_unlearn.cli as cli\n"
        "import mlflow_unlearn.commands.methods as command\n"
        "command.methods = lambda options: int('http://me:secret@host')\n"  # a bug that nobody has foreseen
        "cli.main(['methods'])"
    )
    crashed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert crashed.returncode == 1
    assert "Traceback" in crashed.stderr and "ValueError" in crashed.stderr and "http://me:***@host" in crashed.stderr
    assert "secret" not in crashed.stderr


def test_a_password_that_is_spelled_otherwise():
    """As a driver, Python and JSON write it; also one of a database that no variable of MLflow's names."""
    conceal("postgresql://me:it%27s\\here@host/db")
    conceal("mysql://host/db?user=me&password=hid+den")
    for written in ("it%27s\\here", "it's\\here", repr("it's\\here"), json.dumps("it's\\here"), "hid den"):
        assert without_passwords(f"refused: {written}").replace('"', "").replace("'", "") == "refused: ***"


def test_what_is_stored():
    record = {"reason": "see http://me:secret@host", "steps": ["at sftp://me:secret@host/files", 3], "none": None}
    assert storable(record) == {
        "reason": "see http://me:***@host", "steps": ["at sftp://me:***@host/files", 3], "none": None,
    }  # fmt: skip
    options = config.Promote(
        model_uri="models:/clf/1", override="http://me:secret@host", approver="http://me:secret@host"
    )
    assert "secret" not in options.model_dump_json()


def test_a_storage_by_the_name_of_its_variable(monkeypatch):
    monkeypatch.setenv("STUDIES", "postgresql://me:hidden@host/db")
    options = config.Tune(model_uri="models:/clf/1", storage="env:STUDIES", seed=3)
    assert options.storage == "postgresql://me:hidden@host/db"
    assert recorded_options(options, "storage") == {"storage": "postgresql://me:***@host/db"}
    assert without_passwords("no user hidden") == "no user ***"
    with pytest.raises(ValidationError, match="there is no environment variable 'NONE': set it to the database's URL"):
        config.Tune(model_uri="models:/clf/1", storage="env:NONE")


def test_processes_get_the_storage_by_their_environment(monkeypatch):
    """Any user of the machine can read what they are started with."""
    options = config.Tune(model_uri="models:/clf/1", storage="postgresql://me:hidden@host/db", plan=True, timeout=1.5)
    arguments = config.as_arguments(options)
    assert "hidden" not in " ".join(arguments)
    monkeypatch.setenv(config.STORAGE_VARIABLE, options.storage)
    given = {name[2:].replace("-", "_"): value for name, value in zip(arguments[::2], arguments[1::2], strict=True)}
    assert config.Tune.model_validate(given) == options
