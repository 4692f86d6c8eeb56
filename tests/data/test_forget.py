from dataclasses import replace

import numpy as np
import pytest

from mlflow_unlearn.data.forget import resolve_forget, retained
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError

ALL = np.ones(12, dtype=bool)


def no_request(name):
    raise AssertionError(f"asked for the request {name}")


def resolve(spec, source, training=ALL, read_request=no_request):
    return resolve_forget(str(spec), source, training, read_request).indices.tolist()


def without(*indices):
    mask = ALL.copy()
    mask[list(indices)] = False
    return mask


@pytest.mark.parametrize(
    "content",
    [
        b"train/10.png\ntrain/2.png\n",
        b"\xef\xbb\xbftrain/10.png\r\n\r\n  \r\ntrain/2.png",
        b"id\ntrain/10.png\n\ntrain/2.png\n",
        b'\xef\xbb\xbflabel,id\r\ncat,train/2.png\r\n"dog, small",train/10.png\r\n',
    ],
)
@pytest.mark.parametrize("name", ["ids.txt", "ids.csv"])
def test_files_of_ids(small, tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    assert resolve(tmp_path / name, small) == [2, 10]


def test_lines_keep_commas_and_quotes(small, tmp_path):
    train = replace(small.train, ids=('a, "b".png', *small.train.ids[1:]))
    (tmp_path / "ids.txt").write_text('a, "b".png\ntrain/1.png\n')
    assert resolve(tmp_path / "ids.txt", replace(small, train=train)) == [0, 1]


@pytest.mark.parametrize("salt", [None, "aa"])
def test_manifests_from_files_and_requests(small, tmp_path, salt):
    manifest = Manifest(("train/3.png", "train/0.png"))
    manifest = manifest if salt is None else manifest.hashed(salt)
    manifest.to_csv(tmp_path / "m.csv")
    assert resolve(tmp_path / "m.csv", small) == [0, 3]
    assert resolve("request:r-17", small, read_request={"r-17": manifest}.__getitem__) == [0, 3]


@pytest.mark.parametrize("salt", [None, "aa"])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["train/0.png", "train/x.png", "y"], "doesn't have: 'train/x.png', 'y'$"),
        ([f"n{i:02}" for i in range(23)], r"'n00', .*'n09', … \(23 in all\)$"),
        (["train/0.png", "val/1.png", "test/0.png"], "never trained on: 'val/1.png', 'test/0.png'$"),
        (["train/0.png", "train/1.png", "train/2.png"], "wasn't trained on.*: 'train/1.png', 'train/2.png'$"),
        ([], "nothing to forget"),
    ],
)
def test_ids_that_cannot_be_forgotten_are_listed(small, ids, message, salt):
    manifest = Manifest(tuple(ids)) if salt is None else Manifest(tuple(ids)).hashed(salt)
    if salt and "doesn't have" in message:
        message = "doesn't have: '[0-9a-f]{64}', '[0-9a-f]{64}'$"  # only hashes are known of these
    elif salt and "in all" in message:
        message = r"doesn't have: ('[0-9a-f]{64}', ){9}'[0-9a-f]{64}', … \(23 in all\)$"
    with pytest.raises(UnlearnError, match=message):
        resolve("request:r", small, without(1, 2), lambda _: manifest)


def test_random_is_stratified_seeded_and_drawn_from_what_is_trained_on():
    source = load_source("digits")
    training = np.ones(len(source.train), dtype=bool)
    training[::3] = False
    trained = np.bincount(source.train.labels[training])
    chosen = resolve_forget("random:10%", source, training, no_request).indices
    assert len(chosen) == round(0.1 * training.sum()) and training[chosen].all() and len(set(chosen)) == len(chosen)
    assert (np.abs(np.bincount(source.train.labels[chosen]) - 0.1 * trained) < 1).all()
    same, other, plain, both = (
        resolve_forget(f"random:{n}", source, training, no_request).indices
        for n in (f"{len(chosen)}", "10%,seed=1", "10%,plain", "10%,plain,seed=1")
    )
    assert (same == chosen).all()
    assert len({tuple(draw) for draw in (chosen, other, plain, both)}) == 4
    assert all(training[draw].all() and len(set(draw)) == len(chosen) for draw in (other, plain, both))
    assert (np.sort(plain) == plain).all()


def test_class_by_name_first_then_by_index(small):
    assert resolve("class:dog", small) == resolve("class:1", small) == [1, 3, 5, 7, 9, 11]
    assert resolve("class:dog", small, without(3, 4)) == [1, 5, 7, 9, 11]
    assert resolve("class:1", replace(small, classes=("1", "0"))) == [0, 2, 4, 6, 8, 10]


def test_group(small):
    assert resolve("group:subject=ann", small) == [0, 1, 2]
    assert resolve("group:subject=ann", small, without(1)) == [0, 2]
    train = replace(small.train, groups={"q": ("x=y",) * 2 + ("",) * 10})
    assert resolve("group:q=x=y", replace(small, train=train)) == [0, 1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("random:ten", "write random:10% or random:500"),
        ("random:10%,sead=1", "write random:10%"),
        ("random:-1", "write random:10%"),
        ("random:13", "asks for 13 of 12 training samples"),
        ("random:0", "nothing to forget"),
        ("random:1%", "nothing to forget"),
        ("random:100%", "names all 12 training samples"),
        ("class:dgo", "unknown class 'dgo': did you mean 'dog'.*'cat', 'dog'"),
        ("class:2", "unknown class '2': valid values: 'cat', 'dog'"),
        ("group:subject", "write group:COLUMN=VALUE"),
        ("group:subjekt=ann", "unknown group column 'subjekt': did you mean 'subject'"),
        ("group:subject=anna", "subject='anna': did you mean 'ann'.*'ann', 'bob'"),
        ("nowhere.txt", "no forget set 'nowhere.txt': give a file of ids, random:10%.*request:ID, class:NAME or group"),
        ("klass:dog", "no forget set 'klass:dog'"),
    ],
)
def test_bad_specs_are_refused(small, spec, message):
    with pytest.raises(UnlearnError, match=message):
        resolve(spec, small)


def test_what_was_forgotten_already_is_an_empty_set(small):
    for spec in ("class:cat", "group:subject=ann"):
        with pytest.raises(UnlearnError, match="still trained on: there is nothing to forget"):
            resolve(spec, small, without(*range(0, 12, 2), 1))
    with pytest.raises(UnlearnError, match="unknown group column 'x': the source has none"):
        resolve("group:x=y", replace(small, train=replace(small.train, groups={})))


def test_forgetting_the_rest_is_forgetting_everything(small):
    with pytest.raises(UnlearnError, match="names all 6 training samples"):
        resolve("class:dog", small, without(*range(0, 12, 2)))


def test_bad_files_are_refused(small, tmp_path):
    for content, message in (
        (b"path,label\nx,y\n", "no column 'id'"),
        (b"\xff\xfea\0", "save it as UTF-8"),
        (b"\n", "nothing"),
    ):
        (tmp_path / "ids.csv").write_bytes(content)
        with pytest.raises(UnlearnError, match=message):
            resolve(tmp_path / "ids.csv", small)


NONE = {"untrained": 0, "val": 0, "test": 0, "nowhere": 0}


@pytest.fixture
def scattered(small):
    """The subject ann has a validation and two test samples as well, and one that ``train=`` has left out."""
    val, test = (
        replace(split, groups={"subject": tuple("ann" if i < n else "bob" for i in range(4))})
        for split, n in ((small.val, 1), (small.test, 2))
    )
    unused = replace(small.train.subset([0]), ids=("train/99.png",))
    return replace(small, val=val, test=test, unused=unused)


def test_where_the_others_lie_that_a_spec_names(scattered, tmp_path):
    def elsewhere(spec, training=ALL, **options):
        selected = resolve_forget(str(spec), scattered, training, no_request, **options)
        return selected.indices.tolist(), dict(selected.elsewhere)

    rest = {"untrained": 0, "val": 1, "test": 2, "nowhere": 1}
    assert elsewhere("group:subject=ann") == ([0, 1, 2], rest)
    assert elsewhere("group:subject=ann", without(1)) == ([0, 2], rest | {"untrained": 1})
    assert elsewhere("class:cat", without(0)) == (
        [2, 4, 6, 8, 10],
        NONE | {"untrained": 1, "val": 2, "test": 2, "nowhere": 1},
    )
    assert elsewhere("random:3")[1] == NONE
    (tmp_path / "ids.txt").write_text("train/3.png\ntrain/4.png\n")
    assert elsewhere(tmp_path / "ids.txt") == ([3, 4], NONE)
    # What was fulfilled before may have left the source, or moved in it.
    (tmp_path / "ids.txt").write_text("train/3.png\ntrain/4.png\nval/0.png\ngone.png\ntrain/99.png\n")
    found = elsewhere(tmp_path / "ids.txt", without(4), lenient=True)
    assert found == ([3], {"untrained": 1, "val": 1, "test": 0, "nowhere": 2})


@pytest.mark.parametrize("salt", [None, "aa"])
@pytest.mark.parametrize("moved", ["val/0.png", "test/1.png", "train/99.png"])
def test_nothing_is_forgotten_by_half(scattered, moved, salt):
    """The version was trained on a sample that the source has elsewhere by now: it would stay in the model."""
    manifest = Manifest((*scattered.train.ids, moved))
    manifest = manifest if salt is None else manifest.hashed(salt)
    message = rf"names 1 samples that the version was trained on and that 'small' does not have .*\('{moved}'\)"
    for spec in ("group:subject=ann", "request:r"):
        with pytest.raises(UnlearnError, match=message):
            resolve_forget(spec, scattered, ALL, lambda _: Manifest(("train/0.png", moved)), lambda: manifest)
    # Of bob it has all.
    assert len(resolve_forget("group:subject=bob", scattered, ALL, no_request, lambda: manifest).indices) == 9


def test_retained_is_trained_on_and_not_forgotten(small):
    assert retained(without(0, 5), np.array([1, 11])).tolist() == [2, 3, 4, 6, 7, 8, 9, 10]
