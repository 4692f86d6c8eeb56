"""Real images, laid out as the datasets are distributed."""

import gzip
import hashlib
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mlflow_unlearn.data.source import ImageStore, Source, Split

DIGITS = load_digits()
FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    """Modules of the working directory are imported: each test has its own, and leaves no path behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / ".cache"))


@pytest.fixture
def scan() -> Callable[[int, int], Image.Image]:
    """The n-th scan of a digit, as a 16 × 16 grey image."""

    def image(digit: int, n: int) -> Image.Image:
        pixels = DIGITS.images[DIGITS.target == digit][n]
        return Image.fromarray((pixels * 15.9375).round().astype(np.uint8)).resize((16, 16))

    return image


@pytest.fixture
def save(scan, tmp_path):
    """Save the n-th scan of a digit below the test's folder, and return the path."""

    def write(digit: int, n: int, name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        scan(digit, n).convert("RGB").save(path)
        return path

    return write


@pytest.fixture
def tree(save, tmp_path):
    """An ImageFolder: for each folder the number of images a class."""

    def build(root: str, **counts: int) -> Path:
        for folder, count in counts.items():
            for label, name in enumerate(("eight", "nine")):
                for n in range(count):
                    save(8 + label, n, f"{root}/{folder.replace('__', '/')}/{name}/{n}.png")
        return tmp_path / root

    return build


@pytest.fixture(scope="session")
def fashion(tmp_path_factory) -> Path:
    """Debian's Fashion-MNIST where torchvision looks for it."""
    if not FASHION.is_dir():
        pytest.skip("install the Debian package dataset-fashion-mnist")
    root = tmp_path_factory.mktemp("fashion")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in FASHION.glob("*.gz"):
        with gzip.open(packed) as source, open(raw / packed.stem, "wb") as target:
            shutil.copyfileobj(source, target)
    return root


def _colour(count: int, start: int = 0) -> np.ndarray:
    """Digits as rows of 3 × 32 × 32 bytes, as CIFAR's batches keep them."""
    pixels = (DIGITS.images[start : start + count] * 15.9375).round().astype(np.uint8)
    grey = np.kron(pixels, np.ones((4, 4), np.uint8))
    return np.stack([grey, grey // 2, 255 - grey], axis=1).reshape(count, -1)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10 or CIFAR-100 as distributed: same files and keys, fewer images, and the checksums that these have."""
    import torchvision

    def build(name: str) -> SimpleNamespace:
        kind = getattr(torchvision.datasets, name)
        folder = tmp_path / kind.base_folder
        folder.mkdir()

        def dump(file: str, content: object) -> str:
            (folder / file).write_bytes(pickle.dumps(content))
            return hashlib.md5((folder / file).read_bytes()).hexdigest()

        classes = 10 if name == "CIFAR10" else 100
        key = "labels" if name == "CIFAR10" else "fine_labels"

        def batch(file: str, number: int) -> list[str]:
            labels = [i % classes for i in range(200)]
            more = {} if name == "CIFAR10" else {"coarse_labels": [label // 5 for label in labels]}
            names = [f"{file}_{i:06d}.png" for i in range(200)]
            rows = {"data": _colour(200, 200 * number), key: labels, "filenames": names, "batch_label": file}
            return [file, dump(file, rows | more)]

        monkeypatch.setattr(kind, "train_list", [batch(file, i) for i, (file, _) in enumerate(kind.train_list)])
        monkeypatch.setattr(kind, "test_list", [batch(file, 6) for file, _ in kind.test_list])
        names = [f"class {i}" for i in range(classes)]
        meta = kind.meta | {"md5": dump(kind.meta["filename"], {kind.meta["key"]: names})}
        monkeypatch.setattr(kind, "meta", meta)
        return SimpleNamespace(root=tmp_path, classes=tuple(names))

    return build


@pytest.fixture
def small() -> Source:
    """Twelve training, four validation and four test samples of two classes, in two groups."""

    def part(name: str, count: int) -> Split:
        labels = np.arange(count) % 2
        ids = tuple(f"{name}/{i}.png" for i in range(count))
        return Split(ids, labels, ImageStore(Image.fromarray, DIGITS.images.astype(np.uint8)[:count]))

    train = part("train", 12)
    groups = {"subject": tuple("ann" if i < 3 else "bob" for i in range(12))}
    train = Split(train.ids, train.labels, train.images, groups)
    return Source("small", ("cat", "dog"), train, part("val", 4), part("test", 4))
