import math

import pytest
import torch
from toy import CPU, Listed, accuracy, net, original, same, splits, state

from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import BUILTIN, Batch
from mlflow_unlearn.methods.retrain import Retrain, Training, cross_entropy


def untouchable(image):
    raise RuntimeError("the forget set was read")


def train(model, params=None, seed=0, method=Training, **options):
    sets = splits()
    datasets = {"forget": Listed(sets.forget, untouchable), "retain": sets.retain}
    return run(model, method(params), datasets, CPU, RunOptions(seed, **options))


def test_cross_entropy_by_hand():
    """p = (¼, ¾) with label 1 and (½, ½) with label 0: ½·(log 4/3 + log 2) = 0.4904."""
    logits = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    batch = Batch(logits, torch.tensor([1, 0]), torch.zeros(2, dtype=torch.bool), None)
    assert cross_entropy(batch).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-6)


@pytest.mark.parametrize("method", [Training, Retrain])
class TestBoth:
    def test_they_learn_the_retain_set_and_never_read_the_forget_set(self, method):
        outcome = train(net(), {"epochs": 20, "batch_size": 32}, method=method)
        assert accuracy(outcome.model, splits().retain) > 0.95
        assert outcome.final == {}
        assert [row["epoch"] for row in outcome.history] == list(range(20))
        assert list(outcome.history[0]) == ["epoch", "loss", "seconds"]
        assert outcome.history[-1]["loss"] < outcome.history[0]["loss"] / 4

    def test_defaults(self, method):
        assert method().params.model_dump() == {
            "epochs": 15,
            "lr": 0.05,
            "batch_size": 128,
            "weight_decay": 5e-4,
            "momentum": 0.9,
        }

    @pytest.mark.parametrize(
        "params", [{"epochs": 0}, {"lr": 0}, {"momentum": 1}, {"batch_size": 1}, {"weight_decay": -1}]
    )
    def test_out_of_range(self, params, method):
        (name,) = params
        with pytest.raises(UnlearnError, match=f"hyperparameter {name} = .* of {method.name} is not usable"):
            method(params)


def test_training_starts_from_the_weights_it_is_given():
    small = {"epochs": 1, "lr": 1e-6}
    assert accuracy(train(original(), small).model, splits().retain) == 1
    assert accuracy(train(net(), small).model, splits().retain) < 0.5


def test_training_is_no_unlearning_method_and_retraining_is():
    assert Training.name == "train" not in BUILTIN and BUILTIN["retrain"] is Retrain


class TestRetrain:
    def test_nothing_of_the_original_is_left(self):
        """Originals with other weights and other statistics end in the same model, bit for bit."""
        other = original()
        with torch.no_grad():
            for value in other.state_dict().values():
                value.add_(1)
        a, b = (train(model, {"epochs": 2}, method=Retrain).model for model in (original(), other))
        assert same(state(a), state(b))

    def test_it_is_training_of_a_fresh_model(self):
        fresh = train(net(5), {"epochs": 2}).model
        retrained = train(original(), {"epochs": 2}, method=Retrain, model_factory=lambda: net(5)).model
        assert same(state(fresh), state(retrained))

    def test_what_is_frozen_stays_and_all_else_is_fresh(self):
        model = original()
        model[0].requires_grad_(False)
        after = train(model, {"epochs": 1, "lr": 1e-9}, method=Retrain, model_factory=lambda: net(5)).model
        assert torch.equal(after[0].weight, model[0].weight) and not after[0].weight.requires_grad
        torch.testing.assert_close(after[6].weight, net(5)[6].weight)
