"""Rewinding in the engine: the same bits as the training itself, the rest of the schedule, the noise."""

import copy
from dataclasses import replace

import pytest
import torch
from toy import CPU, digits, global_state, net, original, splits

from mlflow_unlearn import unlearn
from mlflow_unlearn.data.datasets import Augmented
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.engine.past import Keep, Past, Point
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import Kept
from mlflow_unlearn.methods.retrain import Training
from mlflow_unlearn.methods.rewind import Rewind

RECIPE = {"epochs": 6, "lr": 0.05, "batch_size": 50}
SEED = 7


class Trained:
    """The small network, trained on all digits of `splits`, with what it keeps."""

    def __init__(self, count=5, data=None):
        self.states = {}
        self.keep = Keep(count, RECIPE["epochs"], self.store)
        options = RunOptions(SEED, keep=self.keep)
        self.outcome = run(net(SEED), Training(RECIPE), {"retain": data or digits(0, 200)}, CPU, options)

    def store(self, state, epochs):
        self.states[epochs] = copy.deepcopy(state)
        return Kept(run_id="run", path=Kept.path_of(0, epochs), sha256="", stage=epochs)

    def past(self, *, seen=30, **more):
        points = [Point(at, f"epoch {at}", lambda at=at: self.states[at], seen) for at in self.states]
        start = {"model": dict([*net(SEED).named_parameters(), *net(SEED).named_buffers()])}
        anew = Point(0, "random weights", lambda: start, 0, anew=True)
        return Past((*points, anew), RECIPE["epochs"], SEED, **more)

    def rewound(self, sets=None, *, seed=0, past=None, **params):
        options = RunOptions(seed, past=past or self.past())
        sets = vars(sets or splits())
        return run(self.outcome.model, Rewind({**RECIPE, **params}), sets, CPU, options)


@pytest.fixture(scope="module")
def trained():
    return Trained()


ALL = replace(splits(), retain=digits(0, 200))
"""Nothing is taken away."""


class TestKeeping:
    def test_the_states_are_listed_in_their_order(self, trained):
        assert [one.stage for one in trained.outcome.kept] == [1, 2, 3, 4, 5] == list(trained.states)

    def test_keeping_changes_nothing(self, trained):
        plain = run(net(SEED), Training(RECIPE), {"retain": digits(0, 200)}, CPU, RunOptions(SEED))
        assert weights_digest(plain.model) == weights_digest(trained.outcome.model) and plain.kept == ()

    def test_a_state_holds_no_output_of_a_teacher(self, trained):
        assert trained.states[3].keys() == {"model", "optimizers", "generators", "random"}


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("augmented", [False, True])
def test_on_the_same_samples_it_ends_at_the_same_bits(share, augmented):
    """Dropout, order, momentum, rate and random crops go on as they did."""
    data = Augmented(digits(0, 200), "crop-flip") if augmented else digits(0, 200)
    once = Trained(data=data)
    again = once.rewound(replace(splits(), retain=data), share=share)
    assert weights_digest(again.model) == weights_digest(once.outcome.model)


def test_all_of_the_schedule_is_training_without_the_forget_set(trained):
    found = trained.rewound(share=1.0)
    gold = run(net(SEED), Training(RECIPE), {"retain": splits().retain}, CPU, RunOptions(SEED))
    assert weights_digest(found.model) == weights_digest(gold.model)
    assert found.exactness.kind == "exact" and found.trained == gold.trained


def test_what_it_reports(trained):
    """Steps of four batches of at most 50 of 170 samples."""
    found = trained.rewound(share=0.5)
    assert [row["epoch"] for row in found.history] == [3, 4, 5] and found.final == {"rewound_to": 3}
    assert found.trained == 3 * 170
    assert (found.exactness.kind, found.exactness.steps, found.exactness.steps_from_scratch) == ("approximate", 12, 24)


def test_the_rate_follows_the_fraction_of_the_schedule(trained, monkeypatch):
    """With half of the samples an epoch has half of the steps, and the rates start and end where they did."""
    rates, step = [], torch.optim.SGD.step

    def watched(self, closure=None):
        rates.append(self.param_groups[0]["lr"])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    trained.rewound(ALL, share=0.5)
    whole = rates.copy()
    rates.clear()
    trained.rewound(replace(splits(), retain=digits(0, 100)), share=0.5)
    assert (len(whole), len(rates)) == (3 * 4, 3 * 2)
    assert rates == pytest.approx(whole[::2], rel=0.2) and rates == sorted(rates, reverse=True)


class TestNoise:
    def test_it_is_absolute_and_comes_at_the_end(self, trained):
        plain, noisy = trained.rewound(), trained.rewound(sigma=0.01)
        pairs = zip(plain.model.parameters(), noisy.model.parameters(), strict=True)
        moved = torch.cat([(b - a).detach().flatten() for a, b in pairs])
        assert moved.std().item() == pytest.approx(0.01, rel=0.1) and abs(moved.mean().item()) < 0.002
        buffers = zip(plain.model.buffers(), noisy.model.buffers(), strict=True)
        assert all(torch.equal(a, b) for a, b in buffers)

    def test_the_seed_is_that_of_the_noise_alone(self, trained):
        digests = {
            (seed, sigma): weights_digest(trained.rewound(seed=seed, sigma=sigma).model)
            for seed in (0, 1)
            for sigma in (0.0, 0.01)
        }
        assert digests[0, 0.0] == digests[1, 0.0] and len(set(digests.values())) == 3


class TestTheCallersThings:
    def test_they_are_left_alone(self, trained):
        before, world = weights_digest(trained.outcome.model), global_state()
        found = trained.rewound()
        assert weights_digest(trained.outcome.model) == before and global_state() == world
        assert not found.model.training
        assert all(p.requires_grad and p.grad is None for p in found.model.parameters())


class TestRefusals:
    def test_without_a_past(self):
        with pytest.raises(UnlearnError, match="there is no training to go back to: .* keep_checkpoints= or from="):
            unlearn(original(), splits(), "rewind")

    def test_another_number_of_epochs(self, trained):
        with pytest.raises(UnlearnError, match="epochs = 9, and the recorded training has 6: leave epochs out"):
            trained.rewound(epochs=9)

    @pytest.mark.parametrize("wrong", [{"share": 0}, {"share": 1.1}, {"sigma": -1}, {"fall_back": 3}])
    def test_what_is_out_of_range(self, wrong):
        with pytest.raises(UnlearnError, match=f"hyperparameter {next(iter(wrong))} = .* of rewind is not usable"):
            Rewind(wrong)

    def test_a_prefix(self, trained):
        options = RunOptions(0, past=trained.past(), prefix="6")
        with pytest.raises(UnlearnError, match="rewind decides itself which layers stay frozen: use prefix=none"):
            run(trained.outcome.model, Rewind(RECIPE), vars(splits()), CPU, options)


def test_a_method_that_reads_the_forget_set_after_all_claims_nothing(trained):
    class Reads(Rewind):
        def plan(self, workspace):
            final = yield from super().plan(workspace)
            list(workspace.batches("forget", 10))
            return final

    options = RunOptions(0, past=trained.past())
    found = run(trained.outcome.model, Reads({**RECIPE, "share": 1.0}), vars(splits()), CPU, options)
    assert found.exactness.kind == "approximate" and "has read the forgotten samples" in found.exactness.covers
