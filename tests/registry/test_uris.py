"""Tracking URIs, and what of a forget spec may be recorded."""

import pytest

from mlflow_unlearn.registry.uris import absolute_uri, hidden_spec


def test_a_relative_database_is_that_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.mark.parametrize(
    "uri", ["sqlite:////data/mlflow.db", "sqlite://", "sqlite:///:memory:", "https://host", "./runs"]
)
def test_everything_else_stays(uri):
    assert absolute_uri(uri) == uri


@pytest.mark.parametrize("spec", ["random:20%", "request:0123456789ab", "class:anna", "group:person=anna"])
def test_a_hidden_spec_is_its_kind(spec):
    assert hidden_spec(spec) == spec.partition(":")[0] + ":…"


@pytest.mark.parametrize("spec", ["anna.csv", "C:anna.csv"])
def test_a_hidden_file_has_no_name(spec):
    assert hidden_spec(spec) == "file"
