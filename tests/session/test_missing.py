"""All that a version lacks is asked for at once, as its user types it."""

import re

import mlflow
import pytest
import toy
from stores import log_pt2

from mlflow_unlearn import config
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.inputs import Inputs
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.versions import open_version
from mlflow_unlearn.session.missing import missing, require
from mlflow_unlearn.spelling import spelling

EVERYTHING = (
    "models:/theirs/1 does not record its data source, its architecture (its program, pt2, is rebuilt to be trained) "
    "and its input transform (its signature takes images [1, 8, 8]): give --data csv:LIST.csv (or folder:PATH, …), "
    "--architecture package.module:factory (or timm:NAME, torchvision:NAME), --transform none (or imagenet, timm, "
    "python:module:function) and --classes NAMES unless the outputs are in the order of the source's classes. For "
    "example: mlflow-unlearn unlearn --model-uri models:/theirs/1 --params '{\"alpha\": 8}' --data csv:LIST.csv "
    "--architecture package.module:factory --transform none"
)


@pytest.fixture
def exported(empty_store, tmp_path):
    log_pt2(toy.original(), "theirs")
    return open_version(empty_store.client, "models:/theirs/1", tmp_path)


def options(command=config.Unlearn, **given):
    return command(model_uri="models:/theirs/1", **given)


def test_everything_in_one_sentence(exported):
    with spelling("shell"), pytest.raises(UnlearnError) as refused:
        require(exported, options(params='{"alpha": 8}'), trains=True)
    assert str(refused.value) == EVERYTHING


def test_as_mlflow_run_has_it(exported):
    with spelling("project"), pytest.raises(UnlearnError) as refused:
        require(exported, options(data="digits", params='{"alpha": 8}'), trains=True)
    assert "give -P architecture=package.module:factory (or timm:NAME" in str(refused.value)
    assert str(refused.value).endswith(
        "For example: mlflow run . -e unlearn -P model_uri=models:/theirs/1 -P 'params={\"alpha\": 8}' -P data=digits "
        "-P architecture=package.module:factory -P transform=none"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "trains", "lacks"),
    [
        ({}, False, {"data", "transform"}),
        ({"data": "digits"}, True, {"architecture", "transform"}),
        ({"data": "python:team:data"}, True, {"architecture"}),
        ({"architecture": "timm:resnet18"}, True, {"data"}),
        ({"architecture": "a:b", "transform": "none", "data": "digits"}, True, set()),
    ],
)
def test_what_is_lacking(exported, given, trains, lacks):
    assert set(missing(exported, options(**given), trains=trains)) == lacks


def test_a_pickled_model_lacks_no_architecture(empty_store, tmp_path):
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            toy.original(), name="m", registered_model_name="theirs", serialization_format="pickle",
            pip_requirements=["torch"],
        )  # fmt: skip
    version = admitted(open_version(empty_store.client, "models:/theirs/1", tmp_path), options())
    assert missing(version, options(), trains=True) == {
        "data": "its data source",
        "transform": "its input transform (it has no signature)",
    }


def test_code_of_a_tag_is_named_and_in_the_command(exported):
    from dataclasses import replace

    told = replace(exported, kept=Inputs(data="digits"), unconfirmed=Inputs(architecture="team:Net", transform=None))
    with spelling("shell"), pytest.raises(UnlearnError) as refused:
        require(told, options(transform="none"), trains=True)
    assert (
        "; team:Net of its tag is code or a file, used only where you name it: give --architecture team:Net (or"
        in str(refused.value)
    )
    assert str(refused.value).endswith("--architecture team:Net --transform none")


def test_no_password_is_pasted(exported):
    with pytest.raises(UnlearnError) as refused:
        require(exported, options(config.Tune, storage="postgresql://me:secret@host/db"), trains=True)
    assert not re.search("secret|storage", str(refused.value))
