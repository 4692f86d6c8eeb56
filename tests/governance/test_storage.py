"""What is listed below a root, on this machine and in a bucket."""

import hashlib

import pytest
from buckets import s3_server

from mlflow_unlearn.governance.location import locate
from mlflow_unlearn.governance.storage import StoredFile, Unseen, stored_files


def listed(uri: str) -> tuple[dict[str, StoredFile], list[Unseen]]:
    found = list(stored_files(locate(uri)))
    files = {each.path: each for each in found if isinstance(each, StoredFile)}
    return files, [each for each in found if isinstance(each, Unseen)]


def test_a_folder_with_links(tmp_path):
    """Links to folders are followed as MLflow follows them, each folder once, also in a circle."""
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "weights.bin").write_bytes(b"1234")
    (root / "a" / "b" / "file").write_bytes(b"12")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(root / "a")
    (root / "a" / "circle").symlink_to(root)
    (root / "broken").symlink_to(tmp_path / "nowhere")
    (root / "file link").symlink_to(tmp_path / "elsewhere" / "weights.bin")
    files, unseen = listed(root.as_uri())
    assert not unseen
    assert sorted(path.rpartition("/")[2] for path in files) == ["file", "file link", "weights.bin"]
    assert files["link/weights.bin"].size == 4
    assert files["file link"].digest() == hashlib.sha256(b"1234").hexdigest()


def test_what_is_not_there_and_what_is_no_folder(tmp_path):
    assert listed((tmp_path / "nowhere").as_uri()) == ({}, [])
    (tmp_path / "file").write_text("x")
    files, [unseen] = listed((tmp_path / "file").as_uri())
    assert not files and unseen.place == str(tmp_path / "file") and unseen.why == "Not a directory"


@pytest.mark.parametrize("uri", ["relative/folder", "nowhere://host/folder", "s3:///no-bucket"])
def test_what_cannot_be_listed_is_named(uri, monkeypatch):
    with s3_server(monkeypatch):
        files, unseen = listed(uri)
    assert not files and uri in [each.place for each in unseen] and all(each.why for each in unseen)


def test_buckets(monkeypatch):
    """A whole one, and a folder whose name another one's begins with."""
    with s3_server(monkeypatch) as client:
        client.create_bucket(Bucket="bucket")
        for key in ("a/x", "a/deep/y", "ab/z"):
            client.put_object(Bucket="bucket", Key=key, Body=key.encode())
        files, unseen = listed("s3://bucket")
        assert files.keys() == {"a/x", "a/deep/y", "ab/z"} and not unseen
        files, unseen = listed("s3://bucket/a")
        assert files.keys() == {"x", "deep/y"} and not unseen
        assert files["deep/y"].uri == "s3://bucket/a/deep/y" and files["deep/y"].older is None
        assert files["deep/y"].digest() == hashlib.sha256(b"a/deep/y").hexdigest()
