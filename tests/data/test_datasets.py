import os
import pickle
import signal
import sys
import traceback

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from mlflow_unlearn import console
from mlflow_unlearn.data._layouts import file_split
from mlflow_unlearn.data.batching import BatchReader
from mlflow_unlearn.data.datasets import Augmented, ImageDataset, KeptDataset, as_dataset, build_augment
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.splits import Splits, labels_of
from mlflow_unlearn.data.transforms import build_transform
from mlflow_unlearn.errors import UnlearnError

NONE = build_transform("none", channels=None)
NOWHERE, IN_FILE, IN_MEMORY = {"memory_limit": 0, "disk_limit": 0}, {"memory_limit": 0}, {}
PLACES = pytest.mark.parametrize("place", [NOWHERE, IN_FILE, IN_MEMORY], ids=["nowhere", "file", "memory"])


def everything(dataset):
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


def test_each_place_gives_the_same_samples(tree):
    part = load_source(f"folder:{tree('set', train=3, test=2)}").train
    kept, lazy = as_dataset(part, NONE), as_dataset(part, NONE, **NOWHERE)
    assert isinstance(kept, TensorDataset) and isinstance(lazy, ImageDataset)
    in_file = as_dataset(part, NONE, **IN_FILE)
    assert len(kept) == len(lazy) == len(in_file) == 6
    for i in range(6):
        expected = torch.from_numpy(np.array(part.images[i])).permute(2, 0, 1) / 255
        assert torch.allclose(kept[i][0], expected) and torch.equal(lazy[i][0], kept[i][0])
        assert torch.equal(in_file[i][0], kept[i][0])
        assert int(kept[i][1]) == lazy[i][1] == in_file[i][1] == part.labels[i]
    assert type(lazy[0][1]) is type(in_file[0][1]) is int
    assert labels_of(lazy).tolist() == labels_of(in_file).tolist() == labels_of(kept).tolist() == part.labels.tolist()


def test_the_limits_count_what_is_kept(small):
    floats, pixels = 12 * 8 * 8 * 4, 12 * (8 * 8 + 1)  # images, bytes of each; a flag beside the pixels
    assert isinstance(as_dataset(small.train, NONE, memory_limit=floats), TensorDataset)
    for limit in (floats - 1, pixels):
        assert isinstance(as_dataset(small.train, NONE, memory_limit=limit, disk_limit=0), KeptDataset)
    assert isinstance(as_dataset(small.train, NONE, memory_limit=pixels - 1, disk_limit=0), ImageDataset)
    assert isinstance(as_dataset(small.train, NONE, memory_limit=pixels - 1, disk_limit=pixels), KeptDataset)
    assert isinstance(as_dataset(small.train, NONE, memory_limit=0, disk_limit=pixels - 1), ImageDataset)


def test_a_disk_without_folder_leaves_reading_as_it_is(small, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    assert isinstance(as_dataset(small.train, NONE, memory_limit=0), ImageDataset)


def photographs(tmp_path, count):
    """JPEGs with edges and colours, 300 × 280."""
    random = np.random.default_rng(0)
    (tmp_path / "jpeg").mkdir()
    for n in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (9, 9, 3), np.uint8)).resize(
            (300, 280), Image.Resampling.BICUBIC
        )
        coarse.save(tmp_path / f"jpeg/{n}.jpg")
    return file_split(tmp_path, [f"jpeg/{n}.jpg" for n in range(count)], [n % 2 for n in range(count)])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("spec", ["none", "imagenet", "timm"])
def test_pixels_are_kept_once_and_come_back_bit_by_bit(tmp_path, spec, workers):
    part = photographs(tmp_path, 6)
    model = timm.create_model("resnet18", num_classes=2) if spec == "timm" else None
    transform = build_transform(spec, channels=3, model=model)
    lazy = as_dataset(part, transform, **NOWHERE)
    for place in (IN_FILE, {"memory_limit": 6 * (lazy.first.nbytes + 1)}):
        kept = as_dataset(part, transform, **place)
        if spec == "timm" and place["memory_limit"]:
            assert isinstance(kept, TensorDataset)  # floats already, which fit
            continue
        assert isinstance(kept, KeptDataset) and not kept.store.complete
        first = torch.cat([images for images, _ in DataLoader(kept, batch_size=4, num_workers=workers)])
        assert kept.store.complete  # what workers read is there for all
        assert torch.equal(first, everything(lazy)) and first.is_contiguous()
        images, labels = kept.gather([5, 0, 3])
        assert torch.equal(images, first[[5, 0, 3]]) and labels.tolist() == [1, 0, 1]
        assert torch.equal(lazy.gather(torch.tensor([5, 0, 3]))[0], images)
        images.zero_()  # a batch is the caller's own
        assert torch.equal(kept[5][0], first[5])


def test_an_image_is_decoded_once(tmp_path):
    part = photographs(tmp_path, 3)
    kept = as_dataset(part, NONE, memory_limit=0)
    before = everything(kept)
    for n in range(3):
        (tmp_path / f"jpeg/{n}.jpg").unlink()
    assert torch.equal(everything(kept), before)
    with pytest.raises(UnlearnError, match="can't decode the image 'jpeg/0.jpg' .*No such file"):
        as_dataset(part, NONE)


@PLACES
def test_each_image_is_read_once_in_a_pass(tmp_path, place):
    """The first one too, whose shape all others must have."""
    part = photographs(tmp_path, 5)
    read, names = part.images.read, []
    part.images.read = lambda name: names.append(name) or read(name)
    dataset = as_dataset(part, NONE, **place)
    everything(dataset)
    assert sorted(names) == list(part.ids)


def test_nothing_of_the_pixels_stays_on_disk(tmp_path, monkeypatch):
    """Not even when the process is killed: the file has no name."""
    part = photographs(tmp_path, 2)
    (tmp_path / "left").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "left"))
    child = os.fork()
    if child == 0:
        kept = as_dataset(part, NONE, memory_limit=0)
        whole = isinstance(kept, KeptDataset) and len([kept[0], kept[1]]) == 2 and kept.store.complete
        if whole and not os.listdir(tmp_path / "left"):
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL and not os.listdir(tmp_path / "left")


def test_a_process_that_is_not_forked_reads_the_images_itself(small):
    kept = as_dataset(small.train, NONE, memory_limit=0)
    assert isinstance(pickle.loads(pickle.dumps(kept)), ImageDataset)
    assert torch.equal(everything(pickle.loads(pickle.dumps(kept))), everything(kept))


def test_progress_wraps_the_numbers_that_are_read(small):
    seen = []

    def progress(numbers):
        for i in numbers:
            seen.append(i)
            yield i

    as_dataset(small.val, NONE, progress=progress)
    assert seen == [0, 1, 2, 3]


@PLACES
def test_relabel_gives_the_models_output_indices(small, place):
    dataset = as_dataset(small.val, NONE, relabel=np.array([7, 3]), **place)
    assert [int(dataset[i][1]) for i in range(4)] == [7, 3, 7, 3]
    assert labels_of(dataset).tolist() == [7, 3, 7, 3]
    for lost in ([7], [7, -1]):
        with pytest.raises(UnlearnError, match="no output for the source's classes 1"):
            as_dataset(small.val, NONE, relabel=np.array(lost), **place)


@PLACES
def test_other_sizes_are_named(tree, scan, place):
    root = tree("set", train=2, test=2)
    scan(9, 5).resize((20, 10)).convert("RGB").save(root / "train/nine/1.png")
    part = load_source(f"folder:{root}").train
    message = "'train/eight/0.png' is 16 × 16 with 3 channels and 'train/nine/1.png' is 20 × 10.*transform=imagenet or"
    with pytest.raises(UnlearnError, match=message):
        list(DataLoader(as_dataset(part, NONE, **place), batch_size=2))
    assert as_dataset(part, build_transform("imagenet", channels=3))[3][0].shape == (3, 224, 224)


@pytest.mark.parametrize(("place", "workers"), [(NOWHERE, 0), (NOWHERE, 1), (IN_FILE, 0), (IN_MEMORY, 0)])
def test_a_broken_file_is_named(tree, place, workers):
    root = tree("set", train=2, test=2)
    whole = (root / "train/nine/1.png").read_bytes()
    part = load_source(f"folder:{root}").train
    for broken in (b"no image", whole[: len(whole) // 2], b""):
        (root / "train/nine/1.png").write_bytes(broken)
        with pytest.raises(UnlearnError, match="^can't decode the image 'train/nine/1.png'") as caught:
            list(DataLoader(as_dataset(part, NONE, **place), num_workers=workers))
        assert "\n" not in str(caught.value)
        traceback.clear_frames(caught.tb)  # a loader that waits to be collected keeps its worker for five seconds


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda image: image, "made Image of 'val/0.png'"),
        (lambda image: torch.zeros(8, 8), r"made torch.float32 \[8, 8\]"),
        (lambda image: torch.zeros(1, 8, 8, dtype=torch.uint8), "made torch.uint8.*return a float tensor"),
        (None, "images need a transform"),
    ],
)
def test_what_is_not_an_image_tensor_is_refused(small, transform, message):
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


@PLACES
def test_splits_are_read_alike_each_time(tree, place):
    source = load_source(f"folder:{tree('set', train=4, test=4)}")
    parts = (source.train.subset([0, 5]), source.train.subset([1, 2, 3, 4, 6, 7]), source.val, source.test)
    splits = Splits(*(as_dataset(part, NONE, **place) for part in parts))
    for dataset in (splits.forget, splits.retain, splits.val, splits.test):
        first, second = (torch.stack([dataset[i][0] for i in range(len(dataset))]) for _ in range(2))
        assert torch.equal(first, second) and first.std() > 0


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "raise ValueError('odd')",
            r"^'made_failing:f' failed \(ValueError: odd\): correct it, or name another",
        ),
        ("sys.exit()", r"^'made_failing:f' called sys.exit\(None\), which would have ended the command"),
        ("return image", "^the transform made Image of '.*': return a float tensor"),
    ],
)
def test_a_transform_that_fails(small, tmp_path, monkeypatch, workers, code, says):
    """On the first sample, which is read at once, and on a later one, in a process that loads data."""
    first = "seen = []\ndef f(image):\n    seen.append(1)\n    if len(seen) > {0}:\n        {1}\n"
    last = "    return torch.zeros(1, 2, 2)\n"
    for fine in (0, 1):
        (tmp_path / "made_failing.py").write_text(f"import sys, torch\n{first.format(fine, code)}{last}")
        monkeypatch.delitem(sys.modules, "made_failing", raising=False)
        transform = build_transform("python:made_failing:f", channels=None)
        with pytest.raises(UnlearnError, match=says):
            dataset = as_dataset(small.train, transform, **NOWHERE)
            assert fine == 1
            reader = BatchReader(dataset, workers, torch.device("cpu"), torch.Generator())
            list(reader.read([[0, 1], [2]]))
        sys.modules.pop("made_failing")


class Leaves(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_source_that_fails(workers, monkeypatch):
    """`sys.exit` is always an error; others become a sentence in a command, and stay what they are in Python."""
    dataset = Leaves()
    for command_line, error, kind, says in (
        (False, SystemExit(4), UnlearnError, r"^reading the data called sys.exit\(4\)"),
        (False, LookupError("lost"), LookupError, "lost"),
        (True, LookupError("lost"), UnlearnError, r"^reading the data failed \(LookupError: lost\): correct the data"),
    ):
        if command_line:
            monkeypatch.setattr(sys, "stdout", console.Output(sys.stdout))
        dataset.error = error
        reader = BatchReader(dataset, workers, torch.device("cpu"), torch.Generator())
        with pytest.raises(kind, match=says):
            list(reader.read([[0, 1], [2]]))
