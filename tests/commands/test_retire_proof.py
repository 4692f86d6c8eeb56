"""What `retire` finds after its deletions: copies, object versions, and what it could not look at."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from buckets import object_versions, restricted_to, s3_server
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, ViewType
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from servers import mlflow_server
from stores import Outcome, Store, call, shell

from mlflow_unlearn.commands import retire as command
from mlflow_unlearn.evidence.audit import REFERENCE_FILE, REFERENCE_TAG
from mlflow_unlearn.governance.deletion import RetirementRecord

WEIGHTS = bytes(range(256)) * 16
MLMODEL = "flavors: {pytorch: {model_data: data}}\n"


def register(client: MlflowClient, experiment: str, name: str, folder: Path, weights: bytes = WEIGHTS) -> LoggedModel:
    """A version of a LoggedModel with these weights."""
    logged = client.create_logged_model(experiment, name="model")
    (folder / name / "data").mkdir(parents=True)
    (folder / name / "MLmodel").write_text(f"{MLMODEL}model_id: {logged.model_id}\n")
    (folder / name / "requirements.txt").write_text("torch\n" * 500)
    (folder / name / "data" / "model.pth").write_bytes(weights)
    get_artifact_repository(logged.artifact_location).log_artifacts(str(folder / name))
    client.create_registered_model(name)
    client.create_model_version(name, f"models:/{logged.model_id}", model_id=logged.model_id)
    return logged


def log_copy(client: MlflowClient, experiment: str, content: bytes, folder: Path, name: str = "old.bin") -> str:
    """The bytes in another run; the run's artifacts."""
    run = client.create_run(experiment)
    (folder / name).write_bytes(content)
    client.log_artifact(run.info.run_id, str(folder / name), "kept")
    return str(run.info.artifact_uri)


def retire(name: str = "clf", yes: str = "true", *more: str) -> Outcome:
    return call("retire", "--model-uri", f"models:/{name}/1", "--yes", yes, *more)


def mark_of(client: MlflowClient, name: str = "clf") -> dict[str, Any]:
    mark: dict[str, Any] = json.loads(client.get_model_version(name, "1").tags["unlearn.retired"])
    return mark


def record_of(client: MlflowClient, name: str = "clf") -> RetirementRecord:
    text = mlflow.artifacts.load_text(f"runs:/{mark_of(client, name)['run_id']}/evidence/retirement.json")
    return RetirementRecord.model_validate_json(text)


@pytest.fixture
def files(empty_store: Store, tmp_path: Path) -> SimpleNamespace:
    """A version whose files, and those of all runs, lie in the test's folder."""
    client = empty_store.client
    experiment = client.create_experiment("own", (tmp_path / "runs").as_uri())
    os.environ["MLFLOW_EXPERIMENT_NAME"] = "own"
    logged = register(client, experiment, "clf", tmp_path / "made")
    return SimpleNamespace(client=client, experiment=experiment, logged=logged, folder=tmp_path / "made")


def test_proven(files):
    run = files.client.create_run(files.experiment)
    files.client.delete_run(run.info.run_id)
    done = retire()
    assert done.code == 0, done.err
    assert "Proven: none of" in done.out and "Out of reach from here: experiments" in done.out
    assert "mlflow gc" not in done.out
    record = record_of(files.client)
    assert record.done and record.proof.proven and record.gc is None
    assert record.proof.found == record.proof.not_looked_at == ()
    assert any(root.endswith("/runs") for root in record.proof.looked_at) and record.proof.files >= 2
    digests = {content.path: content.sha256 for content in record.contents}
    assert digests.keys() == {"MLmodel", "requirements.txt", "data/model.pth"}
    assert digests["data/model.pth"] and not digests["requirements.txt"], "others have the same by nature"
    # The entry is gone for good, and what else is marked as deleted is not.
    with files.client._tracking_client.store.engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM logged_models").scalar() == 0
    assert files.client.get_run(run.info.run_id).info.lifecycle_stage == "deleted"
    again = retire()
    assert again.code == 2 and "there is nothing left to remove" in again.err


def test_a_copy_in_another_run(files):
    client = files.client
    artifacts = log_copy(client, files.experiment, WEIGHTS, files.folder)
    log_copy(client, files.experiment, WEIGHTS[::-1], files.folder, "as large.bin")
    log_copy(client, files.experiment, b"torch\n" * 500, files.folder, "requirements.txt")
    copy = Path(artifacts.removeprefix("file://")) / "kept" / "old.bin"
    for attempt in range(2):  # the second time it only looks again
        refused = retire()
        assert refused.code == 3, refused.out + refused.err
        assert f"{copy} (the same bytes as data/model.pth: delete it)" in refused.err
        assert "as large.bin" not in refused.err and "requirements.txt" not in refused.err
        assert "Not proven, since 1 copy was found" in refused.out
        assert ("done: " in refused.out) == (attempt == 0)
        record = record_of(client)
        assert record.done and not record.proof.proven
        assert [place.place for place in record.proof.found] == [str(copy)]
    before = mark_of(client)
    copy.unlink()
    planned = retire("clf", "false")
    assert planned.code == 0 and "would look again for the weights of models:/clf/1" in planned.out
    assert mark_of(client) == before
    done = retire()
    assert done.code == 0, done.err
    assert "Proven: none of" in done.out and record_of(client).proof.proven
    after = mark_of(client)
    assert {**after, "run_id": None} == {**before, "run_id": None} and after["run_id"] != before["run_id"]
    assert retire().code == 2


def test_another_version_with_the_same_weights(files, tmp_path):
    client = files.client
    register(client, files.experiment, "twin", files.folder)
    for name in ("clf", "twin"):
        client.set_model_version_tag(name, "1", "unlearn.weights_sha256", "a" * 64)
    planned = retire("clf", "false")
    assert planned.code == 0 and "The same weights remain in models:/twin/1" in planned.out
    refused = retire()
    assert refused.code == 3 and "retire models:/twin/1 too" in refused.err
    assert record_of(client).same_weights == ("models:/twin/1",)
    assert retire("twin").code == 0
    done = retire()
    assert done.code == 0 and record_of(client).proof.proven


def test_another_version_whose_tag_alone_says_so(files):
    """Stored in another format: no two files are the same."""
    client = files.client
    register(client, files.experiment, "twin", files.folder, WEIGHTS[::-1])
    for name in ("clf", "twin"):
        client.set_model_version_tag(name, "1", "unlearn.weights_sha256", "a" * 64)
    refused = retire()
    assert refused.code == 3 and "models:/twin/1 (its tag names the same weights: retire it too)" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("root", "why"),
    [
        ("mlflow-artifacts:/elsewhere", "mlflow-artifacts"),
        ("nowhere://bucket/runs", "Could not find a registered artifact repository"),
        ("file:///home/alice/mlruns/7", "there is no such folder on this machine"),
        ("relative/runs", "is relative to"),
    ],
)
def test_a_root_that_cannot_be_listed_is_named(files, root, why):
    """Whatever was found elsewhere: nothing is called proven, and the same command looks again."""
    experiment = files.client.create_experiment("other", "file:///tmp")
    files.client.create_run(experiment)
    store = files.client._tracking_client.store
    with store.engine.begin() as connection:  # as another client has created it
        update = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?"
        connection.exec_driver_sql(update, (root, int(experiment)))
    for _ in range(2):
        done = retire()
        assert done.code == 0, done.err
        [line] = " ".join(done.out.split()).split("Not searched:")[1:]
        assert root in line and why in line
        assert "Not proven, since not everything could be looked at" in done.out
        proof = record_of(files.client).proof
        assert not proof.proven and [place.place for place in proof.not_looked_at] == [root]
        assert root not in proof.looked_at
    files.client.delete_experiment(experiment)
    assert root in retire().out, "deleted experiments have their files until they are purged"


def test_a_program_gets_the_record_of_what_was_refused(files):
    artifacts = log_copy(files.client, files.experiment, WEIGHTS, files.folder)
    for _ in range(2):
        refused = retire("clf", "true", "--format", "json")
        answer = json.loads(refused.out)
        assert refused.code == answer["exit_code"] == 3 and answer["error"]["kind"] == "refused"
        assert RetirementRecord.model_validate(answer["result"]) == record_of(files.client)
        assert answer["result"]["done"] and len(answer["result"]["proof"]["found"]) == 1
    Path(artifacts.removeprefix("file://"), "kept", "old.bin").unlink()
    assert retire().code == 0
    nothing = json.loads(retire("clf", "true", "--format", "json").out)
    assert nothing["exit_code"] == 2 and nothing["result"]["proof"]["proven"]


@pytest.mark.parametrize("step", ["_delete_files", "prove"])
def test_a_program_gets_the_record_of_what_failed(files, monkeypatch, step):
    def fails(*_):
        raise OSError("the store is gone")

    monkeypatch.setattr(command, step, fails)
    answer = json.loads(retire("clf", "true", "--format", "json").out)
    assert answer["exit_code"] == 2 and "the store is gone" in answer["error"]["message"]
    assert answer["result"]["versions"] == ["models:/clf/1"] and answer["result"]["done"] == (step == "prove")


def test_a_run_that_was_purged_since(files):
    """Its outputs were deleted with the version: it does not stop another look."""
    client = files.client
    reference = client.create_run(files.experiment, tags={REFERENCE_TAG: "a" * 64})
    client.set_model_version_tag("clf", "1", "unlearn.weights_sha256", "a" * 64)
    (files.folder / REFERENCE_FILE).parent.mkdir(exist_ok=True)
    (files.folder / REFERENCE_FILE).write_bytes(b"outputs")
    client.log_artifact(reference.info.run_id, str(files.folder / REFERENCE_FILE), os.path.dirname(REFERENCE_FILE))
    artifacts = log_copy(client, files.experiment, WEIGHTS, files.folder)
    assert retire().code == 3 and record_of(client).references == (reference.info.run_id,)
    client.delete_run(reference.info.run_id)
    client._tracking_client.store._hard_delete_run(reference.info.run_id)
    assert retire().code == 3
    Path(artifacts.removeprefix("file://"), "kept", "old.bin").unlink()
    done = retire()
    assert done.code == 0 and "Proven: none of" in done.out, done.err


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["nothing", "an empty folder"])
@pytest.mark.parametrize("around", ["no experiment", "an experiment"])
def test_a_root_that_was_moved_away_is_named(files, tmp_path, kept, around):
    """The folder around it is still there, and the copy is in neither."""
    mounted = tmp_path / "mnt"
    if around == "an experiment":
        files.client.create_experiment("around", mounted.as_uri())
    other = files.client.create_experiment("other", (mounted / "2").as_uri())
    log_copy(files.client, other, WEIGHTS, files.folder)
    (mounted / "notes.txt").write_text("stays")
    (mounted / "2").rename(tmp_path / "moved")
    if kept == "an empty folder":
        (mounted / "2").mkdir()
    done = retire()
    assert done.code == 0, done.err
    assert "Not proven, since not everything could be looked at" in done.out
    assert [place.place for place in record_of(files.client).proof.not_looked_at] == [(mounted / "2").as_uri()]
    shutil.rmtree(mounted / "2", ignore_errors=True)
    (tmp_path / "moved").rename(mounted / "2")
    refused = retire()
    assert refused.code == 3 and "old.bin (the same bytes as data/model.pth: delete it)" in refused.err


def test_files_that_tell_it_from_no_other(files):
    """Text and a few bytes: no copy of it could be known as one."""
    register(files.client, files.experiment, "small", files.folder, b"x" * 1000)
    done = retire("small")
    assert done.code == 0, done.err
    assert "Not proven" in " ".join(done.out.split()) and "so that copies were not looked for" in " ".join(
        done.out.split()
    )
    assert "nothing left to remove" in retire("small").err


@pytest.mark.slow
@pytest.mark.parametrize("step", ["delete_entry", "prove", "_mark_again"])
def test_killed_while_it_looks(files, monkeypatch, step):
    if step == "_mark_again":
        copy = Path(log_copy(files.client, files.experiment, WEIGHTS, files.folder).removeprefix("file://"))
        assert retire().code == 3
        (copy / "kept" / "old.bin").unlink()
    real = getattr(command, step)

    def killed(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, step, killed)
    assert retire().code == 130
    monkeypatch.undo()
    if step != "_mark_again":  # which is the last one
        done = retire()
        assert done.code == 0 and "Proven" in done.out, done.err
    assert record_of(files.client).proof.proven
    assert "nothing left to remove" in retire().err


@pytest.mark.slow
def test_two_at_once(files, monkeypatch):
    """The second one, whose plan is older, finds everything done."""
    lock = command.model_lock

    def after_another(*arguments):
        monkeypatch.setattr(command, "model_lock", lock)
        done = shell("retire", "--model-uri", "models:/clf/1", "--yes", "true")
        assert done.returncode == 0 and "Proven" in done.stdout, done.stderr
        return lock(*arguments)

    monkeypatch.setattr(command, "model_lock", after_another)
    second = retire()
    assert second.code == 2 and "there is nothing left to remove" in second.err
    assert record_of(files.client).proof.proven


def test_files_that_cannot_be_read_are_not_deleted(files, monkeypatch):
    """Their copies could not be found afterwards."""
    weights = Path(files.logged.artifact_location.removeprefix("file://")) / "data" / "model.pth"
    real = command.contents_of

    def unreadable(location):
        weights.unlink()
        weights.symlink_to("/proc/self/mem")  # a file that nobody can read from its beginning
        return real(location)

    monkeypatch.setattr(command, "contents_of", unreadable)
    monkeypatch.setattr("mlflow_unlearn.governance.deletion._SMALLEST", 0)
    refused = retire()
    assert refused.code == 2 and "so that its copies could not be found: get access to it" in refused.err
    assert weights.is_symlink() and not files.client.get_model_version("clf", "1").tags


@pytest.mark.nightly
def test_behind_a_server(blank, tmp_path, monkeypatch):
    """Its artifacts are seen through it alone, and its database not at all."""
    shutil.copy(blank.folder / "mlflow.db", tmp_path)
    with mlflow_server(tmp_path, f"sqlite:///{tmp_path}/mlflow.db") as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("http://", "http://erin:secret-word@"))
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "own")
        mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
        client = MlflowClient()
        experiment = client.create_experiment("own")
        model_id = register(client, experiment, "clf", tmp_path / "made").model_id
        copy = log_copy(client, experiment, WEIGHTS, tmp_path / "made")
        removed = client.create_run(experiment)
        client.delete_run(removed.info.run_id)
        refused = retire()
        assert refused.code == 3 and f"{copy}/kept/old.bin (the same bytes" in refused.err, refused.err
        assert f"--backend-store-uri DATABASE --tracking-uri '{uri.replace('//', '//erin:***@')}'" in refused.out
        said = " ".join(refused.out.split())
        assert f"--logged-model-ids {model_id}" in said and "(runs: 1, experiments: 0)" in said
        assert "older versions of objects behind mlflow-artifacts://" in said
        assert "secret-word" not in refused.out + refused.err
        get_artifact_repository(copy).delete_artifacts("kept/old.bin")
        done = retire()
        assert done.code == 0 and "Proven: none of" in done.out, done.err
        record = record_of(client)
        assert "secret-word" not in record.model_dump_json()
        assert not list((tmp_path / "kept").rglob("model.pth")) and not list((tmp_path / "kept").rglob("old.bin"))
        assert client.get_run(removed.info.run_id).info.lifecycle_stage == "deleted"
        assert len(client.search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)) == 1


# Buckets.


@pytest.fixture
def s3(monkeypatch) -> Iterator[Any]:
    with s3_server(monkeypatch) as client:
        yield client


@pytest.fixture
def bucket(s3, empty_store: Store, tmp_path: Path, monkeypatch) -> Callable[..., SimpleNamespace]:
    """A function that makes a bucket, with a version in it and the runs of the commands beside it."""

    def make(name: str, versioning: bool = False, **options: Any) -> SimpleNamespace:
        s3.create_bucket(Bucket=name, **options)
        if versioning:
            s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        client = empty_store.client
        experiment = client.create_experiment("own", f"s3://{name}/runs")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "own")
        key = register(client, experiment, "clf", tmp_path / "made").artifact_location.removeprefix(f"s3://{name}/")
        return SimpleNamespace(client=client, experiment=experiment, key=key, folder=tmp_path / "made", name=name)

    return make


@pytest.mark.slow
def test_a_plain_bucket(s3, bucket):
    made = bucket("plain")
    copy = log_copy(made.client, made.experiment, WEIGHTS, made.folder)
    refused = retire()
    assert refused.code == 3 and f"{copy}/kept/old.bin (the same bytes as data/model.pth: delete it)" in refused.err
    assert not any(key.startswith(made.key) for key in object_versions(s3, "plain"))
    get_artifact_repository(copy).delete_artifacts("kept")
    done = retire()
    assert done.code == 0 and "Proven: none of" in done.out, done.err


@pytest.mark.slow
def test_a_bucket_with_versioning(s3, bucket):
    """MLflow's deletion leaves every version of the objects; the one that was overwritten too."""
    made = bucket("versioned", versioning=True)
    s3.put_object(Bucket="versioned", Key=f"{made.key}/data/model.pth", Body=WEIGHTS[::-1])
    s3.put_object(Bucket="versioned", Key=f"{made.key}/notes.md", Body=b"a team's own, deleted years ago")
    s3.delete_object(Bucket="versioned", Key=f"{made.key}/notes.md")
    done = retire()
    assert done.code == 0 and "Proven: none of" in done.out, done.err
    left = [key for key in object_versions(s3, "versioned") if key.startswith(made.key)]
    assert left == [f"{made.key}/notes.md"], "it is no file of the version"


@pytest.mark.slow
def test_a_copy_that_was_deleted_from_a_bucket_with_versioning(s3, bucket):
    made = bucket("versioned", versioning=True)
    copy = log_copy(made.client, made.experiment, WEIGHTS, made.folder)
    get_artifact_repository(copy).delete_artifacts("kept")
    refused = retire()
    assert refused.code == 3 and f"{copy}/kept/old.bin (object version " in refused.err
    assert "delete this version of the object" in refused.err
    key = f"{copy.removeprefix('s3://versioned/')}/kept/old.bin"
    for version in object_versions(s3, "versioned")[key]:
        s3.delete_object(Bucket="versioned", Key=key, VersionId=version)
    done = retire()
    assert done.code == 0 and "Proven: none of" in done.out, done.err


@pytest.mark.slow
@pytest.mark.parametrize("lock", ["retained", "held"])
def test_a_bucket_with_object_lock(s3, bucket, lock):
    """What may not be removed is named, stays deleted for MLflow, and goes once it may."""
    made = bucket("locked", ObjectLockEnabledForBucket=True)
    key = f"{made.key}/data/model.pth"
    [version] = object_versions(s3, "locked")[key]
    if lock == "retained":
        until = {"Mode": "GOVERNANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(days=1)}
        s3.put_object_retention(Bucket="locked", Key=key, Retention=until)
    else:
        s3.put_object_legal_hold(Bucket="locked", Key=key, LegalHold={"Status": "ON"})
    why = "it is retained (GOVERNANCE) until 20" if lock == "retained" else "it is under a legal hold"
    for _ in range(2):
        refused = retire()
        assert refused.code == 3, refused.err
        assert f"s3://locked/{key} (object version {version}) ({why}" in refused.err
        assert [each for each in object_versions(s3, "locked") if each.startswith(made.key)] == [key]
        assert not get_artifact_repository(f"s3://locked/{made.key}").list_artifacts()
        assert [place.why.startswith(why) for place in record_of(made.client).proof.found] == [True]
    if lock == "retained":
        s3.put_object_retention(
            Bucket="locked", Key=key, VersionId=version, BypassGovernanceRetention=True, Retention={}
        )
    else:
        s3.put_object_legal_hold(Bucket="locked", Key=key, VersionId=version, LegalHold={"Status": "OFF"})
    done = retire()
    assert done.code == 0 and "Proven: none of" in done.out, done.err
    assert not any(each.startswith(made.key) for each in object_versions(s3, "locked"))


@pytest.mark.slow
def test_what_is_stored_again_is_left_alone(s3, bucket, monkeypatch):
    made = bucket("versioned", versioning=True)
    real = command.remove_object_versions

    def and_stored_again(location, paths):
        s3.put_object(Bucket="versioned", Key=f"{made.key}/data/model.pth", Body=b"new")
        return real(location, paths)

    monkeypatch.setattr(command, "remove_object_versions", and_stored_again)
    refused = retire()
    assert refused.code == 3 and "it was stored again" in refused.err
    assert s3.get_object(Bucket="versioned", Key=f"{made.key}/data/model.pth")["Body"].read() == b"new"


def test_without_boto3(s3, bucket, monkeypatch):
    from mlflow.store.artifact import s3_artifact_repo

    made = bucket("plain")
    before = object_versions(s3, "plain")
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    monkeypatch.setitem(sys.modules, "boto3", None)
    refused = retire("clf", "false")
    assert refused.code == 2 and "boto3" in refused.err and f"s3://plain/{made.key}" in refused.err, refused.err
    assert object_versions(s3, "plain") == before


@pytest.mark.slow
def test_a_user_who_may_not_see_older_versions(s3, bucket, monkeypatch):
    """The bucket keeps them, whatever this user may see: they are named."""
    made = bucket("versioned", versioning=True)
    allowed = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"]
    with restricted_to(allowed, s3, monkeypatch):
        done = retire()
    assert done.code == 0, done.err
    for folder in ("runs", made.key):
        assert f"Not searched: older object versions at s3://versioned/{folder} (" in done.out, done.out
    assert "AccessDenied" in done.out and "Not proven" in done.out
    assert len(object_versions(s3, "versioned")[f"{made.key}/data/model.pth"]) == 2
    again = retire()
    assert again.code == 0 and "Proven: none of" in again.out, again.err
    assert not any(key.startswith(made.key) for key in object_versions(s3, "versioned"))


@pytest.mark.slow
def test_a_bucket_that_is_gone(s3, bucket):
    made = bucket("plain")
    made.client.create_experiment("other", "s3://nobody-has-it/runs")
    done = retire()
    assert done.code == 0, done.err
    assert "Not searched: s3://nobody-has-it/runs (" in " ".join(done.out.split()) and "does not exist" in " ".join(
        done.out.split()
    )
