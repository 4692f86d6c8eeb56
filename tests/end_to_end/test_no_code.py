"""What loading would run is refused with `no_code` before it runs; without it, evidence and policies say what ran."""

import logging

import mlflow
import pytest
from chains import QUICK
from crafted import crafted
from stores import DATA

TRANSFORM = """
from pathlib import Path
from torchvision.transforms.v2 import functional

Path("imported").touch()


def scaled(image):
    return functional.to_image(image).float() / 255
"""
POLICY = "name: {0}\nrules: [{{metric: acc_test, at_least: 0.1}}]\nmembership: null\nrequired: [{0}]\n"


def source_of(version: str) -> dict:
    return mlflow.artifacts.load_dict(f"models:/{version}/evidence/evidence.json")["source"]


@pytest.mark.slow
def test_code_in_a_version(store, cli, tmp_path, caplog):
    caplog.set_level(logging.ERROR, "torch._export.serde.serialize")  # a warning of torch's that it formats wrongly
    made, imported = tmp_path / "made", store.folder / "imported"
    uri = crafted(tmp_path, made)
    (store.folder / "scaling.py").write_text(TRANSFORM)
    version = ("--model-uri", uri, "--forget", "random:20,seed=1")
    before, known = store.everything_registered(), len(store.runs())
    refused = {
        "holds a pickle (data/sample_inputs/model.pt)": (),
        "its transform is python:scaling:scaled": ("--transform", "python:scaling:scaled"),
        "its data source is python:scaling:scaled": ("--data", "python:scaling:scaled"),
    }
    for command in ("unlearn", "evaluate", "compare"):
        for says, more in refused.items() if command == "unlearn" else [*refused.items()][:1]:
            done = cli(command, *version, *more, "--no-code", "true")
            assert done.code == 3 and done.err.startswith(f"Error: loading {uri} would run code (")
            assert says in done.err and done.err.count("\n") == 1
            assert len(store.runs()) == known, "it is a look-up, which makes none"
    data = ("--data", "python:scaling:scaled", "--no-code", "true")
    assert cli("request", *version, *data).code == 3
    assert (
        cli("unlearn", "--model-uri", "models:/clf/1", *version[2:], "--gold-uri", uri, "--no-code", "true").code == 3
    )
    assert not made.exists() and not imported.exists()
    assert store.everything_registered() == before

    done = cli("unlearn", *version, "--params", QUICK, "--transform", "python:scaling:scaled")
    assert done.code == 0, done.err
    assert made.exists() and imported.exists()
    source = source_of("crafted/2")
    assert source["loading_ran_code"] and source["code"] == [
        "its exported program holds a pickle (data/sample_inputs/model.pt)",
        "its transform is python:scaling:scaled",
        "its architecture is the function toy:trainable",
    ]
    for name in ("no_code", "no_pickle"):
        (store.folder / f"{name}.yaml").write_text(POLICY.format(name))
        judged = cli("review", "--model-uri", "models:/crafted/2", "--policy", f"{name}.yaml")
        assert judged.code == 3 and f"required: {name} is false, but must be true (fail" in judged.err
        assert cli("promote", "--model-uri", "models:/crafted/2", "--policy", f"{name}.yaml").code == 3
    assert store.client.get_registered_model("crafted").aliases == {}
    checked = cli("verify", "--model-uri", "models:/crafted/2", "--recompute", "true", "--no-code", "true")
    assert checked.code == 3 and "loading models:/crafted/2 would run code (its transform is python:" in checked.err


@pytest.mark.nightly
def test_no_code_in_a_version(store, cli):
    """A usual architecture in pt2 format, with data and transform of ours, passes."""
    train = ("train", "--data", DATA, "--epochs", "1", "--architecture", "timm:test_resnet", "--name", "usual")
    assert cli(*train).code == 0
    unlearn = ("unlearn", "--model-uri", "models:/usual/1", "--forget", "random:20,seed=1", "--force", "true")
    unlearn = (*unlearn, "--method", "finetune", "--params", '{"epochs": 1}', "--no-code", "true")
    refused = cli(*unlearn, "--gold-uri", "models:/clf/1")
    assert refused.code == 3 and "loading models:/clf/1 would run code (its architecture is the function" in refused.err
    done = cli(*unlearn)
    assert done.code == 0, done.err
    source = source_of("usual/2")
    assert (source["loading_ran_code"], source["code"]) == (False, [])
