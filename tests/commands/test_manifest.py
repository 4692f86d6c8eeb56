"""`manifest`: what another tool's version was trained on goes on record, and requests and searches know it."""

import json

import mlflow
import pytest
import toy

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.registry.versions import trained_on

DATA = ("--data", "digits,train=15%")
IDS = load_source("digits,train=15%").train.ids


@pytest.fixture
def foreign(empty_store):
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            toy.original(), name="m", registered_model_name="theirs", serialization_format="pickle",
            pip_requirements=["torch"],
        )  # fmt: skip
    return empty_store


def test_it_is_found_and_unlearned_by_its_list(foreign, cli, tmp_path):
    (tmp_path / "trained.txt").write_text("\n".join(IDS[:100]))
    (tmp_path / "asked.txt").write_text("\n".join(IDS[90:110]))
    before = cli("locate", "--forget", tmp_path / "asked.txt")
    assert (
        before.code == 0
        and "unknown" in before.out
        and "record what it was trained" in " ".join(before.out.replace("│", " ").split())
    )
    done = cli("manifest", "--model-uri", "models:/theirs/1", "--data", "digits", "--ids", tmp_path / "trained.txt")
    assert done.code == 0 and "trained on 100 samples of digits" in done.out, done.err
    tag = trained_on(foreign.tags("1", "theirs"))
    assert (tag.samples, tag.source, tag.run_id) == (100, "digits", foreign.runs()[0].info.run_id)
    assert IDS[0] not in json.dumps(foreign.tags("1", "theirs"))
    answer = json.loads(cli("locate", "--forget", tmp_path / "asked.txt", "--format", "json").out)
    [place] = answer["result"]["places"]
    assert (place["uri"], place["state"], place["samples"]) == ("models:/theirs/1", "contains", 10)
    # Only what is on record counts as trained on.
    refused = cli("request", "--model-uri", "models:/theirs/1", *DATA, "--forget", tmp_path / "asked.txt")
    assert refused.code == 2 and "wasn't trained on" in refused.err
    (tmp_path / "asked.txt").write_text("\n".join(IDS[90:100]))
    filed = cli("request", "--model-uri", "models:/theirs/1", *DATA, "--forget", tmp_path / "asked.txt")
    assert filed.code == 0 and "10 samples" in filed.out, filed.err


def test_without_ids_it_is_the_training_split(foreign, cli):
    refused = cli("manifest", "--model-uri", "models:/theirs/1", *DATA)
    assert refused.code == 2 and "is drawn by this tool: give --ids" in " ".join(refused.err.split())
    done = cli("manifest", "--model-uri", "models:/theirs/1", "--data", "digits,train=15%,split=drawn")
    assert done.code == 0 and f"{len(IDS)} samples" in done.out, done.err
    # A better list takes its place.
    again = cli("manifest", "--model-uri", "models:/theirs/1", "--data", "digits,train=20%,split=drawn")
    assert again.code == 0 and trained_on(foreign.tags("1", "theirs")).samples > len(IDS), again.err


def test_what_is_refused(foreign, cli, tmp_path):
    uri = ("--model-uri", "models:/theirs/1")
    (tmp_path / "unknown.txt").write_text("digits/1\nnobody/7\n")
    refused = cli("manifest", *uri, *DATA, "--ids", tmp_path / "unknown.txt")
    assert refused.code == 2 and "does not have: 'nobody/7'" in refused.err
    missing = cli("manifest", *uri, *DATA, "--ids", tmp_path / "nowhere.txt")
    assert missing.code == 2 and "no list of training ids" in missing.err
    foreign.client.set_model_version_tag("theirs", "1", "unlearn.trained_on", "edited")
    edited = cli("manifest", *uri, "--data", "digits,train=15%,split=drawn")
    assert edited.code == 2 and "was edited: correct or remove it" in edited.err


def test_a_version_of_ours_has_its_own(store, cli):
    refused = cli("manifest", "--model-uri", "models:/clf/1", *DATA)
    assert refused.code == 2 and "already has its own list of 270 training ids" in " ".join(refused.err.split())


def test_a_list_that_was_changed_is_not_believed(foreign, cli):
    assert cli("manifest", "--model-uri", "models:/theirs/1", "--data", "digits,train=15%,split=drawn").code == 0
    run_id = foreign.runs()[0].info.run_id
    with mlflow.start_run(run_id=run_id):
        mlflow.log_text("id\ndigits/1\n", "manifest/training_manifest.csv")
    refused = cli("request", "--model-uri", "models:/theirs/1", *DATA, "--forget", "random:5")
    assert refused.code == 2 and "was changed: record it by `manifest` again" in " ".join(refused.err.split())
