import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from mlflow_unlearn.data.datasets import Augmented, ImageDataset, as_dataset, build_augment
from mlflow_unlearn.data.sources import load_source
from mlflow_unlearn.data.splits import Splits, labels_of
from mlflow_unlearn.data.transforms import build_transform
from mlflow_unlearn.errors import UnlearnError

NONE = build_transform("none", channels=None)


def test_memory_and_disk_give_the_same_samples(tree):
    part = load_source(f"folder:{tree('set', train=3, test=2)}").train
    kept, lazy = as_dataset(part, NONE), as_dataset(part, NONE, memory_limit=100)
    assert isinstance(kept, TensorDataset) and isinstance(lazy, ImageDataset)
    assert len(kept) == len(lazy) == 6
    for i in range(6):
        expected = torch.from_numpy(np.array(part.images[i])).permute(2, 0, 1) / 255
        assert torch.allclose(kept[i][0], expected) and torch.equal(lazy[i][0], kept[i][0])
        assert int(kept[i][1]) == lazy[i][1] == part.labels[i]
    assert type(lazy[0][1]) is int and labels_of(lazy).tolist() == labels_of(kept).tolist() == part.labels.tolist()


def test_the_limit_counts_the_transformed_bytes(small):
    need = 12 * 8 * 8 * 4  # images, pixels, bytes of a float32
    assert isinstance(as_dataset(small.train, NONE, memory_limit=need), TensorDataset)
    assert isinstance(as_dataset(small.train, NONE, memory_limit=need - 1), ImageDataset)


def test_progress_wraps_the_numbers_that_are_read(small):
    seen = []

    def progress(numbers):
        for i in numbers:
            seen.append(i)
            yield i

    as_dataset(small.val, NONE, progress=progress)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_relabel_gives_the_models_output_indices(small, limit):
    dataset = as_dataset(small.val, NONE, relabel=np.array([7, 3]), memory_limit=limit)
    assert [int(label) for _, label in dataset] == [7, 3, 7, 3] if limit else [dataset[i][1] for i in range(4)]
    assert labels_of(dataset).tolist() == [7, 3, 7, 3]
    for lost in ([7], [7, -1]):
        with pytest.raises(UnlearnError, match="no output for the source's classes 1"):
            as_dataset(small.val, NONE, relabel=np.array(lost), memory_limit=limit)


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_other_sizes_are_named(tree, scan, limit):
    root = tree("set", train=2, test=2)
    scan(9, 5).resize((20, 10)).convert("RGB").save(root / "train/nine/1.png")
    part = load_source(f"folder:{root}").train
    message = "'train/eight/0.png' is 16 × 16 with 3 channels and 'train/nine/1.png' is 20 × 10.*transform=imagenet or"
    with pytest.raises(UnlearnError, match=message):
        list(DataLoader(as_dataset(part, NONE, memory_limit=limit), batch_size=2))
    assert as_dataset(part, build_transform("imagenet", channels=3))[3][0].shape == (3, 224, 224)


@pytest.mark.parametrize("limit", [0, 1 << 30])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_named(tree, limit, workers):
    root = tree("set", train=2, test=2)
    whole = (root / "train/nine/1.png").read_bytes()
    part = load_source(f"folder:{root}").train
    for broken in (b"no image", whole[: len(whole) // 2], b""):
        (root / "train/nine/1.png").write_bytes(broken)
        with pytest.raises(UnlearnError, match="^can't decode the image 'train/nine/1.png'") as caught:
            list(DataLoader(as_dataset(part, NONE, memory_limit=limit), num_workers=workers))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda image: image, "made Image of 'val/0.png'"),
        (lambda image: torch.zeros(8, 8), r"made torch.float32 \[8, 8\]"),
        (lambda image: torch.zeros(1, 8, 8, dtype=torch.uint8), "made torch.uint8.*return a float tensor"),
        (None, "images need a transform"),
    ],
)
def test_what_is_no_image_tensor_is_refused(small, transform, message):
    with pytest.raises(UnlearnError, match=message):
        as_dataset(small.val, transform)


def test_empty_parts_are_refused(small):
    with pytest.raises(UnlearnError, match="without samples"):
        as_dataset(small.val.subset([]), NONE)


def test_ready_samples_are_untouched(tmp_path):
    (tmp_path / "made_ready.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\nfrom mlflow_unlearn.data.splits import Splits\n"
        "def one(v): return TensorDataset(torch.full((2, 1, 2, 2), v), torch.tensor([0, 1]))\n"
        "def splits(): return Splits(one(9.), one(-4.), one(0.), one(1.))\n"
    )
    source = load_source("python:made_ready:splits")
    dataset = as_dataset(source.train.subset([1, 2]), None, ready=True, relabel=np.arange(2))
    assert [(float(x[0, 0, 0]), int(y)) for x, y in dataset] == [(-4.0, 1), (9.0, 0)]
    with pytest.raises(UnlearnError, match="can't be renumbered"):
        as_dataset(source.train, None, ready=True, relabel=np.array([1, 0]))


# Augmentation


def test_crop_flip_moves_by_an_eighth_at_most_and_mirrors():
    torch.manual_seed(0)
    image = torch.zeros(1, 16, 24)
    image[0, 8, 5] = 1
    crop = build_augment("crop-flip")
    spots = {tuple((crop(image)[0] == 1).nonzero()[0].tolist()) for _ in range(300)}
    rows, columns = {row for row, _ in spots}, {column for _, column in spots}
    assert rows == set(range(6, 11))  # 8 ± 16/8
    assert columns == set(range(2, 9)) | set(range(15, 22))  # 5 ± 24/8, and mirrored 18 ± 3
    assert crop(image).shape == image.shape


def test_augmented_changes_images_and_nothing_beneath(small):
    dataset = as_dataset(small.train, NONE)
    before = dataset.tensors[0].clone()
    augmented = Augmented(dataset, "crop-flip")
    torch.manual_seed(1)
    changed = torch.stack([augmented[i][0] for i in range(12)])
    assert not torch.equal(changed, before) and torch.equal(dataset.tensors[0], before)
    assert not torch.equal(torch.stack([augmented[i][0] for i in range(12)]), changed)
    torch.manual_seed(1)
    assert torch.equal(torch.stack([augmented[i][0] for i in range(12)]), changed)
    assert len(augmented) == 12 and augmented[3][1] == 1 and torch.equal(augmented.labels, labels_of(dataset))
    plain = Augmented(dataset, "none")
    assert all(torch.equal(plain[i][0], before[i]) for i in range(12))
    with pytest.raises(UnlearnError, match="unknown augmentation 'flip'.*'none', 'crop-flip'"):
        Augmented(dataset, "flip")


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_splits_are_read_alike_each_time(tree, limit):
    source = load_source(f"folder:{tree('set', train=4, test=4)}")
    parts = (source.train.subset([0, 5]), source.train.subset([1, 2, 3, 4, 6, 7]), source.val, source.test)
    splits = Splits(*(as_dataset(part, NONE, memory_limit=limit) for part in parts))
    for dataset in (splits.forget, splits.retain, splits.val, splits.test):
        first, second = (torch.stack([dataset[i][0] for i in range(len(dataset))]) for _ in range(2))
        assert torch.equal(first, second) and first.std() > 0
