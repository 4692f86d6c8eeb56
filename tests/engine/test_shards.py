"""Stages of an ensemble's training: what they cost, and that a sample can be taken out again bit for bit."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset
from toy import CPU, Counting, digits, net

from mlflow_unlearn.data.placement import Placement, placements
from mlflow_unlearn.engine.architectures import build_model, weights_digest
from mlflow_unlearn.engine.ensemble import Ensemble
from mlflow_unlearn.engine.frozen_prefix import split_at
from mlflow_unlearn.engine.hardware import machine_of
from mlflow_unlearn.engine.shards import (
    Cost,
    ShardedPast,
    ShardTrainer,
    cost,
    frozen_features,
    initial_model,
    stage_epochs,
    stage_seed,
    touched,
    train_anew,
)
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import Kept, Shards
from mlflow_unlearn.methods.retrain import Training

DATA = digits(0, 300)
SHARDS = Shards(shards=2, slices=3, params={"epochs": 4, "batch_size": 16, "lr": 0.05}, seed=5)
ARCHITECTURE = "toy:trainable"
PLACED = placements([f"digit-{n}" for n in range(300)], 2, 3)
CLASSES = tuple("0123456789")


class Trained:
    """The ensemble of some of the samples, and the checkpoints that its training has kept."""

    def __init__(self, rows=None, shards=SHARDS):
        rows = np.arange(300) if rows is None else rows
        self.states, self.shards = {}, shards
        trainer = ShardTrainer(shards, Training, CPU, self.keep)
        data, placed = Subset(DATA, rows.tolist()), PLACED.subset(rows)
        members = [initial_model(ARCHITECTURE, 10, (1, 8, 8), shards.seed, shard) for shard in range(2)]
        members = [trainer.train(shard, member, data, placed) for shard, member in enumerate(members)]
        self.model, self.trainer = Ensemble(members).eval(), trainer

    def keep(self, state, shard, stage):
        kept = Kept(run_id="run", path=Kept.path_of(shard, stage), sha256="0", shard=shard, stage=stage)
        self.states[kept.path] = {name: value.clone() for name, value in state.items()}
        return kept

    def past(self, forget, **more):
        retain = np.setdiff1d(np.arange(300), forget)
        return ShardedPast(
            shards=self.shards,
            machine=machine_of(CPU),
            architecture=f"ensemble:2:{ARCHITECTURE}",
            retain=PLACED.subset(retain),
            forget=PLACED.subset(forget),
            kept=self.trainer.kept,
            read=lambda kept: self.states[kept.path],
            classes=CLASSES,
            image_shape=(1, 8, 8),
            **more,
        )

    def without(self, forget, past=None, **options):
        past = past or self.past(forget)
        retain = Subset(DATA, np.setdiff1d(np.arange(300), forget).tolist())
        return train_anew(self.model, past, retain, Training, CPU, begin=past.begin(), **options)


@pytest.fixture(scope="module")
def trained():
    return Trained()


def one_of(shard, slice_):
    """The first sample of a slice."""
    return np.flatnonzero((PLACED.shard == shard) & (PLACED.slice_ == slice_))[:1]


def test_epochs_of_a_stage_add_up_to_those_of_one_model():
    for slices in (1, 2, 4, 8):
        passes = sum(stage_epochs(60, slices) * stage / slices for stage in range(1, slices + 1))
        assert passes == pytest.approx(60, rel=0.05)
    assert stage_epochs(1, 16) == 1


def test_seeds_of_stages_have_nothing_in_common():
    seeds = {stage_seed(seed, shard, stage) for seed in range(3) for shard in range(5) for stage in range(5)}
    assert len(seeds) == 75 and all(0 <= seed < 2**64 for seed in seeds)


def test_cost_by_hand():
    """Shard 0 has 3 and then 2 samples more, shard 1 has 4: two epochs a stage, batches of 2."""
    placed = Placement(np.array([0] * 5 + [1] * 4), np.array([0, 0, 0, 1, 1, 0, 0, 0, 0]))
    shards = Shards(shards=2, slices=2, params={"epochs": 3, "batch_size": 2})
    assert cost(shards, placed, {0: 0}) == Cost(steps=2 * (1 + 2), samples=2 * (3 + 5))
    assert cost(shards, placed, {0: 1}) == Cost(steps=2 * 2, samples=2 * 5)
    assert cost(shards, placed, {0: 2}) == cost(shards, placed, {}) == Cost(0, 0)
    assert cost(shards, placed, {0: 0, 1: 0}).samples == 2 * (3 + 5 + 4 + 4)
    assert touched(placed.subset(np.array([3, 4]))) == {0: 1} and touched(placed.subset(np.array([4, 8]))) == {
        0: 1,
        1: 0,
    }


@pytest.mark.parametrize(
    "forget",
    [one_of(0, 0), one_of(1, 2), one_of(0, 1), np.array([3, 77, 150, 151, 299])],
    ids=["first slice", "last slice", "middle slice", "several shards"],
)
def test_it_is_training_without_the_samples_bit_for_bit(trained, forget):
    done = trained.without(forget)
    anew = Trained(np.setdiff1d(np.arange(300), forget))
    assert weights_digest(done.model) == weights_digest(anew.model)
    assert done.exactness.kind == "exact" and done.exactness.steps_from_scratch == anew.trainer.steps
    own, everything = trained.past(forget).cost()
    assert (done.exactness.steps, done.trained) == (own.steps, own.samples)
    assert everything == Cost(anew.trainer.steps, anew.trainer.samples)
    assert done.exactness.retrained == {str(s): k for s, k in touched(PLACED.subset(forget)).items()}


def test_untouched_shards_are_proven_by_their_digests(trained):
    done = trained.without(one_of(1, 2))
    assert list(done.exactness.untouched) == ["0"]
    assert (
        done.exactness.untouched["0"]
        == weights_digest(trained.model.members[0])
        == weights_digest(done.model.members[0])
    )
    assert weights_digest(done.model.members[1]) != weights_digest(trained.model.members[1])


def test_checkpoints_that_stay_have_seen_none_of_the_samples(trained):
    forget = one_of(1, 1)
    states = dict(trained.states)
    done = trained.without(forget, trained.past(forget, keep=trained.keep))
    listed = [(one.shard, one.stage) for one in done.kept]
    assert listed == [(0, 1), (0, 2), (1, 1), (1, 2)]
    anew = Trained(np.setdiff1d(np.arange(300), forget))
    for path, state in anew.states.items():
        assert all(torch.equal(value, trained.states[path][name]) for name, value in state.items())
    trained.states.update(states)


def test_twice_in_a_row(trained):
    first, second = one_of(1, 1), one_of(0, 2)
    both = np.union1d(first, second)
    once = Trained()
    done = once.without(first, once.past(first, keep=once.keep))
    past = replace(once.past(both), forget=PLACED.subset(second), kept=done.kept)
    retain = Subset(DATA, np.setdiff1d(np.arange(300), both).tolist())
    twice = train_anew(done.model, past, retain, Training, CPU, begin=past.begin())
    assert weights_digest(twice.model) == weights_digest(Trained(np.setdiff1d(np.arange(300), both)).model)


def test_a_lost_checkpoint_is_refused_and_replaced_only_if_asked(trained):
    forget = one_of(0, 2)

    def read(kept):
        if (kept.shard, kept.stage) == (0, 2):
            raise UnlearnError("the checkpoint 0-2 was changed since it was written")
        return trained.states[kept.path]

    past = replace(trained.past(forget), read=read)
    with pytest.raises(UnlearnError, match="was changed since it was written: restore it, or go back further"):
        trained.without(forget, past)
    done = trained.without(forget, past, fall_back=True)
    assert done.exactness.retrained == {"0": 1}
    assert weights_digest(done.model) == weights_digest(trained.without(forget).model)
    none = replace(past, kept=[])
    assert weights_digest(trained.without(forget, none).model) == weights_digest(done.model)


def test_another_machine_is_said(trained):
    forget = one_of(0, 2)
    past = trained.past(forget)
    other = replace(past, machine=past.machine.model_copy(update={"torch": "1.0", "threads": 7}))
    before = torch.get_num_threads()
    done = trained.without(forget, other)
    assert done.exactness.kind == "exact up to numerics" and torch.get_num_threads() == before
    assert "torch 1.0 and not " + torch.__version__ in done.exactness.excludes[-1]
    assert done.shards.mixed and not trained.without(forget).shards.mixed
    again = replace(past, shards=done.shards)
    assert trained.without(forget, again).exactness.kind == "exact up to numerics"
    unknown = trained.without(forget, replace(past, machine=None))
    assert "machine that is not recorded" in unknown.exactness.excludes[-1]


def test_shards_of_two_machines_are_so_until_all_are_trained_anew(trained):
    """Also where each of them is trained again, but from what another machine has made."""
    late, early = np.concatenate([one_of(0, 2), one_of(1, 2)]), np.concatenate([one_of(0, 0), one_of(1, 0)])
    mixed = SHARDS.model_copy(update={"mixed": True})
    for forget, kind in ((late, "exact up to numerics"), (early, "exact")):
        done = trained.without(forget, replace(trained.past(forget), shards=mixed))
        assert done.exactness.kind == kind and done.shards.mixed == (kind != "exact")


def test_a_memory_beside_the_weights_ends_the_claim(trained):
    forget = one_of(0, 2)
    model = copy.deepcopy(trained.model)
    for member in model.members:
        member.__class__ = Counting
    past = trained.past(forget)
    retain = Subset(DATA, np.setdiff1d(np.arange(300), forget).tolist())
    claim = train_anew(model, past, retain, Training, CPU, begin=past.begin()).exactness
    assert claim.kind == "approximate" and claim.excludes[-1].startswith("'seen': changed in training")


def test_a_start_that_is_not_random_ends_the_claim(trained):
    forget = one_of(0, 0)
    claim = trained.without(forget, replace(trained.past(forget), architecture="ensemble:2:toy:given")).exactness
    assert claim.kind == "approximate" and "not drawn at random by what builds the model" in claim.excludes[-1]


def test_a_shard_that_would_lose_a_class_is_named(trained):
    sevens = np.flatnonzero((DATA.tensors[1].numpy() == 7) & (PLACED.shard == 1))
    with pytest.raises(
        UnlearnError, match=r"shard 1 of 2 would have no sample of the class '7': retrain without shards"
    ):
        trained.without(sevens)
    with pytest.raises(UnlearnError, match=r"shard 0 of 2 would have no sample: retrain without shards"):
        trained.without(np.flatnonzero(PLACED.shard == 0))
    with pytest.raises(UnlearnError, match="is not an ensemble"):
        past = trained.past(one_of(0, 0))
        train_anew(net(), past, DATA, Training, CPU, begin={})


def test_what_costs_a_retraining_says_so(trained, capsys):
    first = np.concatenate([one_of(0, 0), one_of(1, 0)])
    trained.without(first)
    assert (
        "all 2 shards are trained again from their first slice: it takes a full retraining" in capsys.readouterr().err
    )
    trained.without(np.concatenate([one_of(0, 2), one_of(1, 0)]))
    own, anew = trained.past(np.concatenate([one_of(0, 2), one_of(1, 0)])).cost()
    said = capsys.readouterr().err
    assert f"the samples lie in all 2 shards: {own.steps} of {anew.steps} steps are trained again" in said


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_features_do_not_depend_on_which_others_there_are(threads):
    """Of batches they did: by three threads, in some networks, at the seams between them."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    frozen = split_at(build_model("timm:efficientnet_b0", 10, (3, 32, 32)).eval(), "classifier").frozen_layers
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.arange(40) % 10)
    every, rows = frozen_features(frozen, data, CPU).tensors[0], [*range(3, 20), 22, *range(30, 40)]
    some = frozen_features(frozen, Subset(data, rows), CPU)
    torch.set_num_threads(before)
    assert torch.equal(some.tensors[0], every[rows]) and torch.equal(some.tensors[1], data.tensors[1][rows])
