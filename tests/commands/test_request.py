"""Forget requests: what is filed, that it is filed once, and how its state moves."""

import getpass
import hashlib
import json
import sqlite3
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import mlflow
import pandas
import pytest
import toy
from stores import digits_folder

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.evidence.record import read_evidence

ASK = ("request", "--model-uri", "models:/clf/1")
QUICK = ("--params", '{"epochs": 1}')
TRANSFORM = ("--transform", "none", "--force")


def artifact(run_id: str, name: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=f"request/{name}"))


def test_what_is_filed(store, cli):
    before = datetime.now(UTC).replace(microsecond=0)
    filed = cli(*ASK, "--forget", "random:20", "--reason", "GDPR article 17", "--requester", "person-7")
    assert filed.code == 0, filed.err
    [(request_id, (state, details))] = store.requests().items()
    run = store.runs()[0]
    digest = details.pop("sha256")
    case, due = details.pop("case"), date.fromisoformat(details.pop("due"))
    assert (state, details) == ("pending", {"of": "models:/clf/1", "run_id": run.info.run_id})
    assert due - before.date() == timedelta(days=30) and run.data.tags["unlearn.case_id"] == case != request_id
    assert f"Filed request {request_id}: 20 samples of models:/clf/1" in filed.out
    assert run.data.tags["unlearn.request_id"] == request_id
    content = artifact(run.info.run_id, "request.json").read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    record = json.loads(content)
    assert before <= datetime.fromisoformat(record.pop("filed")) <= datetime.now(UTC)
    manifest = Manifest.from_csv(artifact(run.info.run_id, "manifest.csv"))
    assert record == {
        "id": request_id,
        "of": "models:/clf/1",
        "samples": 20,
        "manifest_sha256": manifest.digest,
        "forget": "random:20",
        "data": "digits,train=15%",
        "source": "digits",
        "source_sha256": load_source("digits").samples_digest,
        "case": case,
        "due": due.isoformat(),
        "split": "made by this tool: 270 samples drawn for training, seed 0",
        "matched": {"trained": 20, "untrained": 0, "val": 0, "test": 0, "nowhere": 0},
        "reason": "GDPR article 17",
        "requester": "person-7",
        "hash_ids": False,
        "filed_by": {"name": getpass.getuser(), "authenticated": False},
    }
    assert store.versions() == ["1"]


def test_the_manifest_is_the_list_that_was_given(store, cli, tmp_path):
    names = sorted(load_source("digits,train=15%").train.ids)[5:17]
    (tmp_path / "ids.txt").write_text("\n".join(reversed(names)) + "\n")
    assert cli(*ASK, "--forget", str(tmp_path / "ids.txt")).code == 0
    run = store.runs()[0]
    assert artifact(run.info.run_id, "manifest.csv").read_text() == "\n".join(["id", *names, ""])
    # The run's input is the manifest by its digest.
    [entry] = store.client.get_run(run.info.run_id).inputs.dataset_inputs
    assert entry.dataset.digest == Manifest(tuple(names)).digest[:36]
    assert entry.tags[0].value == "forget"


def test_hashed_the_manifest_still_matches(store, cli):
    assert cli(*ASK, "--forget", "random:20", "--hash-ids").code == 0
    run = store.runs()[0]
    text = artifact(run.info.run_id, "manifest.csv").read_text()
    assert "digits" not in text
    manifest = Manifest.from_csv(artifact(run.info.run_id, "manifest.csv"))
    assert manifest.mask(load_source("digits,train=15%").train.ids).sum() == len(manifest.ids) == 20
    assert json.loads(artifact(run.info.run_id, "request.json").read_text())["hash_ids"] is True


def test_hashed_no_reason_of_one_of_several_versions_names_ids(store, cli):
    """Neither the nested runs nor the result: people are told, the store and programs are not."""
    given = ("--model-uri", "models:/clf/1,models:/b/1", "--data", "digits,train=15%,seed=1", "--forget", "ids.txt")
    source = load_source("digits,train=15%,seed=1")
    theirs = sorted({*load_source("digits,train=15%").train.ids} & {*source.val.ids, *source.test.ids})[:3]
    (store.folder / "ids.txt").write_text("\n".join(theirs))
    store.client.copy_model_version("models:/clf/1", "b")
    for hidden in (False, True):
        refused = cli("request", *given, "--hash-ids", str(hidden).lower(), "--format", "json")
        result = json.loads(refused.out)["result"]
        assert refused.code == 3 and len(result["failed"]) == 2 and theirs[0] in refused.err
        runs = [run for run in store.runs() if "unlearn.error" in run.data.tags][:2]
        assert len(runs) == 2
        for reason in (*result["failed"].values(), *(run.data.tags["unlearn.error"] for run in runs)):
            assert (theirs[0] not in reason) == hidden == ("ids are hashed here" in reason)


def test_filing_again_changes_nothing(store, cli, tmp_path):
    """The id is a digest of version and samples, however they are named."""
    assert cli(*ASK, "--forget", "random:20").code == 0
    [request_id] = before = store.requests()
    first = store.runs()[0]
    names = Manifest.from_csv(artifact(first.info.run_id, "manifest.csv")).ids
    (tmp_path / "ids.csv").write_text("\n".join(["id", *reversed(names)]))
    for again in ("random:20", str(tmp_path / "ids.csv"), f"request:{request_id}"):
        filed = cli(*ASK, "--forget", again)
        assert filed.code == 0, filed.err
        assert filed.out.strip() == f"Request {request_id} was filed before and is pending."
    assert store.requests() == before and before[request_id][1]["run_id"] == first.info.run_id
    tagged = [run for run in store.runs() if "unlearn.request_id" in run.data.tags]
    assert [run.info.run_id for run in tagged] == [first.info.run_id]


def test_other_samples_are_another_request(store, cli):
    for spec in ("random:20", "random:20,seed=1", "random:21"):
        assert cli(*ASK, "--forget", spec).code == 0
    assert len(store.requests()) == 3


def test_other_versions_have_requests_of_their_own(store, cli):
    """A copy has the same samples; its request has another id and leaves the first version alone."""
    assert cli(*ASK, "--forget", "random:20").code == 0
    [first] = store.requests()
    store.client.copy_model_version("models:/clf/1", "copy")
    filed = cli("request", "--model-uri", "models:/copy/1", "--forget", f"request:{first}")
    assert filed.code == 0, filed.err
    own = {key: details for key, (_, details) in store.requests("1", "copy").items() if key != first}
    [details] = own.values()
    assert details["of"] == "models:/copy/1"
    assert list(store.requests()) == [first]


@pytest.mark.slow
def test_carried_out_again_the_tag_names_both_versions(store, cli):
    assert cli(*ASK, "--forget", "random:20%").code == 0
    [request_id] = store.requests()
    for _ in range(2):
        done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", f"request:{request_id}", *QUICK)
        assert done.code == 0, done.err
    [(state, details)] = store.requests().values()
    assert (state, details["by"]) == ("done", ["models:/clf/2", "models:/clf/3"])
    filed = cli(*ASK, "--forget", "random:20%")
    assert filed.out.strip() == (
        f"Request {request_id} was filed before and was carried out by models:/clf/2, models:/clf/3."
    )


@pytest.mark.slow
def test_a_done_request_alone_is_not_pending(store, cli):
    assert cli("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:20%", *QUICK).code == 0
    nothing = cli("unlearn", "--model-uri", "models:/clf/1", *QUICK)
    assert nothing.code == 2
    assert "models:/clf/1 has no pending forget request" in nothing.err
    assert store.versions() == ["1", "2"]


@pytest.mark.slow
def test_a_request_of_a_failed_unlearn_stays_pending(store, cli):
    """Nothing was registered, so nothing is done; what was filed can be carried out later."""
    assert cli(*ASK, "--forget", "random:20%").code == 0
    failed = cli("unlearn", "--model-uri", "models:/clf/1", "--gold-uri", "models:/clf/1")
    assert failed.code == 2
    assert "is not a gold standard" in failed.err
    assert [state for state, _ in store.requests().values()] == ["pending"]
    assert store.versions() == ["1"]
    assert cli("unlearn", "--model-uri", "models:/clf/1", *QUICK).code == 0
    [(state, details)] = store.requests().values()
    assert (state, details["by"]) == ("done", ["models:/clf/2"])


@pytest.mark.parametrize("spec", ["class:3", "3"])
def test_a_spec_that_is_no_file_and_one_that_is_a_class(store, cli, spec):
    filed = cli(*ASK, "--forget", spec)
    if spec == "3":
        assert filed.code == 2
        assert store.requests() == {}
    else:
        source = load_source("digits,train=15%")
        manifest = Manifest.from_csv(artifact(store.runs()[0].info.run_id, "manifest.csv"))
        assert set(manifest.ids) == {i for i, k in zip(source.train.ids, source.train.labels, strict=True) if k == 3}


@pytest.fixture
def customers(tmp_path) -> Path:
    """A table without splits: customer 17 has ten of two hundred images."""
    files = sorted(digits_folder(tmp_path / "images", train=200, held_out=0).rglob("*.png"))
    owners = ["17" if i % 20 == 0 else "18" for i in range(200)]
    table = {"path": files, "label": [path.parent.name for path in files], "customer": owners}
    pandas.DataFrame(table).to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


@pytest.mark.slow
def test_a_customer_is_not_half_forgotten_in_silence(empty_store, cli, customers):
    """Six of ten were drawn for training: output, evidence and report tell of the four others."""
    data = f"csv:{customers}"
    trained = ("train", "--data", data, "--name", "clf", "--architecture", "toy:trainable", "--epochs", "4")
    assert cli(*trained, "--lr", "0.05", "--batch-size", "32").code == 0
    source = load_source(data)
    own = {name: getattr(source, name).groups["customer"].count("17") for name in ("train", "val", "test")}
    assert sum(own.values()) == 10 and own["train"] < 10
    filed = cli(*ASK, "--forget", "group:customer=17")
    assert filed.code == 0, filed.err
    said = " ".join(filed.err.split())
    assert f"group:customer=17 names {own['train']} samples that models:/clf/1 is trained on, and " in said
    assert f"{own['val']} in the validation split, {own['test']} in the test split, which are not forgotten" in said
    assert "the split was made by this tool: 120 samples drawn" in said
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--force", *QUICK)
    assert done.code == 0, done.err
    path = Path(mlflow.artifacts.download_artifacts("models:/clf/2"))
    evidence, _ = read_evidence(path)
    [request] = evidence.requests
    assert request.matched is not None and request.matched.model_dump() == {
        "trained": own["train"], "untrained": 0, "val": own["val"], "test": own["test"], "nowhere": 0,
    }  # fmt: skip
    assert evidence.data.split == source.split and evidence.data.trained_on == "the version's own list"
    report = " ".join((path / "evidence" / "report.html").read_text().split())
    others = f"{own['val']} in the validation split, {own['test']} in the test split"
    assert f"{others}: not forgotten" in report and source.split in report
    assert f"also named, and not forgotten: {others}" in (path / "evidence" / "model_card.md").read_text()


def test_samples_that_have_moved_out_of_the_training_split_are_not_left_in_the_model(empty_store, cli, customers):
    """More images, and this tool draws another split: it would have forgotten what is in the training split still."""
    data = f"csv:{customers}"
    trained = ("train", "--data", data, "--name", "clf", "--architecture", "toy:trainable", "--epochs", "1")
    assert cli(*trained, "--batch-size", "32").code == 0
    table = pandas.read_csv(customers, dtype=str)
    pandas.concat([table.iloc[40:], table.iloc[:40]]).to_csv(customers, index=False)
    before = empty_store.everything_registered()
    for command in (("request",), ("unlearn",), ("evaluate",)):
        refused = cli(*command, "--model-uri", "models:/clf/1", "--forget", "group:customer=17")
        assert refused.code == 2
        assert "samples that the version was trained on and that" in " ".join(refused.err.split())
    assert empty_store.everything_registered() == before
    # The version's own list brings the split back.
    own = Path(mlflow.artifacts.download_artifacts("models:/clf/1/extra_files/training_manifest.csv"))
    filed = cli(*ASK, "--forget", "group:customer=17", "--split", str(own))
    assert filed.code == 0, filed.err


def test_of_several_versions_one_was_deleted_meanwhile(store, cli, tmp_path):
    """The others are filed, and the exit code tells."""
    store.client.copy_model_version("models:/clf/1", "other")
    store.client.copy_model_version("models:/clf/1", "gone")
    store.client.delete_model_version("gone", "1")
    uris = "models:/clf/1,models:/gone/1,models:/other/1"
    filed = cli("request", "--model-uri", uris, "--forget", "class:3", "--format", "json")
    answer = json.loads(filed.out)
    assert filed.code == 3 and list(answer["result"]["failed"]) == ["models:/gone/1"], filed.err
    assert [one["uri"] for one in answer["result"]["requests"]] == ["models:/clf/1", "models:/other/1"]
    assert not [run for run in store.runs() if run.info.status == "RUNNING"]


def test_a_store_that_refuses_one_of_several_versions(store, cli):
    """What was filed on the others is answered, and the run inside says why it failed."""
    store.client.copy_model_version("models:/clf/1", "other")
    with sqlite3.connect(store.folder / "mlflow.db") as database:
        database.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON model_version_tags WHEN NEW.name = 'clf' AND NEW.key LIKE "
            "'unlearn.request.%' BEGIN SELECT RAISE(ABORT, 'not on this model'); END"
        )
    filed = cli("request", "--model-uri", "models:/clf/1,models:/other/1", "--forget", "class:3", "--format", "json")
    answer = json.loads(filed.out)
    assert filed.code == 3 and [one["uri"] for one in answer["result"]["requests"]] == ["models:/other/1"], filed.err
    assert list(answer["result"]["failed"]) == ["models:/clf/1"] and "the others are" in answer["error"]["message"]
    assert "not on this model" in answer["result"]["failed"]["models:/clf/1"]
    assert any("not on this model" in run.data.tags.get("unlearn.error", "") for run in store.runs())


def test_all_samples_of_a_version_are_not_forgotten_on_several_either(store, cli):
    store.client.copy_model_version("models:/clf/1", "other")
    (store.folder / "all.txt").write_text("\n".join(load_source("digits,train=15%").train.ids))
    filed = cli("request", "--all", "true", "--forget", "all.txt", "--format", "json")
    answer = json.loads(filed.out)
    assert filed.code == 3 and answer["result"]["requests"] == [] and answer["result"]["due"] is None
    assert all("names all 270 training samples" in reason for reason in answer["result"]["failed"].values())
    assert len(answer["result"]["failed"]) == 2 and "the others" not in answer["error"]["message"]
    assert store.requests() == {}


def test_the_day_that_is_answered_is_the_one_that_was_filed(store, cli):
    """And it can be changed as the note says."""
    given = (*ASK, "--forget", "class:3", "--format", "json")
    assert json.loads(cli(*given, "--due", "2030-01-02").out)["result"]["due"] == "2030-01-02"
    again = cli(*given, "--due", "2031-01-02")
    result = json.loads(again.out)["result"]
    assert (result["due"], result["requests"][0]["due"]) == ("2030-01-02", "2030-01-02")
    [request_id] = store.requests()
    said = " ".join(again.err.split())
    assert f"stays due 2030-01-02, not 2031-01-02: to change that, delete the tag unlearn.request.{request_id}" in said
    assert "stays due" not in cli(*given).err
    store.client.delete_model_version_tag("clf", "1", f"unlearn.request.{request_id}")
    assert json.loads(cli(*given, "--due", "2031-01-02").out)["result"]["due"] == "2031-01-02"
    assert store.requests()[request_id][1]["due"] == "2031-01-02"


def test_a_day_that_has_passed_is_told(store, cli):
    """It may have, and the request counts nevertheless."""
    late = cli(*ASK, "--forget", "class:3", "--due", "2026-01-02")
    assert late.code == 0 and "Warning: the day by which it is due, 2026-01-02, has passed: it is overdue." in late.err
    assert "has passed" not in cli(*ASK, "--forget", "class:4").err


def test_a_request_on_another_model_joins_the_case_of_the_one_it_names(store, cli):
    first = json.loads(cli(*ASK, "--forget", "random:20", "--format", "json").out)["result"]
    store.client.copy_model_version("models:/clf/1", "copy")
    [request_id] = store.requests()
    given = ("--model-uri", "models:/copy/1", "--forget", f"request:{request_id}", "--format", "json")
    second = json.loads(cli("request", *given).out)["result"]
    assert second["case_id"] == first["case_id"] and second["requests"][0]["request_id"] != request_id


def test_of_several_sources_each_is_a_case(store, cli, customers):
    """The answer says so."""
    trained = ("train", "--data", f"csv:{customers}", "--name", "theirs", "--architecture", "toy:trainable")
    assert cli(*trained, "--epochs", "1", "--batch-size", "32").code == 0
    filed = cli("request", "--model-uri", "models:/clf/1,models:/theirs/1", "--forget", "class:3", "--format", "json")
    assert filed.code == 0 and "these are 2 cases" in filed.err, filed.err
    result = json.loads(filed.out)["result"]
    cases = [one["case_id"] for one in result["requests"]]
    assert len(set(cases)) == 2 and result["case_id"] == cases[0]


def test_all_tells_of_what_cannot_be_told_and_of_models_that_nobody_registered(store, cli):
    store.client.create_registered_model("bare")
    (store.folder / "bare").mkdir()
    store.client.create_model_version("bare", str(store.folder / "bare"))
    (store.folder / "ids.txt").write_text("\n".join(load_source("digits,train=15%").train.ids[:4]))
    filed = cli("request", "--all", "true", "--forget", "ids.txt", "--format", "json")
    result = json.loads(filed.out)["result"]
    assert filed.code == 0 and (result["unknown"], result["logged_models"]) == (["models:/bare/1"], []), filed.err
    assert "May also contain the samples, which is unknown: models:/bare/1: see `locate`." in filed.err
    store.client.delete_model_version("clf", "1")
    refused = cli("request", "--all", "true", "--forget", "ids.txt")
    assert refused.code == 2 and "1 version may: see `locate`" in refused.err
    assert "LoggedModels that are not registered do: 'models:/m-" in " ".join(refused.err.split())


@pytest.mark.nightly
def test_a_case_of_fifty_versions(store, cli):
    for _ in range(49):
        store.client.copy_model_version("models:/clf/1", "many")
    filed = cli("request", "--all", "true", "--forget", "class:3", "--format", "json")
    assert filed.code == 0, filed.err
    result = json.loads(filed.out)["result"]
    assert len(result["requests"]) == 50 == len({one["request_id"] for one in result["requests"]})
    [case] = json.loads(cli("requests", "--format", "json").out)["result"]["cases"]
    assert case["id"] == result["case_id"] and len(case["requests"]) == 50 == len(case["still_in"])


@pytest.mark.slow
def test_a_foreign_model_on_a_source_without_a_split(empty_store, cli, customers, tmp_path):
    """What it was trained on is not for this tool to draw: it is told, or the command refuses."""
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            toy.original(), name="m", registered_model_name="theirs", serialization_format="pickle",
            pip_requirements=["torch"],
        )  # fmt: skip
    uri = ("--model-uri", "models:/theirs/1", "--data", f"csv:{customers}")
    before = empty_store.everything_registered()
    for command in ("request", "unlearn", "tune", "compare", "evaluate"):
        refused = cli(command, *uri, "--forget", "group:customer=17", *(() if command == "request" else TRANSFORM))
        assert refused.code == 2, command
        assert "models:/theirs/1 has no list of what it was trained on" in " ".join(refused.err.split())
        assert "write ,split=FILE behind it, a file of the training ids, or ,split=drawn" in " ".join(
            refused.err.split()
        )
    assert empty_store.everything_registered() == before
    ids = load_source(f"csv:{customers}").train.ids
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    done = cli("unlearn", *uri, *TRANSFORM, "--split", tmp_path / "ids.txt", "--forget", "group:customer=17", *QUICK)
    assert done.code == 0, done.err
    evidence, _ = read_evidence(Path(mlflow.artifacts.download_artifacts("models:/theirs/2")))
    assert evidence.data.trained_on == "assumed: all of the source's training split"
    assert evidence.data.split == f"by the list {str(tmp_path / 'ids.txt')!r}"
    assert evidence.data.forget.samples + evidence.data.retain.samples == len(ids)
    # The list is on record now.
    again = cli("request", "--model-uri", "models:/theirs/2", "--forget", "random:5")
    assert again.code == 0, again.err
