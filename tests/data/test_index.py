"""The listing of folders is kept between commands, and never believed when something changed."""

import os
import shutil
from pathlib import Path

import pytest
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from mlflow_unlearn import cache
from mlflow_unlearn.data import _index, _layouts
from mlflow_unlearn.data._index import indexed, pack, unpack
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.errors import UnlearnError


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Folders count as settled at once: these tests change them too seldom to fall into one tick."""
    monkeypatch.setattr(_index, "SETTLED", 0.0)


@pytest.fixture
def scans(monkeypatch):
    """Names of the class folders, and of those in them, that were scanned."""
    seen, scandir = [], os.scandir

    def scan(path):
        seen.extend({Path(path).name} & {"eight", "nine", "old", "deep"})
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    return seen


def listed(root):
    source = load_source(f"folder:{root}")
    return {name: getattr(source, name).ids for name in ("train", "val", "test")}


def entries():
    return sorted((cache.folder() / "listings").rglob("*.safetensors"))


def test_a_warm_start_scans_nothing_and_lists_the_same(tree, scans):
    root = tree("set", train=3, test=2)
    cold = listed(root)
    assert scans == ["eight", "nine"] * 2
    scans.clear()
    assert listed(root) == cold and scans == []


@pytest.mark.parametrize("inner", ["", "old/deep/"])
def test_what_comes_and_goes_is_seen(tree, save, scans, inner):
    root = tree("set", **{"train": 3, "test": 2})
    save(8, 1, f"set/train/eight/{inner}first.png")
    before = listed(root)
    save(8, 5, f"set/train/eight/{inner}more.png")
    after = listed(root)
    assert set(after["train"]) - set(before["train"]) == {f"train/eight/{inner}more.png"}
    (root / f"train/eight/{inner}more.png").unlink()
    assert listed(root) == before
    scans.clear()
    assert listed(root) == before and scans == []


def test_a_folder_that_was_changed_and_given_its_old_time_is_scanned_again(tree, save):
    root = tree("set", train=3, test=2)
    listed(root)
    times = os.stat(root / "train/nine")
    save(8, 5, "set/train/nine/more.png")
    os.utime(root / "train/nine", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "train/nine/more.png" in listed(root)["train"]


def test_a_folder_that_has_just_changed_is_not_kept(tree, monkeypatch):
    monkeypatch.setattr(_index, "SETTLED", 3600.0)
    listed(tree("set", train=3, test=2))
    assert entries() == []


def test_names_of_files_that_are_gone_go_too(tree, save):
    root = tree("set", train=3, test=2)
    ann = save(8, 5, "set/train/nine/ann.png")
    listed(root)
    kept = entries()
    assert any(b"ann.png" in entry.read_bytes() for entry in kept)
    ann.unlink()
    listed(root)
    assert len(entries()) == len(kept)
    assert not any(b"ann.png" in entry.read_bytes() for entry in entries())


def test_the_order_is_torchvisions(tree, save):
    root = tree("set", **{".": 4})
    for name in ("nine/b-c/1.png", "nine/b/2.PNG", "nine/b/a/0.png", "nine/z.jpeg", "eight-0/1.png", "eight/x/1.webp"):
        save(9, 1, f"set/{name}")
    (root / "nine/notes.txt").write_text("no image")
    source = _layouts.list_folder(root)[1]["all"]
    samples = make_dataset(str(root), {"eight": 0, "eight-0": 1, "nine": 2}, extensions=IMG_EXTENSIONS)
    assert [(str(root / path), label) for path, label in zip(source.ids, source.labels, strict=True)] == samples


def test_without_a_writable_cache_everything_works(tree, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "file"))
    assert len(listed(tree("set", train=3, test=2))["train"]) == 6


def test_a_link_to_nowhere_is_named(tree, tmp_path):
    with pytest.raises(UnlearnError, match="can't list '.*/gone' .No such file or directory.: make it readable"):
        indexed(tmp_path, "all", ["gone"], dict)


def test_texts_are_packed_and_come_back():
    for texts in ([], [""], ["a", "", "ä\n", os.fsdecode(b"\xff.png")]):
        assert unpack(pack(texts)) == texts


def test_moving_the_data_is_another_place(tree, tmp_path, scans):
    root = tree("set", train=3, test=2)
    before = listed(root)
    shutil.move(root, tmp_path / "moved")
    assert listed(tmp_path / "moved") == before and len(scans) == 8
