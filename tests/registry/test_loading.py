"""What loading a version would run, decided before any of it is loaded."""

import logging
import shutil

import mlflow
import pytest
import torch
import toy
from crafted import crafted
from torch import nn

from mlflow_unlearn.config import Evaluate, Request, Unlearn
from mlflow_unlearn.errors import Refused
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.versions import open_version

FACTORY = "its architecture is the function toy:trainable"


def test_a_pickle_in_a_program_is_refused_before_it_is_loaded(store, tmp_path, caplog):
    caplog.set_level(logging.ERROR, "torch._export.serde.serialize")  # a warning of torch's that it formats wrongly
    uri, made = crafted(tmp_path, tmp_path / "made"), tmp_path / "made"
    version = open_version(store.client, uri, tmp_path)
    for options in (Unlearn, Evaluate):
        with pytest.raises(
            Refused, match=f"loading {uri} would run code .*holds a pickle .data/sample_inputs/model.pt"
        ):
            admitted(version, options(model_uri=uri, no_code=True))
    with pytest.raises(ValueError, match="only an admitted version is loaded"):
        load_module(version, None, 10)
    assert not made.exists()
    seen = admitted(version, Unlearn(model_uri=uri))
    assert seen.code == ("its exported program holds a pickle (data/sample_inputs/model.pt)", FACTORY)
    load_module(seen, None, 10)
    assert made.exists()


def test_specs_folders_and_pickles(empty_store, tmp_path):
    """Each from the files alone, or from the command's own options."""
    (tmp_path / "helper.py").write_text("")
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            toy.net(), name="m", registered_model_name="p", serialization_format="pickle",
            pip_requirements=["torch"], code_paths=[str(tmp_path / "helper.py")],
        )  # fmt: skip
    version = open_version(empty_store.client, "models:/p/1", tmp_path)
    given = {"architecture": "a.b:c", "transform": "python:t:f", "data": "python:d:f"}
    assert admitted(version, Unlearn(model_uri=version.uri, **given)).code == (
        "its data source is python:d:f",
        "its model is a pickle",
        "it brings a folder of code, which is searched first for all that is imported",
        "its transform is python:t:f",
        "its architecture is the function a.b:c",
    )
    harmless = {"architecture": "timm:resnet10t", "transform": "imagenet", "data": "digits"}
    assert len(admitted(version, Unlearn(model_uri=version.uri, **harmless)).code) == 2
    # A request reads the samples' names alone.
    request = Request(model_uri=version.uri, forget="random:2", no_code=True)
    assert admitted(version, request.model_copy(update={"data": "digits"})).code == ()
    with pytest.raises(Refused, match="its data source is python:d:f"):
        admitted(version, request.model_copy(update={"data": "python:d:f"}))


def test_a_pickle_beside_a_program_is_what_mlflow_loads(store, program, tmp_path):
    path = tmp_path / "both"
    shutil.copytree(mlflow.artifacts.download_artifacts(store.client.get_model_version("clf", "1").source), path)
    torch.save(nn.Linear(2, 2), path / "data" / "model.pth")
    (path / "data" / "pickle_module_info.txt").write_text("mlflow.pytorch.pickle_module")
    uri = f"models:/both/{mlflow.register_model(path.as_uri(), 'both').version}"
    version = open_version(store.client, uri, tmp_path)
    assert version.format == "pickle"
    assert "its model is a pickle" in admitted(version, Unlearn(model_uri=uri)).code
