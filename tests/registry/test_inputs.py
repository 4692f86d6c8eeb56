"""How a version is read, kept on it: what is given goes before, and a tag alone runs no code."""

import json

import pytest
import toy
from stores import log_pt2

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.inputs import INPUTS_TAG, Inputs, keep_inputs, kept_inputs
from mlflow_unlearn.registry.versions import open_version

URI = "models:/theirs/1"
GIVEN = Inputs(data="digits", architecture="toy:trainable", transform="none", classes=("a", "b"))


@pytest.fixture
def theirs(empty_store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    log_pt2(toy.original(), "theirs")
    return empty_store


def test_what_was_kept_is_not_replaced_in_silence(theirs, capsys):
    keep_inputs(theirs.client, "theirs", "1", GIVEN)
    keep_inputs(theirs.client, "theirs", "1", GIVEN)
    assert capsys.readouterr().err == ""
    keep_inputs(theirs.client, "theirs", "1", Inputs(transform="timm", classes=("b", "a")))
    told = capsys.readouterr().err
    assert f"Note: {URI} was read with the transform none, and is from now on with timm." in told
    assert "with the classes a,b, and is from now on with b,a." in told


def test_what_is_given_is_kept_and_completed(theirs, tmp_path):
    assert keep_inputs(theirs.client, "theirs", "1", Inputs(data="digits", transform="timm")) == Inputs(
        data="digits", transform="timm"
    )
    assert keep_inputs(theirs.client, "theirs", "1", GIVEN.model_copy(update={"data": None})) == GIVEN
    version = open_version(theirs.client, URI, tmp_path)
    assert (version.reads, version.kept, version.unconfirmed) == (GIVEN, GIVEN, Inputs())


def test_code_that_a_tag_names_is_not_taken_from_it(theirs, tmp_path, monkeypatch):
    """Named on this machine for version 1 it is; on another machine, or another version or function, it is not."""
    keep_inputs(theirs.client, "theirs", "1", GIVEN)
    tags = theirs.tags("1", "theirs")
    assert kept_inputs(URI, tags) == (GIVEN, Inputs())
    without, code = GIVEN.model_copy(update={"architecture": None}), Inputs(architecture="toy:trainable")
    assert kept_inputs("models:/theirs/2", tags) == (without, code)
    forged = {INPUTS_TAG: json.dumps({"data": "python:os:abort", "architecture": "timm:a", "transform": "python:os:f"})}
    assert kept_inputs(URI, forged) == (
        Inputs(architecture="timm:a"),
        Inputs(data="python:os:abort", transform="python:os:f"),
    )
    for data in (
        "csv:/etc/passwd",
        "digits,split=/etc/passwd",
        "digits,seed=0,split=x",
        "folder:/etc",
        "digits,train=5%/x",
    ):
        assert kept_inputs(URI, {INPUTS_TAG: json.dumps({"data": data})}) == (Inputs(), Inputs(data=data)), "a file"
    harmless = Inputs(data="digits,train=15%,seed=0")
    assert kept_inputs(URI, {INPUTS_TAG: harmless.model_dump_json(exclude_none=True)}) == (harmless, Inputs())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    assert kept_inputs(URI, tags) == (without, code)
    assert open_version(theirs.client, URI, tmp_path).reads == without


@pytest.mark.slow
@pytest.mark.parametrize("text", ["{", "[]", '{"data": 5}', '{"transfrom": "none"}'])
def test_an_edited_tag_is_named(theirs, tmp_path, text):
    theirs.client.set_model_version_tag("theirs", "1", INPUTS_TAG, text)
    with pytest.raises(UnlearnError, match="the tag unlearn.inputs of models:/theirs/1 was edited .*remove it"):
        open_version(theirs.client, URI, tmp_path)
    with pytest.raises(UnlearnError, match="was edited"):
        keep_inputs(theirs.client, "theirs", "1", GIVEN)
    assert theirs.tags("1", "theirs")[INPUTS_TAG] == text


def test_a_record_goes_before_the_tag(store, tmp_path):
    """Who may tag a version of ours cannot have it read otherwise."""
    (tmp_path / "before").mkdir()
    before = open_version(store.client, "models:/clf/1", tmp_path / "before")
    for text in (json.dumps({"data": "python:os:abort", "transform": "imagenet"}), "{"):
        store.client.set_model_version_tag("clf", "1", INPUTS_TAG, text)
        assert open_version(store.client, "models:/clf/1", tmp_path / "before").reads == before.reads
    assert before.reads.data == "digits,train=15%" and before.kept == Inputs()
