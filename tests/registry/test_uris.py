"""What is told of a database's URL: never its password, whatever it looks like."""

import pytest

from mlflow_unlearn.registry.uris import hidden_password


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
