"""Outputs that later commands take over: the same numbers, and never those of something else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Subset, TensorDataset
from toy import CPU, Listed, digits, global_state, original

from mlflow_unlearn.data.datasets import as_dataset
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.transforms import build_transform
from mlflow_unlearn.engine import output_cache
from mlflow_unlearn.engine.forward import forward
from mlflow_unlearn.engine.output_cache import cached_forward, data_digest, fingerprint, model_cache_key

DATA = digits(0, 300)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def evaluated(monkeypatch):
    """Logits and labels of a model; ``passes`` are the samples of each pass over a whole set."""

    def counted(model, dataset, *args, **options):
        if len(dataset) > output_cache.SAMPLES:
            evaluated.passes.append(len(dataset))
        return forward(model, dataset, *args, **options)

    def evaluated(model, dataset, hardware=CPU):
        batches = cached_forward(model, dataset, hardware, model_cache_key(model, hardware), description="")
        return [torch.cat(parts) for parts in zip(*batches, strict=True)]

    monkeypatch.setattr(output_cache, "forward", counted)
    evaluated.passes = []
    return evaluated


def changed(data: TensorDataset) -> TensorDataset:
    images = data.tensors[0].clone()
    images[7, 0, 3, 3] += 1e-3
    return TensorDataset(images, data.tensors[1])


def test_the_second_time_nothing_is_forwarded(evaluated):
    expected = [torch.cat(parts) for parts in zip(*forward(original(), DATA, CPU), strict=True)]
    for _ in range(2):
        logits, labels = evaluated(original(), DATA)
        assert torch.equal(logits, expected[0]) and torch.equal(labels, expected[1])
    assert evaluated.passes == [300]


def test_what_outputs_depend_on_makes_other_outputs(evaluated):
    evaluated(original(), DATA)
    other = original()
    with torch.no_grad():
        other[0].bias[0] += 1e-3
    evaluated(other, DATA)
    evaluated(original(), changed(DATA))
    evaluated(original(), TensorDataset(DATA.tensors[0], DATA.tensors[1].flip(0)))
    evaluated(original(), Subset(DATA, range(299)))
    evaluated(original(), DATA, replace(CPU, precision="bf16"))
    slower = nn.Sequential(*original())
    slower.append(nn.Identity())
    evaluated(slower, DATA)
    assert evaluated.passes == [300, 300, 300, 300, 299, 300, 300]


def test_what_cannot_be_told_is_not_kept(evaluated, monkeypatch):
    local = type("Local", (nn.Sequential,), {"__module__": "__main__x"})(*original())
    assert model_cache_key(local, CPU) is None
    for model, data in ((original(), Listed(DATA)), (local, DATA)):
        evaluated(model, data)
        evaluated(model, data)
    monkeypatch.setattr(output_cache, "LARGEST", 4 * 300 * 10 - 1)
    evaluated(original(), DATA)
    evaluated(original(), DATA)
    assert evaluated.passes == [300] * 6


def test_where_the_cache_is_off_nothing_is_hashed_or_kept(evaluated, monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", "off")
    assert model_cache_key(original(), CPU) is None
    evaluated(original(), DATA)
    evaluated(original(), DATA)
    assert evaluated.passes == [300, 300]


class Cooled(nn.Module):
    """Divides its logits by a plain attribute and by a global variable."""

    def __init__(self):
        super().__init__()
        self.net, self.temperature = original(), 1.0

    def forward(self, images):
        return self.net(images) / self.temperature / COOLING[0]


COOLING = [1.0]


class Noisy(Cooled):
    def forward(self, images):
        return super().forward(images) + torch.rand(())


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "temperature", 50.0),
        lambda model: model.register_forward_hook(lambda module, inputs, output: -output),
        lambda model: COOLING.__setitem__(0, 50.0),
    ],
    ids=["attribute", "hook", "what no static key sees"],
)
def test_equal_weights_that_answer_otherwise(evaluated, change):
    """By an attribute, by a hook, and by a global variable, which only shows in what the model answers."""
    first, _ = evaluated(Cooled(), DATA)
    model = Cooled()
    try:
        change(model)
        logits, _ = evaluated(model, DATA)
        assert torch.equal(logits, model.eval()(DATA.tensors[0])) and not torch.equal(logits, first)
    finally:
        COOLING[0] = 1.0
    assert evaluated.passes == [300, 300]
    assert torch.equal(evaluated(Cooled(), DATA)[0], first) and evaluated.passes == [300, 300]


def test_a_model_that_answers_differently_each_time_is_not_kept(evaluated):
    before = global_state()
    assert fingerprint(Noisy(), DATA, CPU) is None and global_state() == before
    evaluated(Noisy(), DATA)
    evaluated(Noisy(), DATA)
    assert evaluated.passes == [300, 300]


class TestDataDigest:
    @pytest.fixture
    def tree(self, tmp_path):
        for part, count in (("train", 6), ("test", 4)):
            for index in range(count):
                path = tmp_path / "tree" / part / "ab"[index % 2] / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8), index, np.uint8)).save(path)
        return tmp_path / "tree"

    @staticmethod
    def digest(tree, transform="none", **options):
        source = load_source(f"folder:{tree}")
        built = build_transform(transform, channels=None)
        return data_digest(as_dataset(source.train, built, **options))

    @pytest.mark.parametrize("options", [{}, {"memory_limit": 700}, {"memory_limit": 0, "disk_limit": 0}])
    def test_a_changed_image_changes_it(self, tree, options):
        before = self.digest(tree, **options)
        assert before is not None and self.digest(tree, **options) == before
        Image.fromarray(np.full((8, 8), 99, np.uint8)).save(tree / "train" / "a" / "0.png")
        assert self.digest(tree, **options) != before

    def test_so_does_the_transform_of_images_on_disk(self, tree):
        options = {"memory_limit": 0, "disk_limit": 0}
        plain, scaled = (self.digest(tree, transform, **options) for transform in ("none", "imagenet"))
        assert None not in (plain, scaled) and plain != scaled

    def test_and_their_choice(self, tree):
        lazy = as_dataset(
            load_source(f"folder:{tree}").train, build_transform("none", channels=None), memory_limit=0, disk_limit=0
        )
        assert len({data_digest(lazy), data_digest(Subset(lazy, [0, 1])), data_digest(Subset(lazy, [1, 0]))}) == 3

    def test_a_transform_of_the_users_own_is_not_known(self, tree):
        transform = "python:torchvision.transforms.functional:to_tensor"
        assert self.digest(tree, transform, memory_limit=0, disk_limit=0) is None
