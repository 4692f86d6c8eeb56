"""Versions that other tools registered, and the pipeline's other architectures."""

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.models import infer_signature
from stores import CLASSES, digits_folder, log_pt2
from torch import nn

from mlflow_unlearn.data.forget import resolve_forget, retained
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest

QUICK = ("--params", '{"epochs": 1}')

TEAM = '''
import torch
from torch import nn

from team_layers import Flat


class TeamNet(nn.Module):
    """A class that only the team has."""

    def __init__(self, classes):
        super().__init__()
        self.flat = Flat()
        self.hidden = nn.Linear(64, 48)
        self.head = nn.Linear(48, classes)

    def forward(self, images):
        return self.head(torch.relu(self.hidden(self.flat(images))))
'''
LAYERS = """
from torch import nn


class Flat(nn.Flatten):
    pass
"""
LOAD = """
import sys, json
import mlflow, numpy, torch
model = mlflow.pytorch.load_model(sys.argv[1])
assert "mlflow_unlearn" not in sys.modules
images = numpy.load(sys.argv[2])
with torch.no_grad():
    logits = model(torch.from_numpy(images))
served = mlflow.pyfunc.load_model(sys.argv[1]).predict(images)
assert abs(served - logits.numpy()).max() < 1e-5
print(json.dumps({"type": type(model).__module__ + "." + type(model).__name__, "classes": logits.argmax(1).tolist()}))
"""


def tensors(part) -> tuple[torch.Tensor, torch.Tensor]:
    images = [np.asarray(part.images[i], np.float32) / 255 for i in range(len(part))]
    return torch.from_numpy(np.stack(images)[:, None]), torch.from_numpy(part.labels)


def fit(module: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int = 60) -> nn.Module:
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
    return module.eval()


@pytest.fixture
def folder(tmp_path) -> Path:
    return digits_folder(tmp_path / "images")


def trained_net(source, order: tuple[str, ...] = CLASSES) -> nn.Module:
    """A small network of torch's own layers; its outputs are in ``order``."""
    images, labels = tensors(source.train)
    position = torch.tensor([order.index(name) for name in source.classes])
    torch.manual_seed(0)
    return fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)), images, position[labels])


def accuracy(uri: str, part, position: torch.Tensor) -> float:
    images, labels = tensors(part)
    with torch.no_grad():
        said = mlflow.pytorch.load_model(uri)(images).argmax(1)
    return (said == position[labels]).double().mean().item()


def folder_of(uri: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(uri))


@pytest.mark.slow
def test_a_team_s_own_class(empty_store, cli, tmp_path, folder, monkeypatch):
    """Pickled with its code: version 2 loads where neither this package nor the team's modules are installed."""
    code = tmp_path / "team"
    code.mkdir()
    (code / "team_net.py").write_text(TEAM)
    (code / "team_layers.py").write_text(LAYERS)
    (tmp_path / "notes.txt").write_text("trained on a Tuesday")
    monkeypatch.syspath_prepend(str(code))
    # What an earlier test imported is in another folder.
    for name in ("team_net", "team_layers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import team_net

    source = load_source(f"folder:{folder}")
    images, labels = tensors(source.train)
    torch.manual_seed(0)
    module = fit(team_net.TeamNet(10), images, labels)
    # Images that stay; of one that is forgotten the new version would show another example.
    everything = np.ones(len(images), bool)
    forgotten = resolve_forget("random:20%", source, everything, lambda _: Manifest(())).indices
    kept = retained(everything, forgotten)[:3]
    example = images[kept].numpy()
    signature = infer_signature(example, module(images[kept]).detach().numpy())
    requirements = ["torch", "numpy", "packaging>=20"]
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            module, name="theirs", registered_model_name="team", serialization_format="pickle",
            code_paths=[str(code / "team_net.py"), str(code / "team_layers.py")], signature=signature,
            input_example=example, pip_requirements=requirements, metadata={"owner": "vision team"},
            extra_files=[str(tmp_path / "notes.txt")],
        )  # fmt: skip

    done = cli(
        *("unlearn", "--model-uri", "models:/team/1", "--forget", "random:20%", *QUICK),
        *("--data", f"folder:{folder}", "--transform", "none", "--classes", ",".join(source.classes)),
    )
    assert done.code == 0, done.err

    old, new = folder_of("models:/team/1"), folder_of("models:/team/2")
    old_model, new_model = mlflow.models.Model.load(str(old)), mlflow.models.Model.load(str(new))
    assert new_model.signature == old_model.signature == signature
    assert np.array_equal(new_model.load_input_example(str(new)), example)
    assert new_model.metadata["owner"] == "vision team"
    assert (new / "extra_files" / "notes.txt").read_text() == "trained on a Tuesday"
    assert (new / "data" / "model.pth").exists()
    for name, text in (("team_net.py", TEAM), ("team_layers.py", LAYERS)):
        assert (new / "code" / name).read_text() == text
    for file in ("requirements.txt", "conda.yaml", "python_env.yaml"):
        assert (new / file).read_text() == (old / file).read_text(), file
    assert (old / "requirements.txt").read_text().split()[-3:] == requirements
    assert new_model.metadata["mlflow_unlearn"]["architecture"] is None

    np.save(tmp_path / "images.npy", images.numpy())
    # A process without the team's modules on its path.
    process = subprocess.run(
        [sys.executable, "-c", LOAD, "models:/team/2", str(tmp_path / "images.npy")],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    loaded = json.loads(process.stdout.splitlines()[-1])
    assert loaded["type"] == "team_net.TeamNet"
    assert (np.array(loaded["classes"]) == labels.numpy()).mean() > 0.8
    manifest = Manifest.from_csv(new / "extra_files" / "training_manifest.csv")
    assert manifest.mask(source.train.ids).sum() == 160


@pytest.mark.slow
@pytest.mark.parametrize("format", ["pickle", pytest.param("pt2", marks=pytest.mark.slow)])
def test_a_forgotten_image_is_no_example(empty_store, cli, tmp_path, folder, monkeypatch, format):
    """The example is stored beside the weights for others to read: test images take its place."""
    (tmp_path / "example_architecture.py").write_text(ARCHITECTURE)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = load_source(f"folder:{folder}")
    images, _ = tensors(source.train)
    module = trained_net(source, source.classes)
    example = images[[50, 7]].numpy()
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            module, name="m", registered_model_name="shown", serialization_format=format, input_example=example,
            signature=infer_signature(example, module(images[:2]).detach().numpy()), pip_requirements=["torch"],
        )  # fmt: skip
    (tmp_path / "ids.txt").write_text("\n".join(source.train.ids[i] for i in (7, 100, 150)))
    done = cli(
        *("unlearn", "--model-uri", "models:/shown/1", "--forget", str(tmp_path / "ids.txt"), *QUICK, "--data"),
        *(f"folder:{folder}", "--transform", "none", "--architecture", "example_architecture:make"),
    )
    assert done.code == 0, done.err
    assert "the source's input example shows a forgotten image" in done.err

    def examples(version: str) -> dict[str, str]:
        files = folder_of(f"models:/shown/{version}").glob("*input_example.json")
        return {path.name: "".join(path.read_text().split()) for path in files}

    forgotten = ["".join(json.dumps(images[i].tolist()).split()) for i in (7, 100, 150)]
    old, new = examples("1"), examples("2")
    assert old.keys() == new.keys() == {"input_example.json", "serving_input_example.json"}
    assert all(forgotten[0] in text for text in old.values())
    assert not any(image in text for image in forgotten for text in new.values())
    path = folder_of("models:/shown/2")
    shown = mlflow.models.Model.load(str(path)).load_input_example(str(path))
    assert np.allclose(shown, tensors(source.test)[0][:2].numpy(), atol=1e-6)
    assert not any(np.allclose(one, images[i].numpy(), atol=1e-6) for one in shown for i in (7, 100, 150))


ARCHITECTURE = """
from torch import nn


def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, num_classes))
"""


@pytest.mark.nightly
def test_a_foreign_exported_program(empty_store, cli, tmp_path, folder, monkeypatch):
    """pt2: its weights go into the architecture that is named; the next command finds all in the record."""
    (tmp_path / "pt2_architecture.py").write_text(ARCHITECTURE)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = load_source(f"folder:{folder}")
    module = trained_net(source, source.classes)
    log_pt2(module, "exported")
    spec = ("--forget", "random:20%", "--data", f"folder:{folder}", "--transform", "none", *QUICK)
    unnamed = cli("unlearn", "--model-uri", "models:/exported/1", *spec)
    assert unnamed.code == 2
    assert "does not record its architecture (its program, pt2, is rebuilt to be trained)" in unnamed.err
    named = ("--architecture", "pt2_architecture:make")
    done = cli("unlearn", "--model-uri", "models:/exported/1", *spec, *named)
    assert done.code == 0, done.err
    assert "does not record its classes" in done.err
    assert (folder_of("models:/exported/2") / "data" / "model.pt2").exists()
    position = torch.arange(10)
    # The original's weights and no fresh ones: before is the exported program's own accuracy.
    before = empty_store.runs()[0].data.metrics
    assert before["original.acc_test"] == pytest.approx(accuracy("models:/exported/1", source.test, position))
    assert before["unlearned.acc_test"] == pytest.approx(accuracy("models:/exported/2", source.test, position))
    assert before["original.acc_retain"] > 0.95
    again = cli("unlearn", "--model-uri", "models:/exported/2", "--forget", "random:10", *QUICK)
    assert again.code == 0, again.err
    record = mlflow.models.Model.load(str(folder_of("models:/exported/3"))).metadata["mlflow_unlearn"]
    assert record["architecture"] == "pt2_architecture:make"
    assert record["data"] == source.spec
    assert record["classes"] == list(source.classes)


@pytest.mark.slow
def test_a_program_as_it_is_can_be_measured(empty_store, cli, folder):
    """Evaluation alone needs no architecture."""
    source = load_source(f"folder:{folder}")
    log_pt2(trained_net(source, source.classes), "exported")
    spec = ("--forget", "random:20%", "--data", f"folder:{folder}", "--transform", "none")
    done = cli("evaluate", "--model-uri", "models:/exported/1", *spec)
    assert done.code == 0, done.err
    measured = empty_store.runs()[0].data.metrics["original.acc_test"]
    assert measured == pytest.approx(accuracy("models:/exported/1", source.test, torch.arange(10)))


@pytest.mark.slow
def test_outputs_in_another_order(empty_store, cli, folder):
    """The last class first: with classes= the accuracies are right, without it the command refuses."""
    source = load_source(f"folder:{folder}")
    order = tuple(reversed(source.classes))
    module = trained_net(source, order)
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            module, name="m", registered_model_name="reversed", serialization_format="pickle",
            pip_requirements=["torch"],
        )  # fmt: skip
    spec = ("--forget", "random:20%", "--data", f"folder:{folder}", "--transform", "none", *QUICK)
    wrong = cli("unlearn", "--model-uri", "models:/reversed/1", *spec)
    assert wrong.code == 2
    assert "the order of the classes is probably wrong" in wrong.err
    done = cli("unlearn", "--model-uri", "models:/reversed/1", *spec, "--classes", ",".join(order))
    assert done.code == 0, done.err
    metrics = empty_store.runs()[0].data.metrics
    assert metrics["original.acc_retain"] > 0.95
    position = torch.tensor([order.index(name) for name in source.classes])
    for name, version in (("original", "1"), ("unlearned", "2")):
        expected = accuracy(f"models:/reversed/{version}", source.test, position)
        assert metrics[f"{name}.acc_test"] == pytest.approx(expected)
    # The order is on record now.
    again = cli("unlearn", "--model-uri", "models:/reversed/2", "--forget", "class:three", *QUICK)
    assert again.code == 0, again.err
    assert mlflow.models.Model.load(str(folder_of("models:/reversed/3"))).metadata["mlflow_unlearn"]["classes"] == [
        *order
    ]


@pytest.mark.slow
def test_a_pickled_timm_model(empty_store, cli, tmp_path):
    """Its own configuration says how images are read: no transform= is needed."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=10, in_chans=3).eval()
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            model, name="m", registered_model_name="timm", serialization_format="pickle", pip_requirements=["timm"]
        )
    # An untrained network does not stop the command where evaluation alone is asked for, with force.
    done = cli(
        *("evaluate", "--model-uri", "models:/timm/1", "--forget", "random:5", "--force"),
        *("--data", f"folder:{digits_folder(tmp_path / 'few', train=20, held_out=20)}"),
    )
    assert done.code == 0, done.err


@pytest.mark.nightly
@pytest.mark.parametrize("architecture", [pytest.param("vit_tiny", marks=pytest.mark.nightly), "resnet18"])
def test_the_published_architectures(empty_store, cli, tmp_path, architecture):
    """End to end on a handful of samples, by their short names; the ViT takes the published settings of a ViT."""
    data = f"folder:{digits_folder(tmp_path / 'few', train=40, held_out=40)}"
    trained = cli(
        *("train", "--data", data, "--name", "net", "--architecture", architecture, "--epochs", "1"),
        *("--batch-size", "16", "--lr", "0.02"),
    )
    assert trained.code == 0, trained.err
    source = load_source(data)
    with torch.no_grad():
        said = mlflow.pytorch.load_model("models:/net/1")(tensors(source.train)[0]).argmax(1)
    # So few steps teach it little: let it forget the class that it says most often.
    known = source.classes[int(said.mode().values)]
    done = cli("unlearn", "--model-uri", "models:/net/1", "--forget", f"class:{known}", "--force", *QUICK)
    assert done.code == 0, done.err
    params = empty_store.runs()[0].data.params
    published = {"vit_tiny": ("1e-06", "32"), "resnet18": ("0.0001", "128")}[architecture]
    assert (params["unlearn.params.lr"], params["unlearn.params.batch_size"]) == published
    images, _ = tensors(source.test)
    with torch.no_grad():
        logits = [mlflow.pytorch.load_model(f"models:/net/{version}")(images) for version in "12"]
    assert logits[0].shape == (20, 10)
    assert not torch.equal(*logits)
