"""The module behind a version: loaded as it is, or rebuilt from the architecture of an exported program."""

import mlflow
import numpy as np
import pytest
import torch
import torchvision
import toy
import yaml
from stores import log_pt2
from torch import nn

from mlflow_unlearn.config import Unlearn
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.engine.architectures import build_model
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.flavor import NewModel, example_images, input_example, load_module, save_model
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.versions import open_version

ARCHITECTURE = """
from torch import nn


def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, num_classes))
"""
OTHERS = """
from torch import nn


def rectified(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, num_classes), nn.ReLU())


class Scaled(nn.Sequential):
    def forward(self, images):
        return 2 * super().forward(images)


def scaled(num_classes):
    return Scaled(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, num_classes))


def other_activation(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.GELU(), nn.Linear(48, num_classes))
"""


def test_a_version_of_ours_is_rebuilt(store, tmp_path):
    version = admitted(open_version(store.client, "models:/clf/1", tmp_path), Unlearn(model_uri="models:/clf/1"))
    module = load_module(version, None, 10)
    program = mlflow.pytorch.load_model("models:/clf/1")
    images = torch.rand(3, 1, 8, 8)
    assert type(module) is toy.Net and not module.training
    assert torch.allclose(module(images), program(images), atol=1e-6)
    example = input_example(version)
    assert example.shape == (2, 1, 8, 8)
    assert np.array_equal(example_images([torch.from_numpy(image) for image in (*example, example[0])]), example)


def test_an_architecture_that_computes_something_else(empty_store, tmp_path, monkeypatch):
    """The same parameters, and another function of them."""
    (tmp_path / "pt2_architecture.py").write_text(ARCHITECTURE)
    (tmp_path / "pt2_others.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)).eval()
    log_pt2(module, "exported")
    version = admitted(open_version(empty_store.client, uri := "models:/exported/1", tmp_path), Unlearn(model_uri=uri))
    rebuilt = load_module(version, "pt2_architecture:make", 10)
    images = torch.rand(3, 1, 8, 8)
    assert torch.allclose(rebuilt(images), module(images), atol=1e-6)
    for name in ("rectified", "scaled", "other_activation"):
        with pytest.raises(UnlearnError, match=f"'pt2_others:{name}' takes the weights .* computes something else"):
            load_module(version, f"pt2_others:{name}", 10)


@pytest.mark.slow
@pytest.mark.parametrize("small", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_exported_resnet_with_either_stem(empty_store, tmp_path, small):
    """On small images ours has another stem than torchvision's: the exported weights tell which one it is."""
    torch.manual_seed(0)
    module = build_model("torchvision:resnet18", 10, (3, 32, 32), small=True) if small else None
    module = (module or torchvision.models.resnet18(num_classes=10)).eval()
    log_pt2(module, "exported", (3, 32, 32))
    version = admitted(open_version(empty_store.client, uri := "models:/exported/1", tmp_path), Unlearn(model_uri=uri))
    assert version.record is None and version.code == ()  # which no_code lets pass
    rebuilt = load_module(version, "torchvision:resnet18", 10)
    assert type(rebuilt).__name__ == "ResNet"
    assert rebuilt.conv1.kernel_size == ((3, 3) if small else (7, 7))
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(rebuilt(images), module(images), atol=1e-4)


@pytest.fixture
def requirements_after(store, tmp_path):
    """A function that saves what would come after clf version 1, had it these; its requirements and constraints."""

    def after(requirements: list[str], **files: str) -> tuple[list[str], str]:
        version = admitted(open_version(store.client, uri := "models:/clf/1", tmp_path), Unlearn(model_uri=uri))
        (version.path / "conda.yaml").write_text(yaml.safe_dump({"dependencies": [{"pip": requirements}]}))
        for name, text in files.items():
            (version.path / f"{name}.txt").write_bytes(text.encode())
        (folder := tmp_path / "work").mkdir()
        new = NewModel(load_module(version, None, 10), version.record, Manifest(("a",)), folder, source=version)
        save_model(new, saved := tmp_path / "saved")
        constraints = saved / "constraints.txt"
        return (saved / "requirements.txt").read_text().split("\n"), constraints.exists() and constraints.read_text()

    return after


def test_files_of_requirements_stand_in_their_place(requirements_after):
    found = requirements_after(
        ["mlflow", "-r more.txt", "--constraint=most.txt", "pillow  # images", "--extra-index-url https://example.org"],
        more="numpy>=1 \\\n,<99\n# no more\n\ntorch\\",
        most="numpy<98\x0ctorch<99\n",
    )
    requirements = ["mlflow", "numpy>=1 ,<99", "torch", "pillow", "--extra-index-url https://example.org"]
    assert found == ([*requirements, "-c constraints.txt"], "numpy<98\ntorch<99")


@pytest.mark.parametrize("end", list("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))
def test_files_that_files_of_requirements_name(requirements_after, tmp_path, end):
    """MLflow would read them into the new version; a line ends where Python says so."""
    (tmp_path / "key").write_text("SECRET\n")
    with pytest.raises(UnlearnError, match=r"more\.txt of models:/clf/1, .* may not name further files"):
        requirements_after(["-r more.txt"], more=f"numpy{end}-r {tmp_path / 'key'}\n")
