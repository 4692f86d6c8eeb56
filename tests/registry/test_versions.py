"""Model versions: found by any URI, opened without loading them, and taken back where a command fails."""

import json
import os
from functools import partial
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.versions import (
    REGISTERING_TAG,
    RETIRED_TAG,
    below,
    can_be_read,
    check_name,
    find_version,
    open_version,
    registered_version,
    retired,
)


@pytest.mark.parametrize("uri", ["models:/clf/1", "models:/clf@good", "models:/clf/latest"])
def test_ways_to_name_a_version(store, uri):
    store.client.set_registered_model_alias("clf", "good", "1")
    found = registered_version(store.client, uri)
    assert (found.name, str(found.version)) == ("clf", "1")


def test_models_outside_the_registry(store, tmp_path):
    model_id = mlflow.models.get_model_info("models:/clf/1").model_id
    for uri in (f"models:/{model_id}", f"runs:/{store.tags('1')['unlearn.run_id']}/model"):
        assert find_version(store.client, uri) is None
        version = open_version(store.client, uri, tmp_path)
        assert (version.uri, version.name, version.version, version.tags) == (uri, None, None, {})
        assert version.model_id == model_id
        with pytest.raises(UnlearnError, match="is not a registered version"):
            registered_version(store.client, uri)


def test_what_a_version_records(store, tmp_path):
    version = open_version(store.client, "models:/clf/1", tmp_path)
    assert (version.uri, version.format, version.input_shape) == ("models:/clf/1", "pt2", (1, 8, 8))
    assert version.record.architecture == "toy:trainable" and version.record.image_shape == (1, 8, 8)
    assert version.record.provenance.params["epochs"] == 20
    assert len(version.training_manifest.ids) == 270
    assert can_be_read(version.uri) and not can_be_read("models:/clf/2")


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        (None, None),
        (json.dumps({"by": "ann", "at": "noon", "reason": "asked"}), "retired by ann at noon: asked"),
        (json.dumps({"by": "ann", "at": "noon", "reason": None}), "retired by ann at noon"),
        ("by hand", "retired (by hand)"),
        ("[]", "retired ([])"),
    ],
)
def test_how_a_version_was_retired(tag, expected):
    assert retired(SimpleNamespace(tags={} if tag is None else {RETIRED_TAG: tag})) == expected


def test_names():
    for name in ("clf 2", 'größe 5% "a"', "a" * 256):
        assert check_name(name) == name
    for name, says in (
        ("a/b", "'a/b' is not a name for a registered model"),
        ("a@b", "models:/NAME/VERSION does not find one with '@': leave it out"),
        ("#?'", """does not find one with '#' "'" '[?]': leave it out"""),
        ("a\nb", r"does not find one with '\\n'"),
        ("a" * 257, "it has 257 characters, and databases take 256: shorten it"),
    ):
        with pytest.raises(UnlearnError, match=says):
            check_name(name)


class LinkingRepository(LocalArtifactRepository):
    """A store's plugin that gives links in the place of files."""

    def _download_file(self, remote_file_path, local_path):
        os.symlink(os.path.join(self.artifact_dir, remote_file_path), local_path)


def test_a_store_that_gives_links(store, tmp_path, monkeypatch):
    """What the copies of a model take in is what the store holds, and not what a link leads to later."""
    files = mlflow.artifacts.download_artifacts(store.client.get_model_version("clf", "1").source)
    repository = partial(LinkingRepository, files)
    monkeypatch.setitem(_artifact_repository_registry._registry, "links", lambda *_, **__: repository())
    uri = f"models:/linked/{mlflow.register_model('links://there', 'linked').version}"
    with pytest.raises(
        UnlearnError, match=f"the files of {uri} hold symbolic links .*'MLmodel'.* store the files them"
    ):
        open_version(store.client, uri, tmp_path)


def test_a_name_too_long_for_a_folder(store, tmp_path):
    name = "ü" * 250
    mlflow.register_model(store.client.get_model_version("clf", "1").source, name)
    assert open_version(store.client, f"models:/{name}/1", tmp_path).name == name


@pytest.mark.parametrize("name", ["link", "link/file", "folder/link", "../model/file", ".", "", "circle", "/file"])
def test_only_what_lies_below_a_folder(tmp_path, name):
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "folder")
    (folder / "folder" / "link").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder / "circle")
    (tmp_path / "seen from here").symlink_to(folder)
    root = tmp_path / "seen from here"
    assert below(root, "folder/../file", "models:/clf/1").resolve() == folder / "file"
    if name == "../model/file":  # leads out and in again
        assert below(root, name, "models:/clf/1").resolve() == folder / "file"
        return
    with pytest.raises(UnlearnError, match="models:/clf/1 names the path"):
        below(root, name, "models:/clf/1")


def test_one_that_is_not_complete_is_refused_by_name(store, tmp_path):
    """And is not the latest one, whatever names it."""
    store.client.create_model_version("clf", "models:/clf/1", tags={REGISTERING_TAG: "123abc"})
    store.client.set_registered_model_alias("clf", "early", "2")
    assert str(find_version(store.client, "models:/clf/latest").version) == "1"
    for read in (find_version, registered_version, lambda client, uri: open_version(client, uri, tmp_path)):
        for uri in ("models:/clf/2", "models:/clf@early"):
            with pytest.raises(UnlearnError, match="models:/clf/2 is not complete: the command of run 123abc is still"):
                read(store.client, uri)
