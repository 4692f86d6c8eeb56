"""Batches are what reading item by item gives, however they are read."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from mlflow_unlearn.data import batching
from mlflow_unlearn.data.batching import BatchReader, forward_batch, gather, in_memory, in_order, loader_settings
from mlflow_unlearn.data.datasets import as_dataset
from mlflow_unlearn.data.transforms import build_transform

CPU = torch.device("cpu")


def tensors(count, start=0):
    images = torch.arange(start, start + count, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 2, 2).clone()
    return TensorDataset(images, torch.arange(start, start + count) % 7)


class Plain(Dataset):
    """Knows items alone, by plain integers."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if type(index) is not int:
            raise TypeError(type(index).__name__)
        image, label = self.data[index]
        return image, int(label)


class Own(Plain):
    """Reads a batch in its own way, and says where."""

    def gather(self, indices):
        images, labels = self.data[torch.as_tensor(indices)]
        return images, labels

    def __getitem__(self, index):
        raise AssertionError("read item by item")


class Doubled(TensorDataset):
    """A subclass that reads otherwise."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return 2 * image, label


DATASETS = {
    "tensors": tensors(20),
    "subset": Subset(tensors(40), [3 * i % 40 for i in range(20)]),
    "subset by a tensor": Subset(tensors(40), torch.arange(39, 19, -1)),
    "subset of a subset": Subset(Subset(tensors(40), range(5, 35)), [2 * i for i in range(15)] + [1, 3, 5, 7, 9]),
    "concatenation": ConcatDataset([tensors(7), Plain(tensors(6, 7)), tensors(7, 13)]),
    "subset of a concatenation": Subset(ConcatDataset([tensors(15), Doubled(*tensors(15, 15).tensors)]), range(5, 25)),
    "concatenation with an empty part": ConcatDataset([tensors(0), tensors(20)]),
    "plain": Plain(tensors(20)),
    "subclass": Doubled(*tensors(20).tensors),
}
ORDERS = [[0], [19, 0, 7, 7, 13], list(range(20)), range(4, 9), torch.tensor([5, 18, 6])]


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("order", ORDERS, ids=["one", "mixed", "all", "range", "tensor"])
def test_a_batch_is_its_items(name, order):
    dataset = DATASETS[name]
    images, labels = gather(dataset, order)
    items = [dataset[int(i)] for i in order]
    assert torch.equal(images, torch.stack([image for image, _ in items]))
    assert labels.tolist() == [int(label) for _, label in items] and labels.dtype == torch.int64


def test_a_way_of_its_own_is_taken():
    for dataset in (Own(tensors(20)), Subset(Own(tensors(40)), range(20)), ConcatDataset([Own(tensors(20))])):
        images, labels = gather(dataset, [4, 2])
        assert images[:, 0, 0, 0].tolist() == [4, 2] and labels.tolist() == [4, 2]


def test_in_order_is_every_position_once():
    assert in_order(tensors(7), 3) == [range(0, 3), range(3, 6), range(6, 7)]
    assert in_order(tensors(6), 3) == [range(0, 3), range(3, 6)]
    assert in_order(tensors(2), 256) == [range(0, 2)] and in_order(tensors(0), 3) == []


def test_a_forward_pass_takes_what_suits_the_device():
    def images(*shape):
        return TensorDataset(torch.zeros(3, *shape), torch.zeros(3))

    for shape, size in (
        ((1, 8, 8), 256),
        ((1, 28, 28), 128),
        ((1, 32, 32), 128),
        ((3, 32, 32), 32),
        ((3, 600, 600), 32),
    ):
        assert forward_batch(images(*shape), CPU) == forward_batch(Subset(images(*shape), [1]), CPU) == size
        assert forward_batch(ConcatDataset([images(1, 8, 8), images(*shape)]), CPU) == size
        assert forward_batch(images(*shape), torch.device("cuda")) == 256
    assert forward_batch(Plain(images(3, 8, 8)), CPU) == 128  # whose samples have no known size


def test_what_is_in_memory():
    assert in_memory(DATASETS["tensors"]) and in_memory(DATASETS["subset of a subset"])
    assert not in_memory(DATASETS["plain"]) and not in_memory(DATASETS["concatenation"])
    assert not in_memory(DATASETS["subclass"])  # which may do anything


class Filling(Plain):
    """Has read its first half."""

    def holds(self, indices):
        return bool((torch.as_tensor(indices) < 10).all())


def test_a_dataset_that_fills_is_asked_for_the_samples_in_question():
    filling = Filling(tensors(20))
    assert in_memory(filling, [0, 9]) and not in_memory(filling, [9, 10]) and not in_memory(filling)
    assert in_memory(Subset(filling, [12, 3, 4]), torch.tensor([1, 2]))
    assert not in_memory(Subset(filling, [12, 3, 4])) and not in_memory(Subset(filling, [12, 3, 4]), [0])


def settings(dataset, count=20, size=4, device=CPU):
    return loader_settings(dataset, device, in_order(range(count), size))


@pytest.fixture
def machine(monkeypatch):
    def build(cores, shared=1 << 30, **environment):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        usage = SimpleNamespace(free=2 * shared)  # of which half is taken
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        monkeypatch.setattr(os.path, "isdir", lambda _: True)
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return build


def test_one_core_is_the_models_and_the_others_read(machine):
    for cores, workers in ((1, 1), (2, 1), (4, 3), (64, 4)):  # five batches keep no more than four busy
        machine(cores)
        assert settings(Plain(tensors(20))) == {"num_workers": workers, "prefetch_factor": 2, "pin_memory": False}
    machine(64)
    assert settings(Plain(tensors(20)), count=1000)["num_workers"] == batching.MOST_WORKERS
    machine(8, LOCAL_WORLD_SIZE="4")  # two cores a rank
    assert settings(Plain(tensors(20)))["num_workers"] == 1


def test_nothing_to_read_ahead_needs_no_worker(machine):
    machine(8)
    none = {"num_workers": 0, "pin_memory": False}
    assert settings(DATASETS["subset"]) == none
    assert settings(Plain(tensors(20)), size=20) == none  # one batch
    assert settings(Filling(tensors(20)), count=10) == none and settings(Filling(tensors(20)), count=12) != none


def test_workers_are_as_many_as_shared_memory_has_room_for(machine):
    big = Plain(tensors(20))
    big.sample_bytes = 1000
    for shared, workers in ((1 << 30, 4), (16000, 2), (8000, 1), (7999, 0)):  # batches of 4, two of each worker
        machine(8, shared)
        assert settings(big)["num_workers"] == settings(ConcatDataset([tensors(8), big]))["num_workers"] == workers
    machine(8, shared=0)
    assert settings(Plain(tensors(20)))["num_workers"] == 4  # whose samples have no known size


def test_pages_are_pinned_for_a_gpu_alone():
    for device, pinned in ((torch.device("cuda"), True), (CPU, False)):
        assert settings(DATASETS["tensors"], device=device)["pin_memory"] is pinned
        assert settings(DATASETS["plain"], device=device)["pin_memory"] is pinned


class Tells(Plain):
    """The label is the process that read."""

    def __getitem__(self, index):
        return super().__getitem__(index)[0], os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["tensors", "concatenation", "plain"])
def test_a_reader_gives_pass_after_pass_what_is_asked_for(name, workers):
    reader = BatchReader(DATASETS[name], workers, CPU, torch.Generator())
    for order in ([[3, 1], [2], [7, 19, 0]], [range(5), range(5, 10)], [[4]], []):
        read = [(images[:, 0, 0, 0].tolist(), labels.tolist()) for images, labels in reader.read(order)]
        assert read == [(list(batch), [i % 7 for i in batch]) for batch in order]


def test_workers_stay_from_one_pass_to_the_next():
    reader = BatchReader(Tells(tensors(20)), 2, CPU, torch.Generator())
    seen = [{int(p) for _, pids in reader.read(in_order(tensors(20), size)) for p in pids} for size in (5, 4)]
    assert len(seen[0]) == 3 and seen[0] == seen[1]


def test_all_read_the_first_batch_since_the_model_waits_for_it():
    reader = BatchReader(Tells(tensors(20)), 2, CPU, torch.Generator())
    for order in (in_order(tensors(20), 6), [[3, 1], range(5), range(5)]):
        first, *rest = [pids.tolist() for _, pids in reader.read(order)]
        assert list(map(len, (first, *rest))) == list(map(len, order))
        assert len(set(first)) == min(3, len(first)) and os.getpid() in first
        assert all(len(set(pids)) == 1 and os.getpid() not in pids for pids in rest)


class Noisy(Plain):
    """Draws from the global generator, as random transforms do."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + torch.rand(()), label


def test_chance_in_the_first_batch_is_that_of_the_readers_generator():
    order = [range(6), range(6)]
    first, again, other = (
        torch.cat([images for images, _ in BatchReader(Noisy(tensors(20)), 1, CPU, generator).read(order)])
        for generator in (torch.Generator().manual_seed(seed) for seed in (1, 1, 2))
    )
    assert torch.equal(first, again) and not (first == other).any()


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    for workers, data in ((0, DATASETS["plain"]), (1, DATASETS["plain"]), (1, Noisy(tensors(20)))):
        for _ in BatchReader(data, workers, CPU, torch.Generator()).read([[0], [1]]):
            pass
    assert torch.equal(torch.get_rng_state(), state)


def test_images_once_read_need_no_worker_while_they_are_small(small, machine):
    machine(4)
    kept = as_dataset(small.train, build_transform("none", channels=None), memory_limit=0)
    order = in_order(kept, 4)
    assert kept.sample_bytes == kept[0][0].nbytes == 256
    assert loader_settings(kept, CPU, order)["num_workers"] == 2
    kept.gather(range(8))
    assert loader_settings(kept, CPU, order[:2])["num_workers"] == 0  # these, and not the others
    assert loader_settings(kept, CPU, order)["num_workers"] == 2


def test_large_images_keep_their_workers(machine):
    """To make floats of 224 × 224 pixels takes about as long as to decode them."""
    from PIL import Image

    from mlflow_unlearn.data.source import ImageStore, Split

    machine(4)
    pixels = np.zeros((6, 80, 80, 3), np.uint8)
    part = Split(tuple("abcdef"), np.zeros(6, np.int64), ImageStore(Image.fromarray, pixels))
    kept = as_dataset(part, build_transform("none", channels=3), memory_limit=0)
    kept.gather(range(6))
    assert kept.store.complete and loader_settings(kept, CPU, in_order(kept, 2))["num_workers"] == 2
