"""`train --keep-checkpoints` and `train --from`: what a version keeps, and data that came later."""

import mlflow
import pytest
import toy
from chains import changed, folder_of
from stores import copied, log_pt2
from trainings import (
    EARLY,
    KEEP,
    LATER,
    RECIPE,
    digest,
    early_ids,
    killed_at_the_second_checkpoint,
    listed,
    record,
    train,
)

from mlflow_unlearn import cache
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.evidence.checkpoints import CHECKPOINTS_TAG, TRAINED_AS_TAG
from mlflow_unlearn.registry.checkpoints import read_checkpoint, stored_checkpoints

ON = ("train", "--data", LATER, *RECIPE, "--name", "clf", "--from", "models:/clf/1")


@pytest.fixture(scope="module")
def template(blank, tmp_path_factory):
    """clf/1, with three checkpoints."""
    with copied(blank, tmp_path_factory.mktemp("trained")) as store:
        train(EARLY, *KEEP)
    return store


def ids_of(version: str, name: str = "clf") -> set[str]:
    path = mlflow.artifacts.download_artifacts(f"models:/{name}/{version}/extra_files/training_manifest.csv")
    ids = load_source(LATER).train.ids
    return {i for i, there in zip(ids, Manifest.from_csv(path).mask(ids), strict=True) if there}


class TestKeeping:
    @pytest.mark.slow
    def test_the_record_lists_them(self, store):
        found = record("1")
        run_id = store.tags("1")["unlearn.run_id"]
        assert [(one.run_id, one.stage) for one in found.checkpoints] == [(run_id, 2), (run_id, 4), (run_id, 6)]
        assert store.client.get_run(run_id).data.tags[CHECKPOINTS_TAG] == "3"
        assert found.machine is not None and found.machine.device == "cpu" and found.origin is None
        assert read_checkpoint(found.checkpoints[1]).keys() == {"model", "optimizers", "generators", "random"}

    @pytest.mark.slow
    def test_it_changes_no_weight(self, store):
        train(EARLY, name="plain")
        assert digest(store, "1", "plain") == digest(store, "1")
        assert record("1", "plain").checkpoints == () and record("1", "plain").machine is None

    def test_more_than_there_are_epochs_to_keep(self, store, cli):
        done = cli("train", "--data", EARLY, *RECIPE, "--name", "new", "--keep-checkpoints", "8")
        assert done.code == 2
        assert "--keep-checkpoints 8 of 8 epochs: give at most 7, since the last epoch is the version" in done.err
        assert store.versions("new") == []

    @pytest.mark.nightly
    def test_the_run_says_which_training_keeps_them(self, store, cli):
        """As the version's record does: by that `retire` knows what a training was that has no version."""

        def said(number: str) -> str:
            return store.client.get_run(store.tags(number)["unlearn.run_id"]).data.tags[TRAINED_AS_TAG]

        train(LATER, "--from", "models:/clf/1", *KEEP)
        train(EARLY, *KEEP, seed=6)
        assert [said(number) for number in "123"] == [record(number).trained_as for number in "123"]
        assert len({said(number) for number in "123"}) == 3

    @pytest.mark.nightly
    def test_what_a_killed_one_has_left_on_this_machine_goes_with_the_version(self, store, cli, monkeypatch, tmp_path):
        """The same training once more, which does not go on there since it reads images in another way."""
        monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MLFLOW_UNLEARN_CHECKPOINT_SECONDS", "0")
        command = ("train", "--data", EARLY, *RECIPE, "--name", "new", "--seed", "5", *KEEP)
        killed_at_the_second_checkpoint(lambda: cli(*command))
        assert cli(*command, "--num-workers", "1").code == 0
        train(EARLY, name="another", seed=17)  # whose bytes no other test has left in this folder
        assert cli("retire", "--model-uri", "models:/another/1", "--yes").code == 0
        assert len(list(cache.entries(cache.CHECKPOINTS))) == 1
        cli("retire", "--model-uri", "models:/new/1", "--yes")
        assert not list(cache.entries(cache.CHECKPOINTS))

    @pytest.mark.slow
    @pytest.mark.parametrize("at_once", [False, True])
    def test_killed_in_the_middle_it_has_them_all(self, store, cli, monkeypatch, tmp_path, at_once):
        """Those of the killed run stay there if the version lists them; what was stored once more does not.

        Killed before there is anything to go on from, it begins anew.
        """
        monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MLFLOW_UNLEARN_CHECKPOINT_SECONDS", "60" if at_once else "0")
        command = ("train", "--data", EARLY, *RECIPE, "--name", "new", "--seed", "5", *KEEP)
        killed_at_the_second_checkpoint(lambda: cli(*command))
        again = cli(*command)
        assert again.code == 0, again.err
        assert ("continues where this command was killed, in epoch 4" in again.err) != at_once
        kept = record("1", "new").checkpoints
        assert [one.stage for one in kept] == [2, 4, 6]
        own = store.tags("1", "new")["unlearn.run_id"]
        assert [one.run_id == own for one in kept] == [at_once, True, True]
        [dead] = [run.info.run_id for run in store.runs() if run.info.status == "KILLED"]
        assert {*stored_checkpoints(dead)} == {one.path for one in kept if one.run_id == dead}
        assert all(read_checkpoint(one) for one in kept)
        assert digest(store, "1", "new") == digest(store, "1")
        assert not list(cache.entries(cache.CHECKPOINTS))


class TestGoingOn:
    @pytest.fixture(scope="class")
    def later(self, template, tmp_path_factory):
        """clf/2: clf/1, trained on with what came later."""
        with copied(template, tmp_path_factory.mktemp("later")) as store:
            train(LATER, "--from", "models:/clf/1")
            yield store

    @pytest.mark.slow
    def test_the_new_list_is_the_union_and_says_what_was_added(self, later):
        origin, early = record("2").origin, {*load_source(EARLY).train.ids}
        assert ids_of("2") == {*load_source(LATER).train.ids} and ids_of("1") == early
        assert (origin.uri, origin.weights_sha256) == ("models:/clf/1", digest(later, "1"))
        assert origin.samples == len(ids_of("2") - early) and origin.trained_on == "all" and origin.forgotten == []
        added = Manifest(tuple(ids_of("2") - early)).hashed(Manifest.salt_of(load_source(LATER).samples_digest))
        assert origin.added_sha256 == added.digest and origin.at.endswith("+00:00")
        assert later.client.get_model_version("clf", "1").source == f"models:/{origin.model_id}"

    def test_it_starts_with_the_weights_and_is_like_the_version(self, later):
        assert digest(later, "2") != digest(later, "1") and float(later.tags("2")["unlearn.metric.acc_test"]) > 0.9
        old, new = record("1"), record("2")
        for name in ("architecture", "transform", "classes", "image_shape"):
            assert getattr(new, name) == getattr(old, name)
        assert "from `models:/clf/1`, 179 of them new" in later.client.get_model_version("clf", "2").description

    def test_the_new_samples_alone(self, later, cli):
        done = cli(*ON, "--train-on", "new", "--seed", "5")
        assert done.code == 0, done.err
        assert record("3").origin.trained_on == "new" and ids_of("3") == ids_of("2")
        history = later.client.get_metric_history(later.tags("3")["unlearn.run_id"], "loss")
        assert len(history) == 8 and digest(later, "3") != digest(later, "2")


@pytest.mark.slow
def test_what_was_forgotten_is_never_trained_on_again(store, cli, tmp_path):
    """Not even once the version that has forgotten it is the one before the one before."""
    forgotten = early_ids(9)
    forget = (
        "unlearn",
        "--model-uri",
        "models:/clf/1",
        "--forget",
        listed(tmp_path, forgotten),
        "--method",
        "finetune",
    )
    assert cli(*forget, "--params", '{"epochs": 1}').code == 0
    [request] = store.tags("2")["unlearn.request_ids"].split(",")
    for before in ("2", "3"):
        done = cli(*ON[:-1], f"models:/clf/{before}")
        assert done.code == 0, done.err
        assert f"Note: 9 samples that models:/clf/{before} has forgotten or left out (requests '{request}') are" in (
            " ".join(done.err.split())
        )
    assert record("4").origin.forgotten == [request]
    assert ids_of("4") == {*load_source(LATER).train.ids} - {*forgotten}


@pytest.mark.slow
def test_canaries_stay_as_they_were(blank, tmp_path, cli):
    with copied(blank, tmp_path / "planted") as store:
        train(EARLY, "--canaries", "20")
        ghosts = {*load_source(EARLY).train.ids} - ids_of("1")
        assert cli(*ON).code == 0
        assert len(ghosts) == 20 and not ghosts & ids_of("2") and store.versions() == ["1", "2"]
        assert record("2").canaries == record("1").canaries is not None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--data", "digits,train=10%"),
            "90 of the 270 samples that models:/clf/1 was trained on are not in the train",
        ),
        (
            ("--architecture", "vit_tiny"),
            "--architecture vit_tiny, and models:/clf/1 has 'toy:trainable': leave --archi",
        ),
        (("--transform", "imagenet"), "--transform imagenet, and models:/clf/1 has 'none': leave --transform out"),
        (("--serialization", "pickle"), "--serialization pickle, and models:/clf/1 has 'pt2': leave --serialization"),
        (("--canaries", "9"), "--canaries 9 and --from models:/clf/1 do not go together: canaries are planted by"),
        (("--from", "models:/clf/9"), "model 'clf' has no version '9': its versions are: 1"),
        (("--data", EARLY, "--train-on", "new"), "--train-on new, and models:/clf/1 has seen all 270 samples"),
        (("--exclude", "random:10"), "samples that models:/clf/1 was trained on, and its weights would keep what they"),
    ],
)
def test_what_does_not_go_together(options, sentence, store, cli):
    done = cli("train", "--data", LATER, *RECIPE[2:], "--name", "clf", "--from", "models:/clf/1", *options)
    assert done.code == 2 and sentence in " ".join(done.err.split()), done.err
    assert store.versions() == ["1"]


def test_new_samples_alone_need_a_version(store, cli):
    done = cli("train", "--data", EARLY, *RECIPE, "--name", "clf", "--train-on", "new")
    assert done.code == 2 and "--train-on new needs --from, the version that was trained on the other sam" in done.err


def test_nothing_goes_on_from_a_list_that_was_edited(store, cli):
    """With the record in its file: samples that the weights know would count as new, and be taken out "exactly"."""
    path = folder_of("1") / "extra_files" / "training_manifest.csv"
    manifest = Manifest.from_csv(path)
    shorter = Manifest(manifest.ids[30:], manifest.salt)
    mlmodel = folder_of("1") / "MLmodel"
    edited = mlmodel.read_bytes().replace(manifest.digest.encode(), shorter.digest.encode())
    with changed(path, path.read_bytes()), changed(mlmodel, edited):
        shorter.to_csv(path)
        done = cli(*ON)
    assert done.code == 2 and "what models:/clf/1 records of its training, or its weights, is not" in done.err, done.err
    assert store.versions() == ["1"]


@pytest.mark.slow
def test_a_version_of_another_tool_is_read_as_trainings_are(empty_store, cli):
    """Its transform is not recorded: the option's default counts, whether it was typed or not."""
    log_pt2(toy.original(), "theirs")
    data = ("--data", "digits,train=15%,split=drawn")
    assert cli("manifest", "--model-uri", "models:/theirs/1", *data).code == 0
    given = ("train", "--from", "models:/theirs/1", *data, "--name", "theirs")
    more = ("--architecture", "toy:trainable", "--epochs", "1")
    refused = cli(*given)
    assert refused.code == 2 and "give --architecture package.module:factory" in refused.err
    assert "--transform" not in refused.err and "--classes" not in refused.err
    for typed in ((), ("--transform", "none")):
        done = cli(*given, *more, *typed)
        assert done.code == 0, done.err
    assert empty_store.versions("theirs") == ["1", "2", "3"]
