"""Digests of what is read: by content, wherever it is stored."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from toy import Listed, digits, global_state

from mlflow_unlearn.data import content
from mlflow_unlearn.data.content import content_digest
from mlflow_unlearn.data.datasets import as_dataset
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.transforms import build_transform

DATA = digits(0, 300)
ON_DISK = {"memory_limit": 0, "disk_limit": 0}


def changed(index: int = 299) -> TensorDataset:
    images = DATA.tensors[0].clone()
    images[index, 0, 3, 3] += 1e-3
    return TensorDataset(images, DATA.tensors[1])


class TestInMemory:
    def test_every_pixel_and_label_counts(self):
        found = {
            content_digest(data)
            for data in (DATA, changed(0), changed(), TensorDataset(DATA.tensors[0], DATA.tensors[1].flip(0)))
        }
        assert len(found | {None}) == 5
        assert content_digest(DATA) == content_digest(TensorDataset(*(part.clone() for part in DATA.tensors)))

    def test_so_does_the_choice(self):
        parts = [Subset(DATA, [0, 1]), Subset(DATA, [1, 0]), Subset(changed(0), [0, 1]), ConcatDataset([DATA, DATA])]
        assert len({content_digest(data) for data in parts}) == 4

    def test_of_a_dataset_of_the_users_own_a_part_is_read_and_its_class_counts(self):
        class Local(Listed):
            pass

        data = Listed(DATA)
        before = global_state()
        assert content_digest(data) == content_digest(Listed(DATA)) not in (None, content_digest(DATA))
        assert data.readings == content.SAMPLES and global_state() == before
        assert content_digest(Listed(changed(0))) != content_digest(data)
        assert content_digest(Local(DATA)) is None

    def test_random_transforms_are_drawn_alike(self):
        noisy = [Listed(DATA, lambda image: image + torch.rand(())) for _ in range(2)]
        assert content_digest(noisy[0]) == content_digest(noisy[1])


class TestFiles:
    @pytest.fixture
    def tree(self, tmp_path):
        noise = np.random.default_rng(0)
        for part, count in (("train", 6), ("test", 4)):
            for index in range(count):
                path = tmp_path / "tree" / part / "ab"[index % 2] / f"{index}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise.integers(0, 255, (300, 300), np.uint8)).save(path)
        return tmp_path / "tree"

    @staticmethod
    def digest(tree, transform="none", **options):
        source = load_source(f"folder:{tree}")
        return content_digest(as_dataset(source.train, build_transform(transform, channels=None), **options))

    @pytest.mark.parametrize("options", [{}, {"memory_limit": 700}, ON_DISK])
    def test_a_changed_image_changes_it_and_another_place_does_not(self, tree, options):
        before = self.digest(tree, **options)
        shutil.copytree(tree, tree.with_name("copy"))
        os.utime(tree / "train" / "a" / "0.bmp")
        assert self.digest(tree, **options) == self.digest(tree.with_name("copy"), **options) == before is not None
        path = tree / "train" / "a" / "0.bmp"
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
        assert self.digest(tree, **options) != before

    def test_of_a_large_file_three_blocks_and_the_size_count(self, tree, monkeypatch):
        """As the documentation says; that no sample is read shows what the files alone tell."""
        monkeypatch.setattr(content, "SAMPLES", 1)
        path = tree / "train" / "b" / "5.bmp"
        before, stored = self.digest(tree, **ON_DISK), path.read_bytes()
        assert len(stored) > content.WHOLE

        def with_byte_at(position):
            path.write_bytes(stored[:position] + bytes([stored[position] ^ 1]) + stored[position + 1 :])
            return self.digest(tree, **ON_DISK)

        assert with_byte_at(len(stored) // 4) == before
        assert len({before, *map(with_byte_at, (content.BLOCK - 1, len(stored) // 2, len(stored) - 1))}) == 4
        monkeypatch.setattr(content, "WHOLE", 1 << 20)
        assert with_byte_at(len(stored) // 4) != before

    def test_the_transform_counts(self, tree):
        found = {
            self.digest(tree, transform, **options) for transform in ("none", "imagenet") for options in ({}, ON_DISK)
        }
        assert len(found | {None}) == 5

    def test_a_transform_of_the_users_own_counts_by_its_source(self, tree, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)

        def digest(name, code):
            (tmp_path / f"{name}.py").write_text(f"import torchvision\n\ndef read(image):\n    {code}\n")
            return self.digest(tree, f"python:{name}:read", **ON_DISK)

        one = "return torchvision.transforms.functional.to_tensor(image)"
        found = [digest("reading1", one), digest("reading2", one.replace("to_tensor(image)", "to_tensor(image) * 2"))]
        assert None not in found and found[0] != found[1]

    def test_a_file_that_is_gone_is_not_known(self, tree):
        source = load_source(f"folder:{tree}")
        data = as_dataset(source.train, build_transform("none", channels=None), **ON_DISK)
        (tree / "train" / "b" / "5.bmp").unlink()
        assert content_digest(data) is None


def test_images_without_files_are_read_as_long_as_they_are_few(monkeypatch):
    source = load_source("digits")
    images = source.test.images
    keys = images.keys.copy()
    keys[images.rows[-2]] ^= 1
    other = replace(source.test, images=type(images)(images.read, keys, images.rows))
    lazy, changed_lazy = (
        as_dataset(split, build_transform("none", channels=None), **ON_DISK) for split in (source.test, other)
    )
    assert content_digest(lazy) != content_digest(changed_lazy)
    monkeypatch.setattr(content, "FULL", 0)
    assert content_digest(lazy) == content_digest(changed_lazy) is not None
