"""What each version is to samples that are looked for, by its list of training ids."""

import json
from pathlib import Path

import mlflow
import pytest
import toy
from stores import call

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import NoAnswer
from mlflow_unlearn.governance import manifest_index, training_lists
from mlflow_unlearn.governance.locating import Search, Wanted
from mlflow_unlearn.governance.manifest_index import ManifestIndex
from mlflow_unlearn.registry.versions import TRAINED_ON_TAG, TrainedOn, trained_on
from mlflow_unlearn.registry.walk import walk

SOURCE = load_source("digits")
TRAINED = load_source("digits,train=15%").train.ids


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path))
    with manifest_index.opened() as opened:
        yield opened


def forgotten(chain, version: str) -> list[str]:
    """What the request on a version names."""
    [(_, details)] = chain.requests(version).values()
    path = chain.client.download_artifacts(details["run_id"], "request/manifest.csv")
    return list(Manifest.from_csv(path).ids)


def states(client, index, *wanted: Wanted) -> dict[str, str]:
    return {entry.uri: entry.state for entry in Search(client, walk(client), index).find(wanted).versions}


def test_by_ids_of_any_source(chain, index):
    first, second = forgotten(chain, "1"), forgotten(chain, "2")
    found = Search(chain.client, walk(chain.client), index).find([Wanted(Manifest((*first, *second[:5])))])
    assert [entry.state for entry in found.versions] == ["contains", "contains", "unlearned", "unlearned"]
    assert [entry.samples for entry in found.versions] == [25, 5, 0, 0]
    assert found.versions[0].unlearned_by == ("models:/clf/3", "models:/clf/4")
    assert {entry.source for entry in found.versions} == {"digits"} and found.unanswered is None


def test_an_id_of_another_source_is_another_sample(chain, index):
    ids = Manifest(TRAINED[:3])
    same = Wanted(ids, "folder:/elsewhere", SOURCE.samples_digest)
    moved_and_grown = Wanted(ids, "digits", "0" * 64)
    other = Wanted(ids, "folder:/elsewhere", "0" * 64)
    assert set(states(chain.client, index, same).values()) == {"contains"}
    assert set(states(chain.client, index, moved_and_grown).values()) == {"contains"}
    assert set(states(chain.client, index, other).values()) == {"another source"}


def test_hashed_ids_are_compared_under_the_salt_of_the_source(chain, index):
    ids = Manifest(tuple(forgotten(chain, "1")))
    same = Wanted(ids.hashed(Manifest.salt_of(SOURCE.samples_digest)), "digits", SOURCE.samples_digest)
    found = states(chain.client, index, same)
    assert [found[f"models:/clf/{n}"] for n in "1234"] == ["contains", "unlearned", "unlearned", "unlearned"]
    assert set(states(chain.client, index, Wanted(ids.hashed("00"), "digits")).values()) == {"unknown"}


def test_lists_are_read_once(chain, index, monkeypatch):
    wanted = [Wanted(Manifest(TRAINED[:3]))]
    states(chain.client, index, *wanted)
    monkeypatch.setattr(training_lists, "_stored_manifest", lambda *_: pytest.fail("it was read before"))
    assert set(states(chain.client, index, *wanted).values()) == {"contains"}


def test_a_list_is_looked_at_once_for_all_cases(chain, index, monkeypatch):
    """And for all versions that share it: four here, and two copies."""
    for _ in range(2):
        chain.client.copy_model_version("models:/clf/4", "copies")
    cases = [[Wanted(Manifest(TRAINED[n : n + 9])), Wanted(Manifest((f"nobody/{n}",)))] for n in range(5)]
    registry = walk(chain.client)
    alone = [Search(chain.client, registry, index).find(case) for case in cases]
    looked_at, counts = [], ManifestIndex.counts
    monkeypatch.setattr(ManifestIndex, "counts", lambda *given: looked_at.append(given[1]) or counts(*given))
    found = Search(chain.client, registry, index).find_each(cases)
    assert len(looked_at) == len(set(looked_at)) == 4 and len(registry.versions) == 6
    assert [[(e.uri, e.state, e.samples) for e in one.versions] for one in found] == [
        [(e.uri, e.state, e.samples) for e in one.versions] for one in alone
    ]
    chain.client.delete_registered_model("copies")


def test_a_tag_that_names_another_list_is_not_believed(chain, index):
    before = chain.tags("2")[TRAINED_ON_TAG]
    told = trained_on(chain.tags("2")).model_copy(update={"manifest_sha256": "0" * 64})
    chain.client.set_model_version_tag("clf", "2", TRAINED_ON_TAG, told.model_dump_json())
    try:
        found = Search(chain.client, walk(chain.client), index).find([Wanted(Manifest(TRAINED[:3]))])
        assert found.versions[1].state == "unknown" and "not the one that its tag names" in found.versions[1].why
        assert call("verify", "--model-uri", "models:/clf/2").code == 3
    finally:
        chain.client.set_model_version_tag("clf", "2", TRAINED_ON_TAG, before)
    assert call("verify", "--model-uri", "models:/clf/2").code == 0


def test_a_version_of_an_earlier_release_is_known_by_its_files(chain, index):
    """Without the tag; the source is in its MLmodel."""
    before = chain.tags("1")[TRAINED_ON_TAG]
    chain.client.delete_model_version_tag("clf", "1", TRAINED_ON_TAG)
    try:
        found = Search(chain.client, walk(chain.client), index).find([Wanted(Manifest(TRAINED[:3]))])
        assert found.versions[0].state == "contains" and found.versions[0].source == "digits"
    finally:
        chain.client.set_model_version_tag("clf", "1", TRAINED_ON_TAG, before)


def test_where_the_server_goes_away_the_rest_cannot_be_told(chain, index, monkeypatch):
    asked = []

    def no_answer(files, model):
        asked.append(files)
        raise NoAnswer("connection refused")

    monkeypatch.setattr(training_lists, "_stored_manifest", no_answer)
    found = Search(chain.client, walk(chain.client), index).find([Wanted(Manifest(TRAINED[:3]))])
    assert found.unanswered == "connection refused" and len(asked) == 1
    assert {(entry.state, entry.why) for entry in found.versions} == {("unknown", "the server did not answer")}


def test_a_copy_holds_what_its_original_holds(chain, index):
    """Also one without any tag of ours."""
    chain.client.copy_model_version("models:/clf/1", "copy")
    for key in chain.tags("1", "copy"):
        chain.client.delete_model_version_tag("copy", "1", key)
    found = states(chain.client, index, Wanted(Manifest(tuple(forgotten(chain, "1")))))
    assert found["models:/copy/1"] == "contains" and found["models:/clf/2"] == "unlearned"
    chain.client.delete_registered_model("copy")


def test_a_tag_is_short_and_names_no_sample(chain):
    tag = chain.tags("1")[TRAINED_ON_TAG]
    assert json.loads(tag)["samples"] == 270 and len(tag) < 500 and not any(i in tag for i in TRAINED)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("# salt=00\nid\nd41d8cd98f00b204e9800998ecf8427e\n", "not hashed by SHA-256 with a salt"),
        ("# salt=pepper\nid\nx\n", "the salt 'pepper' is not hexadecimal"),
        ("name\nx\n", "has no column 'id'"),
        ("id\ndigits/1\n", None),
    ],
)
def test_lists_that_other_tools_have_written(empty_store, index, tmp_path, content, why):
    """One with plain ids is as good as ours; one that is hashed in another way cannot be told."""
    (tmp_path / "training_manifest.csv").write_text(content)
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            toy.original(), name="m", registered_model_name="theirs", serialization_format="pickle",
            pip_requirements=["torch"], extra_files=[str(tmp_path / "training_manifest.csv")],
        )  # fmt: skip
    found = Search(empty_store.client, walk(empty_store.client), index).find([Wanted(Manifest(("digits/1",)))])
    [entry] = found.versions
    assert entry.state == ("contains" if why is None else "unknown") and (why or "") in entry.why


def log_list(content: str) -> str:
    """A run with a list as `manifest` would record it; its id."""
    with mlflow.start_run() as run:
        mlflow.log_text(content, "manifest/training_manifest.csv")
    return run.info.run_id


def own_list(chain, version: str) -> str:
    location = chain.client.get_model_version_download_uri("clf", version).removeprefix("file://")
    return (Path(location) / "extra_files" / "training_manifest.csv").read_text()


def test_a_list_under_another_salt_is_another_list(chain, index):
    """One that somebody else records with the same hashes must not stand in the index for ours."""
    told = trained_on(chain.tags("1"))
    run_id = log_list(own_list(chain, "1").replace(f"# salt={told.salt}", "# salt=00"))
    chain.client.create_registered_model("aaa")
    chain.client.create_model_version("aaa", str(chain.folder / "nothing"))
    other = told.model_copy(update={"salt": "00", "run_id": run_id})
    chain.client.set_model_version_tag("aaa", "1", TRAINED_ON_TAG, other.model_dump_json())
    try:
        found = states(chain.client, index, Wanted(Manifest(TRAINED[:3])))
        assert [found[f"models:/clf/{n}"] for n in "1234"] == ["contains"] * 4
    finally:
        chain.client.delete_registered_model("aaa")


@pytest.mark.parametrize("tagged", [True, False])
def test_the_list_that_came_with_a_version_counts(chain, index, tagged):
    """Whatever another one a tag names, and where the tag is gone `manifest` records none."""
    before = chain.tags("1")[TRAINED_ON_TAG]
    chain.client.delete_model_version_tag("clf", "1", TRAINED_ON_TAG)
    try:
        if tagged:
            other = Manifest(("digits/0",)).hashed("00")
            run_id = log_list("# salt=00\nid\n" + "\n".join(other.ids) + "\n")
            told = TrainedOn.of(other, "digits", SOURCE.samples_digest, run_id)
            chain.client.set_model_version_tag("clf", "1", TRAINED_ON_TAG, told.tag()[TRAINED_ON_TAG])
        else:
            refused = call("manifest", "--model-uri", "models:/clf/1", "--data", "digits,train=15%,split=drawn")
            assert refused.code == 2 and "already has its own list of 270" in " ".join(refused.err.split())
        assert states(chain.client, index, Wanted(Manifest(TRAINED[5:8])))["models:/clf/1"] == "contains"
    finally:
        chain.client.set_model_version_tag("clf", "1", TRAINED_ON_TAG, before)


@pytest.mark.parametrize("source", ["s3://no-such-bucket-of-ours/x", "http://127.0.0.1:9/x", "file:///nowhere/x"])
def test_a_store_that_cannot_be_opened_hides_no_other_version(chain, index, source, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    chain.client.create_registered_model("aaa")
    chain.client.create_model_version("aaa", source)
    try:
        found = states(chain.client, index, Wanted(Manifest(TRAINED[:3])))
        assert found.pop("models:/aaa/1") == "unknown" and set(found.values()) == {"contains"}
    finally:
        chain.client.delete_registered_model("aaa")


def test_files_that_are_away_for_a_moment_are_read_later(empty_store, index, tmp_path):
    """What could not be read is no knowledge: neither that there is no list, nor that a retired version is gone."""
    (tmp_path / "training_manifest.csv").write_text("id\ndigits/1\n")
    for name in ("theirs", "marked"):
        with mlflow.start_run():
            mlflow.pytorch.log_model(
                toy.original(), name="m", registered_model_name=name, serialization_format="pickle",
                pip_requirements=["torch"], extra_files=[str(tmp_path / "training_manifest.csv")],
            )  # fmt: skip
    client = empty_store.client
    client.set_model_version_tag("marked", "1", "unlearn.retired", '{"by": "x", "at": "y", "reason": null}')
    folders = [
        Path(client.get_model_version_download_uri(n, "1").removeprefix("file://")) for n in ("theirs", "marked")
    ]
    wanted = Wanted(Manifest(("digits/1",)))
    for folder in folders:
        folder.rename(folder.with_name("away"))
    assert states(client, index, wanted) == {"models:/theirs/1": "unknown", "models:/marked/1": "retired"}
    for folder in folders:
        folder.with_name("away").rename(folder)
    assert states(client, index, wanted) == {"models:/theirs/1": "contains", "models:/marked/1": "contains"}
