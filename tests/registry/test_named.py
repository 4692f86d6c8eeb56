"""What options name is looked up before the command is loaded: it refuses what is not there, and nothing else."""

import mlflow
import pytest

from mlflow_unlearn import config
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.named import check_named

V1 = "models:/clf/1"


def compare(**given):
    return config.Compare(model_uri=V1, forget="random:5", **given)


@pytest.fixture
def many(store):
    """A version by an alias, and a model whose name has a comma."""
    store.client.set_registered_model_alias("clf", "prod", "1")
    store.client.copy_model_version(V1, "gold, 2026")
    return store


@pytest.mark.parametrize(
    "options",
    [
        config.Unlearn(model_uri="models:/clf@prod"),
        config.Unlearn(model_uri="models:/clf/latest", gold_uri="models:/gold, 2026/1"),
        config.Train(data="digits", name="new", **{"from": "models:/gold, 2026/1"}),
        config.Evaluate(model_uri=V1, original_uri="models:/gold, 2026/1"),
        config.Unlearn(model_uri="runs:/0123456789abcdef/model"),
        config.Unlearn(model_uri="models:/m-0123456789abcdef0123456789abcdef"),
        config.Request(model_uri="models:/clf/1,models:/clf/9", forget="random:5"),
        config.Audit(model_uri=V1, gold_uri="models:/none/1,models:/none/2"),
        compare(gold_uri="models:/gold, 2026/1"),
        config.Train(data="digits", name="new", exclude="random:5"),
    ],
)
def test_what_is_there_or_may_be(many, options):
    """Of several versions some may do; what is in no registry is left to the command."""
    check_named(options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (config.Unlearn(model_uri="models:/clf@stage"), "has no alias 'stage'"),
        (config.Train(data="digits", name="new", **{"from": "models:/clf/7"}), "has no version '7'"),
        (config.Train(data="digits", name="new", exclude="abcdefabcdef"), "no forget request 'abcdefabcdef'"),
        (config.Train(data="digits", name="new", exclude="request:abcdefabcdef"), "no forget request 'abcdefabcdef'"),
        (config.Evaluate(model_uri=V1, original_uri="models:/clf/8"), "has no version '8'"),
        (config.Audit(model_uri=V1, gold_uri="models:/none/1"), "no registered model 'none'"),
        (config.Request(model_uri="models:/clf/9", forget="random:5"), "has no version '9'"),
        (compare(sign_key="nowhere.pem"), "sign_key=nowhere.pem cannot sign"),
    ],
)
def test_what_is_not_there(many, options, says):
    with pytest.raises(UnlearnError, match=says):
        check_named(options)


def test_under_mlflow_run_the_run_records_what_was_asked(store, cli, monkeypatch):
    """There the command itself refuses it, as it does on a rank."""
    with mlflow.start_run() as there:
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", there.info.run_id)
    assert cli("unlearn", "--model-uri", "models:/clf/9").code == 2
    run = store.client.get_run(there.info.run_id)
    assert run.info.status == "FAILED" and run.data.tags["unlearn.command"] == "unlearn"
    assert run.data.params["unlearn.model_uri"] == "models:/clf/9"
