"""What becomes of checkpoints when a version is retired."""

import hashlib
import json
import shutil
from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from sharding import checkpoint_files, listed, placed_at, record_of
from stores import DATA, call

from mlflow_unlearn.commands import retire as command
from mlflow_unlearn.governance.checkpoints import remove_of_dead
from mlflow_unlearn.registry.checkpoints import keeper, mark_training

RETIRE = ("retire", "--model-uri", "models:/clf/1", "--yes", "true")


def retirement(store, number: str = "1"):
    mark = json.loads(store.tags(number)["unlearn.retired"])
    return json.loads(mlflow.artifacts.load_text(f"runs:/{mark['run_id']}/evidence/retirement.json"))


def remove(store, number: str) -> None:
    """A version and its LoggedModel, not by `retire`: its checkpoints stay."""
    source = str(store.client.get_model_version("clf", number).source)
    store.client.delete_model_version("clf", number)
    store.client.delete_logged_model(source.removeprefix("models:/"))


def kept_by(trained_as: str | None, status: str = "KILLED", resume_key: str | None = None) -> Path:
    """A run that keeps one checkpoint of a training, and ended like that; the file."""
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        if trained_as is not None:
            mark_training(run.info.run_id, trained_as)
        kept = keeper(run.info.run_id, lambda: resume_key)({"model": {"weight": torch.arange(3.0)}}, 2)
    client.update_run(run.info.run_id, status)
    return Path(run.info.artifact_uri.removeprefix("file://")) / kept.path


@pytest.mark.nightly
def test_those_that_no_version_that_stays_lists(sharded):
    """The second slice of shard 0 has the sample: only what was kept after it has seen it."""
    [(run_id, path)] = gone = listed(sharded, "1") - listed(sharded, "2")
    file = checkpoint_files(sharded)[run_id, path]
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert path == "checkpoints/shard-0-stage-2.pt"
    plan = call("retire", "--model-uri", "models:/clf/1")
    assert f"would delete 1 checkpoint of run {run_id}" in plan.out and file.exists()
    assert "3 of its checkpoints stay, listed by models:/clf/2" in plan.out
    kept = listed(sharded, "2")
    done = call(*RETIRE)
    assert done.code == 0, done.err
    assert "Proven" in done.out
    assert {*checkpoint_files(sharded)} == kept and not gone & kept
    record = retirement(sharded)
    assert [(one["run_id"], one["path"], one["sha256"]) for one in record["checkpoints"]] == [(run_id, path, sha256)]
    assert {one["place"] for one in record["checkpoints_kept"]} == {f"runs:/{r}/{p}" for r, p in kept if r == run_id}
    assert call("verify", "--model-uri", "models:/clf/2").code == 0
    done = call("unlearn", "--model-uri", "models:/clf/2", "--method", "exact", "--forget", "random:1")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_the_last_one_takes_the_rest_along(sharded):
    for number in "12":
        done = call("retire", "--model-uri", f"models:/clf/{number}", "--yes", "true")
        assert done.code == 0, done.err
    assert checkpoint_files(sharded) == {}


def test_in_the_other_order(sharded):
    """Those that both list go with the second one, whichever that is."""
    kept = listed(sharded, "1")
    assert call("retire", "--model-uri", "models:/clf/2", "--yes", "true").code == 0
    assert {*checkpoint_files(sharded)} == kept
    assert call(*RETIRE).code == 0
    assert checkpoint_files(sharded) == {}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_the_deletion_the_same_command_goes_on(sharded, monkeypatch, moment):
    kept, gone, real = listed(sharded, "2"), listed(sharded, "1") - listed(sharded, "2"), command.delete_checkpoint

    def killed(*arguments):
        if moment == "after":
            real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "delete_checkpoint", killed)
    assert call(*RETIRE).code == 130
    monkeypatch.setattr(command, "delete_checkpoint", real)
    done = call(*RETIRE)
    assert done.code == 0, done.err
    assert {*checkpoint_files(sharded)} == kept
    assert {(one["run_id"], one["path"]) for one in retirement(sharded)["checkpoints"]} == gone


def test_a_copy_of_one_elsewhere_is_found(sharded):
    """By its SHA-256, as copies of weights are."""
    [gone] = listed(sharded, "1") - listed(sharded, "2")
    with mlflow.start_run():
        mlflow.log_artifact(str(checkpoint_files(sharded)[gone]), "mine")
    done = call(*RETIRE)
    assert done.code == 3 and "mine/shard-0-stage-2.pt (the same bytes as checkpoints/shard-0-stage-2.pt" in done.err


@pytest.mark.slow
def test_the_same_bits_of_a_training_that_stays_are_no_copy(sharded):
    """Shard 1 is trained alike with the sample and without: nothing of the sample is in it."""
    remove(sharded, "2")
    done = call(
        *("train", "--data", DATA, "--architecture", "toy:trainable", "--epochs", "2", "--batch-size", "32"),
        *("--ensemble", "2", "--slices", "3", "--name", "gold", "--exclude", "ids.csv"),
    )
    assert done.code == 0, done.err
    own, files = listed(sharded, "1"), checkpoint_files(sharded)
    shared = {files[one].read_bytes() for one in own} & {files[one].read_bytes() for one in files if one not in own}
    assert len(shared) == 3
    done = call(*RETIRE)
    assert done.code == 0, done.err
    assert not own & {*checkpoint_files(sharded)}


def test_what_a_version_that_stays_lists_must_be_known(sharded):
    """Its MLmodel is gone: what it needs cannot be told, and nothing is deleted."""
    before = {*checkpoint_files(sharded)}
    location = sharded.client.get_model_version_download_uri("clf", "2").removeprefix("file://")
    (sharded.folder / "kept").write_bytes(open(f"{location}/MLmodel", "rb").read())
    open(f"{location}/MLmodel", "w").close()
    refused = call(*RETIRE)
    assert refused.code == 2, refused.err
    assert "which checkpoints models:/clf/2 lists is not known" in refused.err
    assert {*checkpoint_files(sharded)} == before and "unlearn.retired" not in sharded.tags("1")


def test_one_that_another_version_lists_by_now(sharded, monkeypatch):
    """A command registers it between the plan and the deletion."""
    real = command.whoami

    def and_register():
        model = sharded.client.get_model_version("clf", "1")
        copied = mlflow.artifacts.download_artifacts(str(model.source), dst_path=str(sharded.folder / "copy"))
        sharded.client.create_registered_model("other")
        sharded.client.create_model_version("other", copied, tags={"unlearn.checkpoints": "4"})
        return real()

    monkeypatch.setattr(command, "whoami", and_register)
    refused = call(*RETIRE)
    assert refused.code == 3 and "listed by models:/other/1" in refused.err
    assert listed(sharded, "1") <= {*checkpoint_files(sharded)} and "unlearn.retired" not in sharded.tags("1")


@pytest.mark.slow
def test_samples_of_the_last_slice_are_in_no_checkpoint(sharded):
    (sharded.folder / "last.csv").write_text("id\n" + "\n".join(placed_at(1, 2)[:2]) + "\n")
    done = call("unlearn", "--model-uri", "models:/clf/2", "--method", "exact", "--forget", "last.csv")
    assert done.code == 0, done.err
    assert listed(sharded, "3") == listed(sharded, "2")
    plan = call("retire", "--model-uri", "models:/clf/2")
    assert plan.code == 0 and "checkpoint of run" not in plan.out
    assert "3 of its checkpoints stay, listed by models:/clf/1, 3" in plan.out
    assert "1 of its checkpoints stays, listed by models:/clf/3" in plan.out


def test_a_run_says_which_training_keeps_them(sharded):
    """Also of exact unlearning, and as the version's record does."""
    for number in "12":
        run = sharded.client.get_run(sharded.tags(number)["unlearn.run_id"])
        assert run.data.tags["unlearn.trained_as"] == record_of(sharded, number).trained_as
    assert record_of(sharded, "1").trained_as != record_of(sharded, "2").trained_as


class TestOnesThatNoVersionLists:
    """As a training leaves them that was killed and never started again."""

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "marked"), [("1", True), ("2", True), ("1", False)])
    def test_of_a_training_like_its_own(self, sharded, number, marked):
        """They may be its weights; without the tag nobody can tell."""
        file = kept_by(record_of(sharded, number).trained_as if marked else None)
        artifacts = file.parents[1].as_uri()
        named = f"{artifacts}/checkpoints (a checkpoint that no version lists, of run"
        plan = call("retire", "--model-uri", f"models:/clf/{number}")
        assert plan.code == 0 and f"The deletion cannot be proven while these remain: {named}" in " ".join(
            plan.out.split()
        )
        done = call("retire", "--model-uri", f"models:/clf/{number}", "--yes", "true")
        assert done.code == 3 and f"retired, and checkpoints are left: {named}" in done.err
        assert "delete them if no command will continue with them" in done.err
        assert ("which was trained as it was (it has ended KILLED)" in done.err) == marked
        assert "Not proven, since checkpoints are left" in " ".join(done.out.split()) and file.exists()
        [place] = retirement(sharded, number)["proof"]["checkpoints"]
        assert place["place"] == f"{artifacts}/checkpoints"
        file.unlink()
        again = call("retire", "--model-uri", f"models:/clf/{number}", "--yes", "true")
        assert again.code == 0 and "Proven: none of" in again.out, again.err

    def test_of_another_training(self, sharded):
        """Of the training that has not seen the sample, and of one of other samples."""
        files = [kept_by(record_of(sharded, "2").trained_as), kept_by("0" * 64)]
        done = call(*RETIRE)
        assert done.code == 0 and "Proven" in done.out, done.err
        assert all(file.exists() for file in files)

    def test_while_a_run_goes_on(self, sharded):
        kept_by(record_of(sharded, "1").trained_as, "RUNNING")
        done = call(*RETIRE)
        assert done.code == 3 and "(its command still runs, or was killed)" in done.err

    def test_what_is_left_when_the_training_has_gone_on(self, sharded):
        """Of the same command on the same machine, if it has ended, and no version lists it."""
        run = mlflow.MlflowClient().get_run
        dead, alive, other, listed_one = (
            kept_by("0" * 64, status, key)
            for status, key in (("KILLED", "mine"), ("RUNNING", "mine"), ("KILLED", "another's"), ("FAILED", "mine"))
        )
        own = kept_by("0" * 64, "RUNNING", "mine")
        record = record_of(sharded, "1")
        ids = {file: file.parents[2].name for file in (dead, alive, other, listed_one, own)}
        mine = record.checkpoints[0].model_copy(
            update={"run_id": ids[own], "path": "checkpoints/shard-0-stage-2.pt", "shard": 0, "stage": 2}
        )
        model = Path(sharded.client.get_model_version_download_uri("clf", "2").removeprefix("file://")) / "MLmodel"
        edit(model, lambda kept: [*kept, mine.model_copy(update={"run_id": ids[listed_one]}).model_dump()])
        assert run(ids[dead]).data.tags["unlearn.checkpoints"] == "1"
        remove_of_dead(sharded.client, [mine])
        assert not dead.exists()
        assert all(file.exists() for file in (alive, other, listed_one, own))


def edit(mlmodel: Path, change) -> None:
    """What a version lists, as somebody may who can write its files."""
    content = yaml.safe_load(mlmodel.read_text())
    content["metadata"]["mlflow_unlearn"]["checkpoints"] = change(content["metadata"]["mlflow_unlearn"]["checkpoints"])
    mlmodel.write_text(yaml.safe_dump(content))


class TestAVersionWithoutTheTag:
    """What it lists stays all the same."""

    def untagged(self, sharded) -> None:
        sharded.client.delete_model_version_tag("clf", "2", "unlearn.checkpoints")

    def copied_from_its_model(self, sharded) -> str:
        source = str(sharded.client.get_model_version("clf", "2").source)
        sharded.client.delete_model_version("clf", "2")
        sharded.client.create_registered_model("other")
        sharded.client.create_model_version("other", source, model_id=source.removeprefix("models:/"))
        return "models:/other/1"

    def copied_from_its_files(self, sharded) -> str:
        """Elsewhere, and its own model is gone."""
        location = sharded.client.get_model_version_download_uri("clf", "2").removeprefix("file://")
        shutil.copytree(location, sharded.folder / "copy")
        remove(sharded, "2")
        sharded.client.create_registered_model("other")
        sharded.client.create_model_version("other", (sharded.folder / "copy").as_uri())
        return "models:/other/1"

    def deleted_but_for_its_model(self, sharded) -> str:
        source = str(sharded.client.get_model_version("clf", "2").source)
        sharded.client.delete_model_version("clf", "2")
        return source

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "how", ["untagged", "copied_from_its_model", "copied_from_its_files", "deleted_but_for_its_model"]
    )
    def test_by(self, sharded, how):
        kept = listed(sharded, "2")
        uri = getattr(self, how)(sharded) or "models:/clf/2"
        done = call(*RETIRE)
        assert done.code == 0, done.err
        assert f"3 of its checkpoints stay, listed by {uri}" in done.out
        assert {*checkpoint_files(sharded)} == kept

    def test_nor_its_model_by_the_run_that_both_come_from(self, sharded):
        """The later version lists checkpoints of the run of the earlier one, which has no tag any more."""
        kept, model_id = listed(sharded, "1"), str(sharded.client.get_model_version("clf", "1").source)[8:]
        sharded.client.delete_model_version_tag("clf", "1", "unlearn.checkpoints")
        sharded.client.delete_logged_model_tag(model_id, "unlearn.checkpoints")
        done = call("retire", "--model-uri", "models:/clf/2", "--yes", "true")
        assert done.code == 0 and "3 of its checkpoints stay, listed by models:/clf/1" in done.out, done.err
        assert {*checkpoint_files(sharded)} == kept


class TestCheckpointsOfAnotherRun:
    """A version may list whatever its files say: they go only if they are what is recorded."""

    @pytest.fixture
    def foreign(self, sharded):
        """Those of clf/2 that the run of clf/1 keeps, which is not there any more."""
        remove(sharded, "1")
        own = sharded.client.get_model_version("clf", "2").run_id
        return [checkpoint_files(sharded)[one] for one in sorted(listed(sharded, "2")) if one[0] != own]

    def retired(self):
        return call("retire", "--model-uri", "models:/clf/2", "--yes", "true")

    def test_with_other_bytes(self, sharded, foreign):
        changed, *others = foreign
        changed.write_bytes(b"of another training")
        place = f"runs:/{changed.parents[2].name}/checkpoints/{changed.name}"
        why = "(of another run, and its SHA-256 is not the recorded one"
        plan = call("retire", "--model-uri", "models:/clf/2")
        assert f"The deletion cannot be proven while these remain: {place} {why}" in " ".join(plan.out.split())
        done = self.retired()
        assert done.code == 3 and f"checkpoints are left: {place} {why}" in done.err
        assert changed.read_bytes() == b"of another training" and not any(file.exists() for file in others)
        assert [one["place"] for one in retirement(sharded, "2")["checkpoints_left"]] == [place]
        changed.unlink()
        again = self.retired()
        assert again.code == 0 and "Proven" in again.out, again.err

    def test_of_one_that_has_not_ended(self, sharded, foreign):
        sharded.client.update_run(foreign[0].parents[2].name, "RUNNING")
        done = self.retired()
        assert done.code == 3 and "(its run has not ended" in done.err
        assert all(file.exists() for file in foreign)
