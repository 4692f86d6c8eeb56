"""`train --ensemble` and what is done with its version: it is one like any other, and can be unlearned exactly."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from chains import changed, folder_of
from safetensors.torch import save_file
from sharding import SHARDED
from sklearn.datasets import load_digits
from stores import ENSEMBLE, copied
from trainings import csv_of_digits

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.placement import placements
from mlflow_unlearn.engine.architectures import build_model
from mlflow_unlearn.engine.ensemble import Ensemble
from mlflow_unlearn.evidence.record import Evidence
from mlflow_unlearn.registry.checkpoints import read_checkpoint
from mlflow_unlearn.registry.versions import Record

QUICK = '{"epochs": 1}'
EXACT = ("--method", "exact")


@pytest.fixture
def ensembles(ensemble_template, tmp_path):
    with copied(ensemble_template, tmp_path / "store") as store:
        yield store


def record_of(uri) -> Record:
    return Record.model_validate(mlflow.models.get_model_info(uri).metadata["mlflow_unlearn"])


def evidence_of(version) -> Evidence:
    return Evidence.model_validate(mlflow.artifacts.load_dict(f"models:/clf/{version}/evidence/evidence.json"))


def digest(store, version, name="clf"):
    return store.tags(version, name)["unlearn.weights_sha256"]


@pytest.mark.slow
def test_the_version_is_one_module_and_says_how_it_was_trained(ensembles):
    record = record_of("models:/clf/1")
    assert (record.shards.shards, record.shards.slices, record.shards.by) == (2, 3, "id")
    assert record.architecture == "ensemble:2:toy:trainable" and record.machine.torch == torch.__version__
    assert [(one.shard, one.stage) for one in record.checkpoints] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    module = mlflow.pytorch.load_model("models:/clf/1")
    images = np.float32(load_digits().images[:5, None] / 16)
    served = mlflow.pyfunc.load_model("models:/clf/1").predict(images)
    assert np.allclose(served, module(torch.from_numpy(images)).detach().numpy(), atol=1e-5)
    assert {name.partition(".")[0] for name in read_checkpoint(record.checkpoints[0])} <= {*"0123456789"}
    path = mlflow.artifacts.download_artifacts("models:/clf/1/extra_files/shards.csv")
    salt, header, *rows = open(path).read().splitlines()
    assert salt.startswith("# salt=") and header == "id,shard,slice"
    assert len(rows) == record.trained_on.samples and {row[64:] for row in rows} == {
        f",{shard},{part}" for shard in (0, 1) for part in (0, 1, 2)
    }
    assert "2 shards of 3 slices" in ensembles.client.get_model_version("clf", "1").description


@pytest.mark.nightly
def test_exact_and_again(ensembles, cli):
    """Two requests in a row: each result is what training without the samples gives, and says what it claims."""
    for version, seed in (("1", 3), ("2", 4)):
        uri = f"models:/clf/{version}"
        assert cli("request", "--model-uri", uri, "--forget", f"random:2,seed={seed}").code == 0
        done = cli("unlearn", "--model-uri", uri, "--method", "exact")
        assert done.code == 0, done.err
        said = " ".join(done.out.split()).partition("Exact: Every weight that was trained")[2]
        excluded = "- What recipe and seed were chosen by, while the samples were there."
        assert f"and the other shards never saw them. Not covered: {excluded}" in said
    requests = [evidence_of(version).request_ids[0] for version in "23"]
    gold = cli("train", *ENSEMBLE, "--name", "gold", "--exclude", requests[0])
    assert gold.code == 0, gold.err
    assert digest(ensembles, "2") == digest(ensembles, "1", "gold")
    evidence = evidence_of("2")
    assert evidence.exactness.kind == "exact" and evidence.limits.startswith("The weights come from training without")
    assert evidence.exactness.steps < evidence.exactness.steps_from_scratch
    assert evidence.exactness.checkpoints == len(record_of("models:/clf/2").checkpoints) > 0
    run = ensembles.client.get_run(evidence.run.id)
    assert "loss" in run.data.metrics and not {"shard", "stage"} & run.data.metrics.keys()
    review = cli("review", "--model-uri", "models:/clf/3")
    assert review.code == 0 and "trained without the samples" in review.out, review.out
    assert cli("promote", "--model-uri", "models:/clf/3").code == 0
    verified = cli("verify", "--model-uri", "models:/clf/3")
    assert verified.code == 0, verified.out
    report = mlflow.artifacts.load_text("models:/clf/3/evidence/report.html")
    card = mlflow.artifacts.load_text("models:/clf/3/evidence/model_card.md")
    assert "<strong>Exact.</strong>" in report and "**Exact:**" in card
    claim = evidence_of("3").exactness
    assert all(weights in report for weights in claim.untouched.values())
    assert f"{claim.steps:,} of {claim.steps_from_scratch:,} from scratch" in report and "**Not covered:**" in card


@pytest.mark.nightly
def test_the_seed_is_that_of_the_training(empty_store, cli):
    """Another one has no effect, which is said, and is not recorded."""
    assert cli("train", *SHARDED, "--seed", "7", "--augment", "crop-flip", "--name", "clf").code == 0
    unlearn = ("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:1,seed=3", *EXACT)
    for seed, said in (("5", True), ("0", False)):
        done = cli(*unlearn, "--seed", seed, "--format", "json")
        assert done.code == 0, done.err
        note = "Note: --seed 5 has no effect: exact takes the seed of the training, 7, which is what is recorded."
        assert (note in " ".join(done.err.split())) is said, done.err
        registered = json.loads(done.out)["result"]["registered"]
        assert (registered["provenance"]["seed"], registered["provenance"]["augment"]) == (7, "crop-flip")
        made = evidence_of(registered["version"]), record_of(registered["uri"])
        assert [one.provenance.seed for one in made] == [7, 7] and "has no effect" not in done.out
    assert len({digest(empty_store, version) for version in "23"}) == 1


@pytest.mark.nightly
def test_a_chain_has_the_threads_of_its_first_training(empty_store, cli):
    """Also without slices, where no checkpoint is kept; whatever the processes of later requests have."""
    train = ("train", *ENSEMBLE[:6], *ENSEMBLE[6:8], "--ensemble", "2")
    assert cli(*train, "--name", "clf").code == 0
    before = torch.get_num_threads()
    for version in "12":
        torch.set_num_threads(before + 1)
        done = cli("unlearn", "--model-uri", f"models:/clf/{version}", "--forget", f"random:1,seed={version}", *EXACT)
        torch.set_num_threads(before)
        assert done.code == 0 and "\nExact: " in done.out, done.out
    assert record_of("models:/clf/3").machine.threads == before == record_of("models:/clf/1").machine.threads


@pytest.mark.slow
def test_a_ladder_keeps_its_checkpoints_with_the_run_of_the_attempt(ensembles, cli, tmp_path):
    (tmp_path / "p.yaml").write_text(
        "membership: {uninformative: accept, accept: [indistinguishable, undecided]}\nrules: []\n"
    )
    done = cli(
        *("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:20,seed=1", "--until", "pass"),
        *("--policy", str(tmp_path / "p.yaml"), "--rungs", "exact", "--budget", "2"),
    )
    assert done.code == 0, done.err
    verified = cli("verify", "--model-uri", "models:/clf/2")
    assert verified.code == 0 and "none has seen what was forgotten" in verified.out, verified.out


@pytest.mark.nightly
def test_a_policy_may_require_it(ensembles, cli, tmp_path):
    (tmp_path / "exact.yaml").write_text("required: [exact]\n")
    for method, params in (("exact", ()), ("lotus", ("--params", QUICK))):
        uri = "models:/clf/1"
        done = cli("unlearn", "--model-uri", uri, "--forget", "random:20", "--method", method, *params)
        assert done.code == 0, done.err
    reviewed = [
        cli("review", "--model-uri", f"models:/clf/{v}", "--policy", str(tmp_path / "exact.yaml")).code for v in "23"
    ]
    assert reviewed == [0, 3]


@pytest.mark.slow
def test_another_method_ends_it_in_the_record_and_in_words(ensembles, cli):
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:20", "--params", QUICK)
    assert done.code == 0, done.err
    assert "lotus has changed all of its weights and has ended that" in " ".join(done.out.split())
    record = record_of("models:/clf/2")
    assert record.shards.ended_by == "lotus" and record.checkpoints == ()
    with pytest.raises(mlflow.MlflowException):
        mlflow.artifacts.load_text("models:/clf/2/extra_files/shards.csv")  # it lists what is forgotten now
    assert evidence_of("2").exactness.kind == "approximate"
    again = cli("unlearn", "--model-uri", "models:/clf/2", "--forget", "random:5,seed=8", "--method", "exact")
    assert again.code == 2 and "no other method has changed" in again.err
    assert ensembles.versions() == ["1", "2"]


@pytest.mark.nightly
def test_retraining_trains_its_shards(ensembles, cli):
    """So that a gold standard differs from the version by the samples alone."""
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", "random:20").code == 0
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--method", "retrain")
    assert done.code == 0, done.err
    [request_id] = ensembles.requests()
    assert cli("train", *ENSEMBLE, "--name", "gold", "--exclude", request_id).code == 0
    assert digest(ensembles, "2") == digest(ensembles, "1", "gold")
    assert evidence_of("2").exactness.kind == "exact" and record_of("models:/clf/2").shards.ended_by is None


@pytest.mark.nightly
def test_retraining_makes_what_another_method_has_ended_exact_again(ensembles, cli, tmp_path):
    """Nothing is left of the weights that were changed, and the record says how the shards were trained."""
    ids = load_source("digits,train=30%").train.ids
    for number, chosen, more in (
        (1, ids[:20], ("--method", "finetune", "--params", QUICK)),
        (2, ids[20:25], ("--method", "retrain")),
    ):
        (tmp_path / "ids.txt").write_text("\n".join(chosen))
        uri = f"models:/clf/{number}"
        done = cli("unlearn", "--model-uri", uri, "--forget", str(tmp_path / "ids.txt"), *more)
        assert done.code == 0, done.err
    (tmp_path / "ids.txt").write_text("\n".join(ids[:25]))
    assert cli("train", *ENSEMBLE, "--name", "gold", "--exclude", str(tmp_path / "ids.txt")).code == 0
    assert digest(ensembles, "3") == digest(ensembles, "1", "gold")
    assert evidence_of("3").exactness.kind == "exact" and record_of("models:/clf/3").shards.ended_by is None
    verified = cli("verify", "--model-uri", "models:/clf/3", "--recompute", "true")
    assert verified.code == 0 and "from scratch" in verified.out, verified.out
    more = cli("unlearn", "--model-uri", "models:/clf/3", "--forget", "random:1", "--method", "exact")
    assert more.code == 0 and evidence_of("4").exactness.kind == "exact", more.err


@pytest.mark.nightly
def test_it_is_compared_like_any_other(ensembles, cli):
    done = cli(
        *("compare", "--model-uri", "models:/clf/1", "--forget", "random:20", "--methods", "exact,finetune"),
        *("--seeds", "1", "--params", '{"finetune": {"epochs": 1}}'),
    )
    assert done.code == 0, done.err
    assert "exact" in done.out and "failed" not in done.err


@pytest.mark.slow
def test_groups_lie_together(empty_store, cli, tmp_path):
    """A subject's samples lie in one slice of one shard, so that a request of one person touches one sub-model."""
    folder = tmp_path / "images"
    source = csv_of_digits(folder)
    options = ("--architecture", "toy:trainable", "--epochs", "2", "--batch-size", "16", "--transform", "none")
    done = cli(
        "train", "--data", source, "--name", "clf", *options, "--ensemble", "2", "--slices", "2", "--group", "subject"
    )
    assert done.code == 0, done.err
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", "group:subject=s7").code == 0
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--method", "exact", "--format", "json")
    assert done.code == 0, done.err
    placed = placements(["s7"], 2, 2)
    assert evidence_of("2").exactness.retrained == {str(placed.shard[0]): int(placed.slice_[0])}
    few = cli("train", "--data", source, "--name", "x", *options, "--ensemble", "40", "--group", "subject")
    assert few.code == 2 and "--ensemble 40 is more than there are values in the column 'subject' (12)" in few.err
    none = cli("train", "--data", source, "--name", "x", *options, "--ensemble", "2", "--group", "subjekt")
    assert none.code == 2 and "did you mean 'subject'" in none.err


@pytest.mark.nightly
def test_what_has_left_the_source_is_taken_out_as_well(empty_store, cli, tmp_path):
    """Else a shard would know samples that the new version's list does not have."""
    source = csv_of_digits(tmp_path / "images")
    options = ("--data", source, "--architecture", "toy:trainable", "--epochs", "2", "--batch-size", "16")
    train = ("train", *options, "--transform", "none", "--ensemble", "2", "--slices", "2")
    assert cli(*train, "--name", "clf").code == 0
    ids = load_source(source).train.ids
    shard = placements(ids, 2, 2).shard
    forgotten, lost = (next(i for i, own in zip(ids, shard, strict=True) if own == number) for number in (0, 1))
    (tmp_path / "ids.txt").write_text(forgotten)
    table = tmp_path / "images" / "list.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if not line.startswith(f"{lost},")))
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", str(tmp_path / "ids.txt"), *EXACT)
    assert done.code == 0 and "1 samples of these shards have left the data source" in done.err, done.err
    assert cli(*train, "--name", "gold", "--exclude", str(tmp_path / "ids.txt")).code == 0
    assert digest(empty_store, "2") == digest(empty_store, "1", "gold")


class TestFrozenBackbone:
    OPTIONS = (*ENSEMBLE[:2], "--architecture", "toy:trainable", "--epochs", "8", "--batch-size", "16")

    @pytest.mark.nightly
    def test_weights_of_a_file(self, empty_store, cli, tmp_path):
        """The layers before the head are those of the file, run once; the claim says that it is not about them."""
        torch.manual_seed(0)
        given = build_model("toy:trainable", 5, (1, 8, 8)).state_dict()
        save_file(given, tmp_path / "w.safetensors")
        train = (*self.OPTIONS, "--ensemble", "2", "--slices", "2", "--weights", str(tmp_path / "w.safetensors"))
        done = cli("train", *train, "--name", "clf")
        assert done.code == 0, done.err
        record = record_of("models:/clf/1")
        assert record.shards.backbone == str(tmp_path / "w.safetensors")
        assert record.architecture.startswith("ensemble:2,prefix=")
        module = mlflow.pytorch.load_model("models:/clf/1").state_dict()
        first = next(name for name in given if name.endswith("weight"))
        assert torch.equal(module[f"frozen.{first}"], given[first])
        assert {one.stage for one in record.checkpoints} == {1}
        for name in (name for name in given if f"frozen.{name}" not in module):
            assert not any(torch.equal(module[f"members.{shard}.{name}"], given[name]) for shard in (0, 1))
        assert cli("request", "--model-uri", "models:/clf/1", "--forget", "random:1").code == 0
        done = cli("unlearn", "--model-uri", "models:/clf/1", "--method", "exact")
        assert done.code == 0 and "outside of this claim" in " ".join(done.out.split()), done.err
        [request_id] = empty_store.requests()
        assert cli("train", *train, "--name", "gold", "--exclude", request_id).code == 0
        assert digest(empty_store, "2") == digest(empty_store, "1", "gold")
        assert record_of("models:/clf/2").shards.backbone_sha256 == record.shards.backbone_sha256

    @pytest.mark.slow
    def test_random_features_and_a_named_module(self, empty_store, cli):
        done = cli("train", *self.OPTIONS, "--ensemble", "2", "--prefix", "auto", "--name", "clf")
        assert done.code == 0, done.err
        assert record_of("models:/clf/1").shards.backbone is None
        done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:1", "--method", "exact")
        assert done.code == 0 and "frozen at random weights, which have learned nothing" in " ".join(
            done.out.split()
        ), done.err

    def test_weights_that_have_seen_the_samples(self, store, cli):
        done = cli("train", *self.OPTIONS, "--ensemble", "2", "--weights", "models:/clf/1", "--name", "x")
        assert done.code == 2 and "was itself trained on" in done.err and store.versions("x") == []

    @pytest.mark.parametrize("how", ["is not there", "is [2, 2] and should be ["])
    def test_weights_of_another_network(self, empty_store, cli, tmp_path, how):
        given = build_model("toy:trainable", 10, (1, 8, 8)).state_dict()
        first = next(iter(given))
        given = (
            {**given, first: torch.zeros(2, 2)}
            if how.startswith("is [")
            else {n: given[n] for n in given if n != first}
        )
        save_file(given, tmp_path / "other.safetensors")
        weights = ("--weights", str(tmp_path / "other.safetensors"))
        done = cli("train", *self.OPTIONS, "--ensemble", "2", *weights, "--name", "x")
        assert done.code == 2 and "other.safetensors' do not fit ensemble:2,prefix=" in done.err, done.err
        assert f"for images [1, 8, 8], {first} {how}" in done.err and empty_store.versions("x") == []

    @pytest.mark.nightly
    def test_a_backbone_of_timm_with_its_own_transform(self, empty_store, cli):
        """The assembled module is not timm's, and its images are read as timm's are."""
        backbone = ("--architecture", "timm:resnet10t", "--transform", "timm", "--prefix", "auto")
        train = ("--data", "digits,train=15%", *backbone, "--epochs", "4", "--ensemble", "2", "--name", "clf")
        assert cli("train", *train).code == 0
        request = ("--model-uri", "models:/clf/1", "--forget", "random:10")
        done = cli("unlearn", *request, "--method", "exact", "--force")
        assert done.code == 0, done.err
        done = cli("evaluate", "--model-uri", "models:/clf/2", "--forget", "random:10", "--force")
        assert done.code == 0, done.err

    @pytest.mark.parametrize("name", ["none.pt", "text.pt", "list.pt", "text.safetensors"])
    def test_weights_that_cannot_be_read(self, empty_store, cli, tmp_path, name):
        (tmp_path / "text.pt").write_text("text")
        (tmp_path / "text.safetensors").write_text("text")
        torch.save([1], tmp_path / "list.pt")
        done = cli("train", *self.OPTIONS, "--ensemble", "2", "--weights", str(tmp_path / name), "--name", "x")
        assert done.code == 2 and repr(str(tmp_path / name)) in done.err and empty_store.versions("x") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--slices", "4"), "--slices 4 has no effect on one model: give --ensemble too"),
        (("--group", "subject"), "--group subject has no effect on one model"),
        (("--weights", "w.pt"), "--weights w.pt has no effect on one model"),
        (
            ("--ensemble", "2", "--prefix", "fc", "--augment", "crop-flip"),
            "--augment crop-flip contradicts frozen layers",
        ),
        (("--ensemble", "2", "--keep-checkpoints", "2"), "--keep-checkpoints and --ensemble contradict each other"),
        (
            ("--ensemble", "2", "--slices", "8", "--epochs", "4"),
            "--slices 8 needs more than --epochs 4, since each stage takes one at least: give at most 7 slices",
        ),
        (("--ensemble", "2", "--from", "runs:/0/model"), "--from and --ensemble contradict each other"),
        (("--ensemble", "2", "--prefix", "nowhere"), "has no module 'nowhere' to cut before"),
        (("--ensemble", "60"), "of 60 would have no sample of the class"),
        (("--ensemble", "1000"), "--ensemble 1000 is more than there are samples (270)"),
        (("--ensemble", "2", "--group", "subject"), "no column 'subject' to shard by: it has no group columns"),
    ],
)
def test_bad_input(empty_store, cli, options, sentence):
    done = cli("train", "--data", "digits,train=15%", "--architecture", "toy:trainable", "--name", "x", *options)
    assert done.code == 2 and sentence in done.err, done.err
    assert "Traceback" not in done.err and empty_store.versions("x") == []


@pytest.mark.nightly
def test_methods_that_split_a_model_leave_an_ensemble_alone_or_refuse_it(ensembles, cli):
    """`compare` takes all methods by default."""
    done = cli("compare", "--model-uri", "models:/clf/1", "--forget", "random:10", "--seeds", "1")
    assert done.code == 0, done.err
    assert "exact" in done.out and "Traceback" not in done.err


class TestRefused:
    @pytest.mark.slow
    def test_a_prefix(self, ensembles, cli):
        exact = ("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:1", "--method", "exact")
        done = cli(*exact, "--prefix", "auto")
        assert done.code == 2 and "exact runs the training of all layers again: use --prefix none" in done.err

    def test_tuning(self, ensembles, cli):
        done = cli("tune", "--model-uri", "models:/clf/1", "--forget", "random:10", "--methods", "exact")
        assert done.code == 2 and "exact has nothing to tune: use unlearn" in done.err

    def test_going_back_on_checkpoints_of_one_model(self, ensembles, cli):
        done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:1", "--method", "rewind")
        assert done.code == 2 and "models:/clf/1 is an ensemble, whose checkpoints are for --method exact" in done.err

    def test_one_model(self, store, cli):
        done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:1", "--method", "exact")
        assert done.code == 2 and "this version is one model: train one by `train` with --ensemble 4" in done.err

    @pytest.mark.slow
    def test_a_checkpoint_that_was_changed(self, ensembles, cli):
        """Some of its bytes; what is lost is gone back behind only if that is asked for."""
        record = record_of("models:/clf/1")
        lost = [one for one in record.checkpoints if one.stage == 2]
        kept = {}
        for one in lost:
            path = ensembles.client.get_run(one.run_id).info.artifact_uri.removeprefix("file://") + f"/{one.path}"
            kept[path] = open(path, "rb").read()
            open(path, "wb").write(kept[path][:-1] + b"x")
        try:
            request = ("unlearn", "--model-uri", "models:/clf/1", "--forget", late_sample(), "--method", "exact")
            done = cli(*request)
            assert done.code == 2 and "was changed since it was written: restore it, or go back further" in done.err
            assert ensembles.versions() == ["1"]
            done = cli(*request, "--params", json.dumps({"fall_back": True}))
            assert done.code == 0, done.err
            assert list(evidence_of("2").exactness.retrained.values()) == [1]
            [warning] = evidence_of("2").learning.warnings
            assert warning.endswith("it was passed over for an earlier one, since fall_back = true")
            assert f"Warning: {warning}" in " ".join(done.err.split()) and "stage-2.pt" in warning
        finally:
            for path, content in kept.items():
                open(path, "wb").write(content)

    def test_groups_that_are_others_now(self, ensembles, cli, monkeypatch):
        """The list beside the weights is held against the hashes."""
        changed = "mlflow_unlearn.session.ensemble.placements"
        monkeypatch.setattr(changed, lambda keys, shards, slices: placements([f"{k}x" for k in keys], shards, slices))
        done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:1", "--method", "exact")
        assert done.code == 2 and "is not the one that their hash gives" in done.err

    def test_a_list_of_shards_without_one_sample(self, ensembles, cli):
        """Which would count as never seen."""
        path = folder_of("1") / "extra_files" / "shards.csv"
        lines = path.read_text().splitlines()
        with changed(path, "\n".join(lines[:-1]).encode()):
            done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:1", "--method", "exact")
        assert done.code == 2 and "extra_files/shards.csv of models:/clf/1 does not list what that was" in done.err
        assert ensembles.versions() == ["1"]

    def test_a_whole_shard(self, ensembles, cli, tmp_path):
        ids = load_source(ENSEMBLE[1]).train.ids
        gone = [i for i, shard in zip(ids, placements(ids, 2, 3).shard, strict=True) if shard == 0]
        (tmp_path / "ids.txt").write_text("\n".join(gone))
        done = cli(
            "unlearn", "--model-uri", "models:/clf/1", "--forget", str(tmp_path / "ids.txt"), "--method", "exact"
        )
        assert done.code == 2 and "shard 0 of 2 would have no sample: retrain without shards" in done.err
        assert ensembles.versions() == ["1"]

    def test_hyperparameters_of_its_own(self, ensembles, cli):
        done = cli(
            *("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:1", "--method", "exact"),
            *("--params", '{"epochs": 3}'),
        )
        assert done.code == 2 and "unknown hyperparameter 'epochs' of exact" in done.err


def late_sample() -> str:
    """A spec of samples of the last slice alone."""
    ids = load_source(ENSEMBLE[1]).train.ids
    chosen = [i for i, part in zip(ids, placements(ids, 2, 3).slice_, strict=True) if part == 2][:1]
    Path("late.txt").write_text("\n".join(chosen))
    return "late.txt"


@pytest.mark.slow
def test_a_class_is_forgotten_in_every_shard(ensembles, cli):
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", "class:7", "--method", "exact")
    assert done.code == 0, done.err
    assert set(evidence_of("2").exactness.retrained) == {"0", "1"}
    assert isinstance(build_model(record_of("models:/clf/2").architecture, 10, (1, 8, 8)), Ensemble)
