"""What loading a version would run, decided before any of it is loaded."""

import json
import logging
import pickle
import shutil
import zipfile
from pathlib import Path

import mlflow
import pytest
import torch
import toy
from crafted import Touches, crafted, edit, pickled
from stores import log_pt2
from torch import nn

from mlflow_unlearn.config import Evaluate, Request, Unlearn
from mlflow_unlearn.engine.architectures import build_model
from mlflow_unlearn.errors import Refused
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.loading import admitted, code_in_program
from mlflow_unlearn.registry.versions import open_version

FACTORY = "its architecture is the function toy:trainable"


def graph(program: Path) -> dict:
    with zipfile.ZipFile(program) as archive:
        return json.loads(archive.read("model/models/model.json"))


@pytest.fixture(scope="module")
def program(template, tmp_path_factory) -> Path:
    """The exported program of a version that `train` has registered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", template.uri)
        version = template.client.get_model_version("clf", "1")
        path = mlflow.artifacts.download_artifacts(version.source, tracking_uri=template.uri)
    return Path(shutil.copy(Path(path) / "data" / "model.pt2", tmp_path_factory.mktemp("program")))


def test_a_program_of_ours_is_data(program):
    assert code_in_program(program) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture", ["timm:vit_tiny_patch16_224", "torchvision:mobilenet_v3_small", "timm:convnext_atto", "resnet18"]
)
def test_programs_of_usual_architectures_are_data(empty_store, tmp_path, architecture):
    log_pt2(build_model(architecture, 10, (3, 64, 64)).eval(), "exported", (3, 64, 64))
    version = open_version(empty_store.client, "models:/exported/1", tmp_path)
    assert admitted(version, Unlearn(model_uri=version.uri)).code == ()


def guard(json: dict, code: str) -> None:
    json["guards_code"] = [code]


def size(json: dict, code: str) -> None:
    """What stands for the number of images."""
    for tensor in json["graph_module"]["graph"]["tensor_values"].values():
        for part in tensor["sizes"]:
            if "as_expr" in part:
                part["as_expr"]["expr_str"] = code


def operation(json: dict, code: str) -> None:
    json["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"
    json["graph_module"]["graph"]["nodes"][0]["inputs"] = [{"name": "", "arg": {"as_string": "touch_"}, "kind": 1}]


def name(json: dict, code: str) -> None:
    json["graph_module"]["graph"]["inputs"][0] = {"as_tensor": {"name": f"x={code}"}}


def nesting(json: dict, code: str) -> None:
    context = '{"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []}'
    spec = [1, {"type": "collections.defaultdict", "context": context, "children_spec": []}]
    json["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = __import__("json").dumps(spec)


def enumeration(json: dict, code: str) -> None:
    context = '[{"__enum__": true, "fqn": "antigravity:x", "name": "y"}]'
    spec = [1, {"type": "builtins.dict", "context": context, "children_spec": []}]
    json["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = __import__("json").dumps(spec)


@pytest.mark.parametrize("change", [guard, size, operation, name, nesting, enumeration])
def test_a_graph_that_runs_code(program, tmp_path, change):
    """Its JSON alone, without any pickle; `torch.export.load` evaluates it."""
    content = graph(program)
    change(content, "__import__('os').system('touch made')")
    made = edit(program, tmp_path / "model.pt2", **{"models/model.json": json.dumps(content).encode()})
    assert "is more than a graph (models/model.json: " in code_in_program(made)


def test_a_graph_really_runs_code(program, tmp_path):
    """Else the test above would be about nothing."""
    content, made = graph(program), tmp_path / "made"
    size(content, f"__import__('pathlib').Path({str(made)!r}).touch() or 2")
    changed = edit(program, tmp_path / "model.pt2", **{"models/model.json": json.dumps(content).encode()})
    try:
        torch.export.load(changed)
    except Exception as error:  # the graph makes no sense any more
        assert made.exists(), error
    assert made.exists()


def raw_as_pickle(program: Path, tmp_path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(program) as archive:
        config = json.loads(archive.read("model/data/weights/model_weights_config.json"))
    next(iter(config["config"].values()))["use_pickle"] = True
    evil = pickled(Touches(tmp_path / "made"))
    return {"model_weights_config.json": json.dumps(config).encode(), "weights/weight_0": evil}


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (lambda p, t: {"data/sample_inputs/model.pt": pickled(((Touches(t / "made"),), {}))}, "holds a pickle"),
        (raw_as_pickle, "holds a pickle (data/weights/weight_0)"),
        (lambda p, t: {"data/constants/opaque_obj_0": pickle.dumps(Touches(t / "made"))}, "holds a pickle"),
        (lambda p, t: {"data/weights/model.pt": pickled({"x": Touches(t / "made")})}, "holds a pickle"),
        (lambda p, t: {"serialized_constants.pt": pickled({"x": Touches(t / "made")})}, "cannot be read before"),
        (lambda p, t: {"data/aotinductor/model/a.so": b"\x7fELF"}, "brings a compiled library"),
        (lambda p, t: {"models/other.json": b"{"}, "is more than a graph (models/other.json"),
        (lambda p, t: {"models/other.json": b"[" * 100_000}, "is more than a graph (models/other.json"),
        (lambda p, t: {"model_weights_config.json": b'{"config": 3}'}, "holds a pickle (data/weights/weight_"),
    ],
    ids=["inputs", "weight", "constant", "weights", "old", "library", "cut", "deep", "config"],
)
def test_an_archive_that_runs_code(program, tmp_path, records, says):
    assert says in code_in_program(edit(program, tmp_path / "model.pt2", **records(program, tmp_path)))
    assert not (tmp_path / "made").exists()


def test_what_is_not_an_archive(tmp_path):
    (tmp_path / "model.pt2").write_bytes(b"PK")
    assert code_in_program(tmp_path / "model.pt2") == "cannot be read before it is loaded"


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
