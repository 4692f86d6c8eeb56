"""Entries that are made once, checked when read, and made again when they are damaged."""

import os
import time

import numpy as np
import pytest

from mlflow_unlearn import cache

KEY = {"a": 1, "b": [1, 2]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Made:
    """Counts how often an entry is made."""

    def __init__(self, value: float = 1.0) -> None:
        self.times, self.value = 0, value

    def __call__(self) -> cache.Arrays:
        self.times += 1
        return {"x": np.full((2, 3), self.value), "n": np.arange(4)}


def entries(folder):
    return sorted(folder.rglob("*.safetensors"))


def test_made_once_and_the_same_after(folder):
    make = Made()
    first, second = cache.arrays("kind", KEY, make), cache.arrays("kind", dict(reversed(KEY.items())), make)
    assert make.times == 1 and len(entries(folder)) == 1
    for name, array in first.items():
        assert np.array_equal(array, second[name]) and array.dtype == second[name].dtype


def test_other_keys_and_other_kinds_are_other_entries(folder):
    make = Made()
    for kind, key in (("kind", KEY), ("kind", {"a": 2}), ("other", KEY)):
        cache.arrays(kind, key, make)
    assert make.times == 3 and len(entries(folder)) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"\xff" * len(data),
    ],
)
def test_a_damaged_entry_is_named_and_made_again(folder, damage, capfd):
    make = Made()
    cache.arrays("kind", KEY, make)
    [path] = entries(folder)
    path.write_bytes(damage(path.read_bytes()))
    again = cache.arrays("kind", KEY, make)
    assert make.times == 2 and again["x"].mean() == 1
    assert f"the cache entry {path} is damaged" in capfd.readouterr().err
    cache.arrays("kind", KEY, make)
    assert make.times == 2


def test_a_folder_that_cannot_be_written_is_named_and_does_not_matter(tmp_path, monkeypatch, capfd):
    """A file in the place of the folder: root, who runs CI, may write to every real folder."""
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "taken"))
    assert cache.arrays("kind", KEY, Made(7))["x"].mean() == 7
    assert "cannot be written" in capfd.readouterr().err


@pytest.mark.machine("Linux")
def test_a_full_disk_leaves_nothing_behind(folder, monkeypatch, capfd):
    def full(content, path, metadata):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr(cache, "save_file", full)
    assert cache.arrays("kind", KEY, Made(7))["x"].mean() == 7
    assert "No space left" in capfd.readouterr().err
    assert [path.suffix for path in folder.rglob("*") if path.is_file()] == [".lock"]


def test_off_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    make = Made()
    cache.arrays("kind", KEY, make)
    cache.arrays("kind", KEY, make)
    assert make.times == 2 and not list(tmp_path.iterdir())


def test_what_has_not_been_read_for_long_is_dropped(folder):
    make = Made()
    cache.arrays("kind", {"n": 1}, make)
    cache.arrays("kind", {"n": 2}, make)
    old = time.time() - 86400 * (cache.DAYS + 1)
    for path in entries(folder):
        os.utime(path, (old, old))
    cache.arrays("kind", {"n": 1}, make)  # is read, and so stays
    cache.arrays("kind", {"n": 3}, make)
    assert len(entries(folder)) == 2
    cache.arrays("kind", {"n": 1}, make)
    assert make.times == 3


def test_two_processes_that_need_the_same_entry_make_it_once(folder, tmp_path):
    def make():
        with open(tmp_path / "made", "a") as file:
            file.write("made ")
        time.sleep(1)
        return {"x": np.ones(1000)}

    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            os._exit(0 if cache.arrays("kind", KEY, make)["x"].sum() == 1000 else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert (tmp_path / "made").read_text() == "made "


def test_entries_are_listed_with_the_keys_that_they_depend_on(folder, monkeypatch):
    assert list(cache.entries("kind")) == []
    cache.arrays("kind", KEY, Made())
    (folder / "kind" / "broken.safetensors").write_bytes(b"x")
    assert {path.name == "broken.safetensors": key for path, key in cache.entries("kind")} == {True: {}, False: KEY}
    assert not cache.off()
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", "off")
    assert cache.off()
