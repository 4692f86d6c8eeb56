import hashlib

import pytest

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError

IDS = ("train/b, c.png", 'say "hi".png', "ä/\u2028ü.png", "a.png", "# salt=1", "id", " x ")


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_digest_is_over_the_sorted_stored_ids():
    assert Manifest(("b", "a")).digest == sha("a\nb") == Manifest(("a", "b")).digest
    assert Manifest(("b", "a")).hashed("00ff").digest == sha("\n".join(sorted([sha("00ff\na"), sha("00ff\nb")])))


def test_hashing_hides_names_and_still_finds_them():
    plain = Manifest(IDS)
    hashed = plain.hashed()
    assert len(hashed.salt) == 32 and int(hashed.salt, 16) >= 0
    assert hashed.salt != plain.hashed().salt and hashed.digest != plain.hashed().digest
    # sorted: their order must not tell which is which
    assert hashed.ids == tuple(sorted(sha(f"{hashed.salt}\n{i}") for i in IDS))
    for manifest in (plain, hashed):
        assert manifest.mask(["a.png", "b.png", "id"]).tolist() == [True, False, True]
    assert plain.mask([]).dtype == bool
    with pytest.raises(UnlearnError, match="hashed already"):
        hashed.hashed()
    with pytest.raises(UnlearnError, match="'salty' is not hexadecimal"):
        plain.hashed("salty")


@pytest.mark.parametrize("salt", [None, "00ff"])
def test_csv_round_trip(tmp_path, salt):
    manifest = Manifest(IDS) if salt is None else Manifest(IDS).hashed(salt)
    manifest.to_csv(tmp_path / "m.csv")
    lines = (tmp_path / "m.csv").read_bytes().decode().split("\n")
    assert lines[:2] == (["id", " x "] if salt is None else ["# salt=00ff", "id"])
    again = Manifest.from_csv(tmp_path / "m.csv")
    assert again == Manifest(tuple(sorted(manifest.ids)), salt) and again.digest == manifest.digest
    assert again.mask(IDS).all()


def test_tables_of_others_are_read(tmp_path):
    (tmp_path / "m.csv").write_bytes('\ufeffpath,id\r\nx,"a,b"\r\n\r\ny,c\r\n'.encode())
    assert Manifest.from_csv(tmp_path / "m.csv").ids == ("a,b", "c")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,label\nx,y\n", "no column 'id'.*'path', 'label'"),
        (b"", "no column 'id'"),
        (b"id\na,b\n", "line 2 .*double quotes"),
        (b"path,id\na\n", "line 2 .*double quotes"),
        (b"# salt=xyz\nid\n", "'xyz' is not hexadecimal"),
        (b"id\n\xff\xfe\n", "can't read the list of ids"),
    ],
)
def test_bad_tables_are_refused(tmp_path, content, message):
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(UnlearnError, match=message):
        Manifest.from_csv(tmp_path / "m.csv")


def test_missing_files_and_line_breaks_are_refused(tmp_path):
    with pytest.raises(UnlearnError, match="can't read the list of ids .*none.csv"):
        Manifest.from_csv(tmp_path / "none.csv")
    with pytest.raises(UnlearnError, match="line breaks"):
        Manifest(("a\nb",))
