"""`locate` as it is typed: what it takes, what it prints, and how it ends."""

import json

import mlflow
import pandas
import pytest
import toy
from stores import digits_folder

from mlflow_unlearn.data.loaders import load_source

TRAINED = load_source("digits,train=15%").train.ids


@pytest.fixture
def ids(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(TRAINED[:4]))
    return path


def test_a_list_of_ids(store, cli, ids):
    before, runs = store.everything_registered(), len(store.runs())
    done = cli("locate", "--forget", ids)
    assert done.code == 0 and "│ models:/clf/1 │ contains │ 4 " in done.out, done.err
    assert "Of 1 version 1 contains them" in done.out and "Not seen from here: downloads, backups" in done.out
    assert (store.everything_registered(), len(store.runs())) == (before, runs)
    failed = cli("locate", "--forget", ids, "--fail-on", "contains")
    assert failed.code == 3 and "models:/clf/1" in failed.err and "`request` with --all" in failed.err
    answer = json.loads(cli("locate", "--forget", ids, "--fail-on", "unknown", "--format", "json").out)
    assert answer["exit_code"] == 3 and answer["error"]["kind"] == "refused"
    assert answer["result"]["places"][0]["uri"] == "models:/clf/1" and answer["result"]["looked_for"] == 4


def test_what_nobody_was_trained_on(store, cli, tmp_path):
    (tmp_path / "ids.txt").write_text("nobody/1\n")
    done = cli("locate", "--forget", tmp_path / "ids.txt", "--fail-on", "unknown")
    assert done.code == 0 and "models:/" not in done.out.partition("LoggedModels")[0], done.out


def test_a_class_of_every_recorded_source(store, cli):
    done = cli("locate", "--forget", "class:3")
    assert done.code == 0 and "samples of digits" in done.out and "contains" in done.out, done.err


def test_a_request_by_its_id(store, cli, ids):
    cli("request", "--model-uri", "models:/clf/1", "--forget", ids)
    [request_id] = store.requests()
    done = cli("locate", "--forget", f"request:{request_id}")
    assert done.code == 0 and "│ contains │ 4 " in done.out, done.err


def test_a_subject_of_a_table(store, cli, tmp_path):
    """Another source, whose images no version was trained on; and subjects that it does not have."""
    files = sorted(digits_folder(tmp_path / "images", train=20, held_out=0).rglob("*.png"))
    table = {"path": files, "label": [path.parent.name for path in files], "subject": ["17"] * 3 + ["18"] * 17}
    pandas.DataFrame(table).to_csv(tmp_path / "all.csv", index=False)
    data = ("--data", f"csv:{tmp_path / 'all.csv'}")
    done = cli("locate", "--forget", "group:subject=17", *data)
    assert done.code == 0 and "3 samples of csv:" in done.out and "models:/clf/1" not in done.out, done.err
    unknown = cli("locate", "--forget", "group:subject=19", *data)
    assert unknown.code == 2 and "with subject='19': valid values: '17', '18'" in " ".join(unknown.err.split())
    column = cli("locate", "--forget", "group:person=17", *data)
    assert column.code == 2 and "unknown group column 'person'" in column.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--forget", "group:subject=17"), "no data source that a version records knows 'group:subject=17'"),
        (("--forget", "random:5"), "draws different samples for every version"),
        (("--forget", "nowhere.csv"), "no forget set 'nowhere.csv'"),
        (("--forget", "request:0123456789ab"), "there is no forget request '0123456789ab'"),
        (
            ("--forget", "class:3", "--data", "python:toy:splits", "--no-code", "true"),
            "runs code, and --no-code is set",
        ),
        (("--forget", "class:unknown", "--data", "digits"), "unknown class 'unknown'"),
    ],
)
def test_what_is_refused(store, cli, options, message):
    runs = len(store.runs())
    refused = cli("locate", *options)
    assert refused.code == 2 and message in " ".join(refused.err.split()) and len(store.runs()) == runs


def test_a_source_that_a_tag_names_runs_no_code(store, cli):
    """Whoever may tag a version could have any function called."""
    told = json.loads(store.tags("1")["unlearn.trained_on"]) | {"source": "python:toy:splits"}
    store.client.set_model_version_tag("clf", "1", "unlearn.trained_on", json.dumps(told))
    refused = cli("locate", "--forget", "class:3")
    assert refused.code == 2 and "runs code: name it with --data" in " ".join(refused.err.split())


def test_a_source_that_was_moved_away(store, cli, tmp_path):
    """Of its versions it cannot be told; that another source knows the class is no reason to say no."""
    files = sorted(digits_folder(tmp_path / "images", train=60, held_out=0).rglob("*.png"))
    table = {"path": files, "label": [path.parent.name for path in files], "subject": "17"}
    pandas.DataFrame(table).to_csv(tmp_path / "all.csv", index=False)
    store.client.copy_model_version("models:/clf/1", "other")
    told = json.loads(store.tags("1", "other")["unlearn.trained_on"]) | {"source": f"csv:{tmp_path / 'gone.csv'}"}
    store.client.set_model_version_tag("other", "1", "unlearn.trained_on", json.dumps(told))
    store.client.delete_model_version_tag("other", "1", "unlearn.weights_sha256")
    told["source"] = f"csv:{tmp_path / 'all.csv'}"
    store.client.set_model_version_tag("clf", "1", "unlearn.trained_on", json.dumps(told))
    store.client.create_model_version("other", str(tmp_path / "elsewhere"))
    lost = dict(told, source=f"csv:{tmp_path / 'gone.csv'}")
    store.client.set_model_version_tag("other", "2", "unlearn.trained_on", json.dumps(lost))
    done = cli("locate", "--forget", "group:subject=17", "--fail-on", "unknown", "--format", "json")
    answer = json.loads(done.out)
    [place] = [place for place in answer["result"]["places"] if place["uri"] == "models:/other/2"]
    assert answer["exit_code"] == 3 and place["state"] == "unknown" and "gone.csv" in place["why"], place


def test_ids_of_another_source_than_is_named(store, cli, ids, tmp_path):
    files = sorted(digits_folder(tmp_path / "images", train=20, held_out=0).rglob("*.png"))
    table = {"path": files, "label": [path.parent.name for path in files], "id": TRAINED[:20]}
    pandas.DataFrame(table).to_csv(tmp_path / "all.csv", index=False)
    done = cli("locate", "--forget", ids, "--data", f"csv:{tmp_path / 'all.csv'}", "--fail-on", "contains")
    assert done.code == 0 and "another" in done.out and "samples of the same ids" in " ".join(done.out.split())
    ids.write_text("nobody/1\n")
    refused = cli("locate", "--forget", ids, "--data", "digits")
    assert refused.code == 2 and "'digits' has none of the 1 ids" in refused.err


def test_a_source_that_cannot_be_looked_at_leaves_its_versions_open(store, cli):
    """Also that of a version without a tag, which only its files name."""
    store.client.copy_model_version("models:/clf/1", "moved")
    told = json.loads(store.tags("1")["unlearn.trained_on"])
    moved = json.dumps(told | {"source": "folder:/not/mounted"})
    store.client.set_model_version_tag("moved", "1", "unlearn.trained_on", moved)
    store.client.set_model_version_tag("moved", "1", "unlearn.weights_sha256", "0")
    answer = json.loads(cli("locate", "--forget", "class:3", "--fail-on", "unknown", "--format", "json").out)
    assert answer["exit_code"] == 3
    states = {place["uri"]: place["state"] for place in answer["result"]["places"]}
    assert states["models:/clf/1"] == "contains"
    store.client.delete_model_version_tag("clf", "1", "unlearn.trained_on")
    refused = cli("locate", "--forget", "class:3")
    assert refused.code == 2 and "give --data, or a file of ids" in " ".join(refused.err.split())


def test_logged_models_that_cannot_be_told(store, cli, ids):
    with mlflow.start_run():
        mlflow.pytorch.log_model(toy.original(), name="m", serialization_format="pickle", pip_requirements=["torch"])
    answer = json.loads(cli("locate", "--forget", ids, "--format", "json").out)["result"]
    assert len(answer["logged_models_unknown"]) == 1
    shown = cli("locate", "--forget", ids)
    assert "So may 1 LoggedModel without a version" in " ".join(shown.out.split())
    failed = cli("locate", "--forget", ids, "--fail-on", "unknown")
    assert failed.code == 3 and answer["logged_models_unknown"][0] in failed.err


def test_what_looks_like_a_password_does_not_spoil_the_document(store, cli):
    """It is hidden in each text by itself: in the document it would take a quote along."""
    done = cli("locate", "--forget", 'a?pass=x"y', "--format", "json")
    answer = json.loads(done.out)
    assert done.code == 2 and "a?pass=***" in answer["error"]["message"] and "=x" not in done.out + done.err
