"""Which files tell a model from others, and where copies of them are looked for."""

from types import SimpleNamespace

import pytest

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.governance.deletion import RetirementRecord, contents_of, out_of_reach, prove, same_weights
from mlflow_unlearn.governance.holders import exposure_of
from mlflow_unlearn.governance.location import locate

WEIGHTS = b"w" * 5000


def test_which_files_tell_a_model_from_others(tmp_path):
    for path, content in {
        "MLmodel": WEIGHTS,
        "requirements.txt": WEIGHTS,
        "code/model.bin": WEIGHTS,
        "evidence/evidence.sig": WEIGHTS,
        "extra_files/training_manifest.csv": WEIGHTS,
        "extra_files/weights.safetensors": WEIGHTS,
        "data/model.pth": WEIGHTS + b"1",
        "data/tiny.bin": b"x" * 1023,
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    contents = contents_of(locate(tmp_path.as_uri()))
    assert len(contents) == 8
    assert {c.path for c in contents if c.sha256} == {"extra_files/weights.safetensors", "data/model.pth"}
    record = RetirementRecord(versions=(), steps=(), location="", files=(), contents=contents)
    assert {c.path for c in record.telling} == {"extra_files/weights.safetensors", "data/model.pth"}
    assert RetirementRecord.model_validate_json(record.model_dump_json()) == record


def test_what_cannot_be_listed_is_not_deleted():
    with pytest.raises(UnlearnError, match=r"nowhere://host/model cannot be looked at \(.*\), so that its deletion"):
        contents_of(locate("nowhere://host/model"))


def test_every_folder_is_looked_at_once(empty_store, tmp_path):
    """Experiments inside one another, one that is deleted, a version elsewhere; and the copy in each of them."""
    client = empty_store.client
    folders = [tmp_path / name for name in ("outer", "outer/inner", "deleted", "elsewhere")]
    for folder in folders:
        folder.mkdir()
        (folder / "copy.bin").write_bytes(WEIGHTS)
    for folder in folders[:3]:
        client.create_experiment(folder.name, folder.as_uri())
    client.delete_experiment(client.get_experiment_by_name("deleted").experiment_id)
    client.create_registered_model("clf")
    version = client.create_model_version("clf", str(tmp_path / "gone"))
    entries = [exposure_of(client, version, [])]
    contents = contents_of(locate((tmp_path / "outer").as_uri()))
    record = RetirementRecord(versions=(), steps=(), location="", files=(), contents=contents[:1])
    known = {"models:/clf/1": str(tmp_path / "gone"), "models:/other/1": str(tmp_path / "elsewhere")}
    proof = prove(client, record, entries, known, [])
    assert len(proof.found) == 4
    assert {place.place for place in proof.found} == {str(folder / "copy.bin") for folder in folders}
    # Other tests have stored files beside this store's database.
    assert proof.files >= 4 and not proof.not_looked_at and not proof.proven
    assert proof.summary().startswith(f"Not proven, since 4 copies were found: {proof.files} files in")
    [owned] = [place.why for place in proof.found if "elsewhere" in place.place]
    assert owned.endswith("retire models:/other/1 too")


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("file:///data/model", "snapshots of the file system"),
        ("s3://bucket/model", "what s3://bucket replicates elsewhere"),
        ("gs://bucket/model", "older versions of objects behind gs://bucket, if it keeps some"),
    ],
)
def test_what_is_out_of_reach(uri, named):
    assert named in out_of_reach(locate(uri))


def test_same_weights_on_every_page_although_one_is_lost(empty_store, tmp_path):
    client, lost = empty_store.client, ["Connection reset by peer"]
    client.create_registered_model("clf")
    for _ in range(3):
        version = client.create_model_version("clf", str(tmp_path), tags={"unlearn.weights_sha256": "a" * 64})

    def search(*arguments, **options):
        if options.get("page_token") is not None and lost:
            raise ConnectionResetError(lost.pop())
        return client.search_model_versions(*arguments, max_results=1, **options)

    entries = [exposure_of(client, version, [])]
    found = same_weights(SimpleNamespace(search_model_versions=search), entries, {})
    assert sorted(found) == ["models:/clf/1", "models:/clf/2"] and not lost
