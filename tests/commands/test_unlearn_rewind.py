"""`unlearn --method rewind`: from a checkpoint, from the version before, from random weights."""

import json

import mlflow
import pytest
from chains import LENIENT
from stores import copied, shell
from trainings import (
    EARLY,
    KEEP,
    LATER,
    checkpoint_file,
    csv_of_digits,
    digest,
    early_ids,
    killed_at_the_second_checkpoint,
    late_ids,
    listed,
    record,
    train,
)

from mlflow_unlearn import config
from mlflow_unlearn.commands.unlearn import unlearn
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import TRAINED_AS_TAG
from mlflow_unlearn.registry.checkpoints import read_checkpoint, stored_checkpoints


@pytest.fixture(scope="module")
def template(blank, tmp_path_factory):
    """clf/1 with three checkpoints, and clf/2, which went on from it with what came later, with three more."""
    with copied(blank, tmp_path_factory.mktemp("trained")) as store:
        train(EARLY, *KEEP)
        train(LATER, "--from", "models:/clf/1", *KEEP)
    return store


@pytest.fixture
def rewind(cli, tmp_path):
    def run(version: str, ids: list[str], *more: object, **params: object):
        on = ("unlearn", "--model-uri", f"models:/clf/{version}", "--forget", listed(tmp_path, ids))
        return cli(*on, "--method", "rewind", "--params", json.dumps({"share": 0.25, **params}), *more)

    return run


@pytest.fixture
def lost(template):
    """Changes a stored checkpoint inside the test alone, since the template's files are shared."""
    changed = {}

    def lose(kept, content: bytes | None) -> None:
        file = checkpoint_file(kept)
        changed[file] = file.read_bytes()
        file.unlink() if content is None else file.write_bytes(content)

    yield lose
    for file, before in changed.items():
        file.write_bytes(before)


def exactness(store, version: str) -> dict:
    """Of the version's evidence."""
    run_id = store.tags(version)["unlearn.run_id"]
    return mlflow.artifacts.load_dict(f"runs:/{run_id}/evidence/evidence.json")["exactness"]


def said(done) -> str:
    return " ".join(f"{done.err} {done.out}".split())


@pytest.mark.nightly
def test_from_a_request_to_a_review_at_three_shares(store, cli):
    (store.folder / "lenient.yaml").write_text(LENIENT)
    filed = cli("request", "--model-uri", "models:/clf/1", "--forget", "random:15%,seed=1")
    assert filed.code == 0, filed.err
    [request] = store.requests("1")
    epochs = {}
    for number, share in enumerate((0.25, 0.6, 1.0), 3):
        unlearn = ("unlearn", "--model-uri", "models:/clf/1", "--forget", f"request:{request}", "--method", "rewind")
        done = cli(*unlearn, "--params", json.dumps({"share": share}))
        assert done.code == 0, done.err
        run = store.client.get_run(store.tags(str(number))["unlearn.run_id"])
        epochs[share] = run.data.metrics["rewound_to"]
        assert len(store.client.get_metric_history(run.info.run_id, "loss")) == 8 - epochs[share]
        assert cli("review", "--model-uri", f"models:/clf/{number}", "--policy", "lenient.yaml").code == 0
        assert cli("verify", "--model-uri", f"models:/clf/{number}").code == 0
    assert epochs == {0.25: 6, 0.6: 2, 1.0: 0}
    assert store.requests("1")[request][0] == "done"


@pytest.mark.slow
def test_the_last_epochs_again_are_approximate(store, rewind):
    done = rewind("1", early_ids(20))
    assert done.code == 0, done.err
    assert (
        "Approximate: The last 2 of 8 epochs were run again on what is retained alone, from the checkpoint after epoch "
        "6, which has seen 20 of the forgotten samples."
    ) in said(done)
    new = record("3")
    assert new.provenance.method == "rewind" and new.provenance.augment == "none"
    assert new.provenance.params["epochs"] == 8 and new.provenance.params["batch_size"] == 32
    assert new.machine == record("1").machine and new.origin is None
    claimed = exactness(store, "3")
    assert claimed["kind"] == "approximate" and "The last 2 of 8 epochs" in claimed["covers"]
    assert (claimed["steps"], claimed["steps_from_scratch"]) == (2 * 8, 8 * 8)  # of 250 samples, 32 a step


@pytest.mark.slow
def test_a_new_version_keeps_its_own_checkpoints_alone_and_is_rewound_by_them(store, rewind):
    """Also when the version that it came from is gone."""
    assert rewind("1", early_ids(20), share=0.5).code == 0
    kept = record("3").checkpoints
    own = store.tags("3")["unlearn.run_id"]
    assert [(one.run_id, one.stage) for one in kept] == [(own, 5), (own, 6), (own, 7)]
    store.client.delete_model_version("clf", "1")
    done = rewind("3", early_ids(30)[20:], share=0.3)
    assert done.code == 0 and "The last 3 of 8 epochs" in said(done) and "has seen 10 of the forgotten" in said(done)
    assert [one.stage for one in record("4").checkpoints] == [6, 7]


@pytest.mark.slow
def test_all_epochs_again_are_exact_and_the_bits_of_a_training_without(store, rewind, tmp_path):
    ids = early_ids(20)
    done = rewind("1", ids, share=1.0)
    assert done.code == 0 and "Exact: The model was trained anew from random weights on what is retained" in said(done)
    train(EARLY, "--exclude", listed(tmp_path, ids), name="gold")
    assert digest(store, "3") == digest(store, "1", "gold")
    assert [one.stage for one in record("3").checkpoints] == [2, 4, 6]
    assert exactness(store, "3")["kind"] == "exact"


@pytest.mark.nightly
def test_twice_has_the_seed_of_the_training(store, rewind, tmp_path):
    first, second = early_ids(20), early_ids(30)[20:]
    assert rewind("1", first, share=1.0).code == 0 and rewind("3", second, share=1.0).code == 0
    train(EARLY, "--exclude", listed(tmp_path, early_ids(30)), name="gold")
    assert digest(store, "4") == digest(store, "1", "gold")


@pytest.mark.slow
def test_another_recipe_is_said(store, rewind):
    done = rewind("1", early_ids(20), share=1.0, lr=0.02, sigma=0.001)
    assert done.code == 0 and "not quite the recorded one: lr 0.02 and not 0." in said(done)
    assert "noise of standard deviation 0.001 on each weight" in exactness(store, "3")["excludes"][-1]


@pytest.mark.nightly
@pytest.mark.parametrize("train_on", ["all", pytest.param("new", marks=pytest.mark.slow)])
def test_late_samples_alone_are_exact_and_the_bits_of_a_training_without(train_on, store, rewind, tmp_path):
    version, ids = "2", late_ids(20)
    if train_on == "new":
        train(LATER, "--from", "models:/clf/1", "--train-on", "new")
        version = "3"
    done = rewind(version, ids)
    assert done.code == 0, done.err
    assert "Exact: The training was run again from models:/clf/1, which has seen none of the forgotten" in said(done)
    train(LATER, "--from", "models:/clf/1", "--train-on", train_on, "--exclude", listed(tmp_path, ids), name="gold")
    new, gold = record(str(int(version) + 1) if train_on == "new" else "3"), record("1", "gold")
    assert digest(store, "4" if train_on == "new" else "3") == digest(store, "1", "gold")
    assert new.origin == gold.origin.model_copy(update={"at": new.origin.at})
    assert len(new.checkpoints) == (3 if train_on == "all" else 0)


@pytest.mark.slow
def test_one_early_sample_among_late_ones_is_approximate(store, rewind):
    done = rewind("2", [*late_ids(20), *early_ids(1)], share=0.3)
    assert done.code == 0 and "Approximate: The last 4 of 8 epochs" in said(done) and "has seen 21" in said(done)
    assert record("3").origin is None


@pytest.mark.nightly
def test_a_rewound_version_is_rewound_to_the_version_before_again(store, rewind):
    assert rewind("2", late_ids(20)).code == 0
    done = rewind("3", late_ids(25)[20:])
    assert done.code == 0 and "Exact: The training was run again from models:/clf/1" in said(done)
    assert record("4").origin.samples == record("2").origin.samples - 25


@pytest.mark.slow
def test_the_run_names_its_training_also_where_samples_have_left_the_source(empty_store, cli, tmp_path):
    """What the weights know of them is in the new version's list, and `retire` looks for a training with that list."""
    data, table = csv_of_digits(tmp_path / "images"), tmp_path / "images" / "list.csv"
    toy = ("--architecture", "toy:of_any_size", "--transform", "none", "--batch-size", "16", "--epochs", "5")
    assert cli("train", "--data", data, "--name", "clf", *toy, *KEEP).code == 0
    table.write_text("\n".join(line for line in table.read_text().splitlines() if not line.startswith("30.png")))
    on = ("unlearn", "--model-uri", "models:/clf/1", "--forget", listed(tmp_path, ["40.png"]), "--method", "rewind")
    done = cli(*on, "--params", "share=0.5")
    assert done.code == 0 and "Approximate:" in done.out, done.err
    tag = mlflow.get_run(empty_store.tags("2")["unlearn.run_id"]).data.tags[TRAINED_AS_TAG]
    assert record("2").trained_as in tag.split() and record("1").trained_as in tag.split()


@pytest.mark.nightly
def test_what_the_version_before_was_made_to_forget_is_doubtful(store, rewind, cli, tmp_path):
    """Its own list no longer has it, however little of it was forgotten."""
    sham = ("unlearn", "--model-uri", "models:/clf/1", "--forget", listed(tmp_path, early_ids(20)))
    assert cli(*sham, "--method", "finetune", "--params", json.dumps({"epochs": 1})).code == 0
    train(LATER, "--from", "models:/clf/3", *KEEP)
    done = rewind("4", late_ids(5))
    assert done.code == 0, done.err
    claim = exactness(store, "5")
    assert claim["kind"] == "approximate"
    assert "What models:/clf/3 was made to forget, by finetune, may still show in it." in claim["excludes"]


@pytest.mark.slow
def test_a_seed_of_its_own_has_no_effect_but_on_noise(store, rewind):
    done = rewind("1", early_ids(20), "--seed", "8")
    assert "Note: --seed 8 has no effect: rewind takes the seed of the training, 5, which is what" in said(done)
    assert record("3").provenance.seed == 5
    assert "has no effect" not in said(rewind("1", early_ids(20), "--seed", "8", sigma=0.001))


class TestLost:
    @pytest.mark.slow
    @pytest.mark.parametrize(("content", "what"), [(None, "cannot be read ("), (b"PK", "was changed since it was wri")])
    def test_a_checkpoint_is_refused(self, content, what, store, rewind, lost):
        lost(record("1").checkpoints[2], content)
        before = store.versions()
        done = rewind("1", early_ids(20))
        assert done.code == 2 and store.versions() == before
        assert "the checkpoint checkpoints/shard-0-stage-6.pt of run" in said(done) and what in said(done)
        assert "give params with fall_back = true to go back to the checkpoint after epoch 4 instead" in said(done)

    @pytest.mark.slow
    def test_the_one_before_it_if_that_is_asked_for(self, store, rewind, lost):
        lost(record("1").checkpoints[2], b"PK")
        done = rewind("1", early_ids(20), fall_back=True)
        assert done.code == 0 and "The last 4 of 8 epochs" in said(done)
        passed = "was changed since it was written: it was passed over for an earlier one, since fall_back = true"
        assert passed in said(done) and passed in store.tags("3")["unlearn.warning"]

    @pytest.mark.slow
    def test_the_version_before(self, store, rewind):
        store.client.delete_model_version("clf", "1")
        done = rewind("2", late_ids(20))
        assert done.code == 2
        assert "the training of models:/clf/2 went on from models:/clf/1, which is lost (model 'clf' has no" in said(
            done
        )
        assert "fall_back = true to go back to the checkpoint after epoch 6 instead" in said(done)
        done = rewind("2", late_ids(20), fall_back=True)
        assert done.code == 0 and "Approximate: The last 2 of 8 epochs" in said(done)


@pytest.mark.slow
def test_killed_and_started_again_it_leaves_nothing_that_no_version_lists(store, rewind, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_UNLEARN_CHECKPOINT_SECONDS", "0")
    killed_at_the_second_checkpoint(lambda: rewind("1", early_ids(20), share=1))
    again = rewind("1", early_ids(20), share=1)
    assert again.code == 0 and "continues where this command was killed" in again.err
    kept, own = record("3").checkpoints, store.tags("3")["unlearn.run_id"]
    [dead] = [run.info.run_id for run in store.runs() if run.info.status == "KILLED"]
    assert [one.run_id for one in kept] == [dead, own, own]
    assert [*stored_checkpoints(dead)] == [kept[0].path]
    for run_id in (dead, own):
        assert mlflow.get_run(run_id).data.tags[TRAINED_AS_TAG].split() == sorted(
            [record("3").trained_as, record("1").trained_as]
        )


@pytest.mark.nightly
def test_another_processor_is_exact_up_to_numerics(store, tmp_path):
    """Without the vector instructions that the training has used."""
    unlearn = ("unlearn", "--model-uri", "models:/clf/1", "--forget", listed(tmp_path, early_ids(20)))
    params = ("--method", "rewind", "--params", '{"share": 1}')
    done = shell(*unlearn, *params, env={"ATEN_CPU_CAPABILITY": "default"})
    assert done.returncode == 0, done.stderr
    assert "Exact up to numerics: The model was trained anew" in " ".join(done.stdout.split())


class TestRefusals:
    @pytest.fixture
    def plain(self, store, cli):
        done = cli(
            "unlearn", "--model-uri", "models:/clf/1", "--forget", "random:20", "--method", "finetune",
            *("--params", '{"epochs": 1}'),
        )  # fmt: skip
        assert done.code == 0
        return store

    @pytest.mark.slow
    def test_a_version_that_keeps_nothing(self, plain, cli):
        on = ("--model-uri", "models:/clf/3", "--forget", "random:20")
        tune = ("tune", *on, "--n-trials", "1", "--storage", f"sqlite:///{plain.folder}/optuna.db")
        for command in (
            ("unlearn", *on, "--method", "rewind"),
            ("compare", *on, "--methods", "finetune,rewind"),
            (*tune, "--methods", "rewind"),
        ):
            done = cli(*command)
            assert done.code == 2, command
            assert (
                "rewind cannot be used, since models:/clf/3 keeps no checkpoints of its training: `train` does with "
                "--keep-checkpoints or --from"
            ) in said(done)
        assert plain.versions() == ["1", "2", "3"] and not plain.requests("3")

    def test_several_processes(self, store):
        options = config.Unlearn(model_uri="models:/clf/1", forget="random:1", method="rewind", processes=2)
        with pytest.raises(UnlearnError, match="rewind runs a training again in one process: leave processes= out"):
            unlearn(options)

    def test_a_frozen_prefix(self, store, rewind):
        done = rewind("1", early_ids(20), "--prefix", "6")
        assert done.code == 2 and "rewind runs the training of all layers again: use --prefix none" in said(done)
        assert not store.requests("1")


@pytest.mark.slow
def test_compare_runs_it_beside_others(store, cli):
    compare = (
        "compare",
        "--model-uri",
        "models:/clf/1",
        "--forget",
        "random:15%",
        "--methods",
        "rewind",
        "--seeds",
        "1",
    )
    done = cli(*compare, "--params", '{"rewind": {"share": 0.5}}')
    assert done.code == 0 and "rewind" in done.out, done.err
    assert "failed" not in done.err


@pytest.mark.nightly
def test_a_plan_says_what_the_remaining_epochs_take(store, rewind):
    done = rewind("2", late_ids(20), "--plan", "true")
    assert done.code == 0 and "rewind" in done.out and store.versions() == ["1", "2"], done.err
    assert "retraining takes the recipe of that training alone, from random weights" in said(done)


def test_what_was_kept_can_be_read_after_all(store):
    assert all(read_checkpoint(one) for version in "12" for one in record(version).checkpoints)
