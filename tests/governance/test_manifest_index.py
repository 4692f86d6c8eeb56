"""The index of training lists: what it counts, that it outlives a process, and that it can be thrown away."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.governance import manifest_index
from mlflow_unlearn.governance.manifest_index import FILE, Read, keys_of, opened, with_index

SALT = "ab" * 16


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path))
    return tmp_path


ids = st.sets(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1), max_size=20)


@given(trained=ids, asked=ids, salt=st.sampled_from([None, SALT]), hashed=st.booleans())
def test_it_counts_what_two_lists_have_in_common(trained, asked, salt, hashed):
    """As sets of plain ids would, also where both are hashed with one salt."""
    listed = Manifest(tuple(trained))
    listed = listed if salt is None else listed.hashed(salt)
    samples = Manifest(tuple(asked))
    samples = samples.hashed(SALT) if hashed and salt is not None else samples
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_UNLEARN_CACHE", "off")
        with opened() as index:
            index.add(listed)
            assert index.samples(listed.list_key) == len(trained)
            keys = keys_of(samples, salt)
            assert index.counts(listed.list_key, [keys, keys[:0]]) == [len(trained & asked), 0]


def test_lists_that_are_hashed_in_two_ways_cannot_be_compared():
    assert keys_of(Manifest(("a",)).hashed("00"), "11") is None
    assert keys_of(Manifest(("a",)).hashed("00"), None) is None


def test_a_list_that_another_tool_has_hashed(folder):
    with opened() as index, pytest.raises(UnlearnError, match="not hashed by SHA-256 with a salt"):
        index.add(Manifest(("d41d8cd98f00b204e9800998ecf8427e",), SALT))


def test_what_is_kept_is_there_the_next_time(folder):
    manifest = Manifest(("a", "b"))
    with opened() as index:
        index.add(manifest)
        index.remember("clf/1", Read(manifest.digest, None, "digits", "00"))
    with opened() as index:
        assert index.counts(manifest.list_key, [keys_of(Manifest(("b", "c")), None)]) == [1]
        assert index.read("clf/1") == Read(manifest.digest, None, "digits", "00") and index.read("clf/2") is None
    content = (folder / FILE).read_bytes()
    assert b"digits" in content and np.sort(keys_of(manifest, None)).tobytes() in content


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_file_that_is_no_index_is_made_anew(folder, content):
    (folder / FILE).write_bytes(content)
    with opened() as index:
        index.add(Manifest(("a",)))
    with opened() as index:
        assert index.samples(Manifest(("a",)).list_key) == 1


def damaged_blob(folder):
    with sqlite3.connect(folder / FILE) as other:
        (blob,) = other.execute("SELECT hashes FROM trained").fetchone()
        other.execute("UPDATE trained SET hashes = ?", (bytes([blob[0] ^ 1]) + blob[1:],))


def without_list(folder):
    with sqlite3.connect(folder / FILE) as other:
        other.execute("DELETE FROM trained")


@pytest.mark.parametrize("damage", [damaged_blob, without_list])
def test_a_file_that_is_damaged_amid_a_search_is_made_anew(folder, damage, capfd):
    manifest, keys = Manifest(tuple(map(str, range(1000)))), keys_of(Manifest(("7", "x")), None)
    damages = [damage]

    def work(index):
        if index.samples(manifest.list_key) is None:
            index.add(manifest)
        while damages:
            damages.pop()(folder)
        return index.counts(manifest.list_key, [keys])

    assert with_index(work) == [1] and "is damaged" in capfd.readouterr().err
    assert with_index(lambda index: index.counts(manifest.list_key, [keys])) == [1]


def test_a_file_with_damaged_pages_is_made_anew(folder, capfd):
    manifest = Manifest(tuple(map(str, range(1000))))

    def work(index):
        if index.samples(manifest.list_key) is None:
            index.add(manifest)
        return index.counts(manifest.list_key, [keys_of(Manifest(("7", "x")), None)])

    assert with_index(work) == [1]
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    assert with_index(work) == [1] and "is damaged" in capfd.readouterr().err
    assert with_index(work) == [1] and not capfd.readouterr().err


def test_a_file_that_is_locked_for_good_is_done_without(folder, monkeypatch, capfd):
    with_index(lambda index: index.add(Manifest(("a",))))
    monkeypatch.setattr(manifest_index, "PATIENCE", 0.1)
    with closing(sqlite3.connect(folder / FILE)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert with_index(lambda index: index.samples(Manifest(("a",)).list_key)) is None
    assert "cannot be used" in capfd.readouterr().err
    assert with_index(lambda index: index.samples(Manifest(("a",)).list_key)) == 1


def test_a_file_that_is_deleted_amid_a_search(folder):
    first, second = Manifest(("a",)), Manifest(("b",))

    def work(index):
        index.add(first)
        (folder / FILE).unlink(missing_ok=True)
        index.add(second)
        return [index.samples(manifest.list_key) for manifest in (first, second)]

    assert with_index(work) == [1, 1]


def test_off_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    with opened() as index:
        index.add(Manifest(("a",)))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "file" / "cache"))
    with opened() as index:
        index.add(Manifest(("a",)))
        assert index.samples(Manifest(("a",)).list_key) == 1
    assert "cannot be used" in capfd.readouterr().err


def test_a_database_that_cannot_be_written_goes_on_in_memory(folder, capfd):
    """Such as one on a full disk; here its tables have become others."""
    first, second = Manifest(("a",)), Manifest(("b",))
    with opened() as index:
        index.add(first)
    with opened() as index, sqlite3.connect(folder / FILE) as other:
        other.execute("DROP TABLE trained")
        other.execute("CREATE TABLE trained (key TEXT PRIMARY KEY)")
        other.commit()
        index.remember("clf/1", Read(None, source="kept"))
        index.add(second)
        assert index.samples(second.list_key) == 1 and index.read("clf/1").source == "kept"
    assert "kept in memory" in capfd.readouterr().err
