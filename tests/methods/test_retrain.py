import math

import pytest
import torch
from toy import CPU, Listed, accuracy, net, original, splits

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.loop import run
from mlflow_unlearn.methods import METHODS, Batch
from mlflow_unlearn.methods.retrain import Retrain, cross_entropy
from mlflow_unlearn.models import weights_digest


def untouchable(image):
    raise RuntimeError("the forget set was read")


def retrain(model, params=None, seed=0):
    sets = splits()
    datasets = {"forget": Listed(sets.forget, untouchable), "retain": sets.retain}
    return run(model, Retrain(params), datasets, seed=seed, hardware=CPU)


def test_cross_entropy_by_hand():
    """p = (¼, ¾) with label 1 and (½, ½) with label 0: ½·(log 4/3 + log 2) = 0.4904."""
    logits = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    batch = Batch(logits, torch.tensor([1, 0]), torch.zeros(2, dtype=torch.bool), None)
    assert cross_entropy(batch).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-6)


def test_it_learns_the_retain_set_and_never_reads_the_forget_set():
    outcome = retrain(net(), {"epochs": 20, "batch_size": 32})
    assert accuracy(outcome.model, splits().retain) > 0.95
    assert outcome.final == {}
    assert [row["epoch"] for row in outcome.history] == list(range(20))
    assert list(outcome.history[0]) == ["epoch", "loss", "seconds"]
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"] / 4


def test_it_starts_from_the_weights_it_is_given():
    small = {"epochs": 1, "lr": 1e-6}
    assert accuracy(retrain(original(), small).model, splits().retain) == 1
    assert accuracy(retrain(net(), small).model, splits().retain) < 0.5


def test_the_seed():
    a, b, c = (weights_digest(retrain(net(), {"epochs": 1}, seed).model) for seed in (1, 1, 2))
    assert a == b != c


def test_it_is_no_unlearning_method():
    assert Retrain.name == "train" not in METHODS
    assert Retrain().params.model_dump() == {
        "epochs": 15,
        "lr": 0.05,
        "batch_size": 128,
        "weight_decay": 5e-4,
        "momentum": 0.9,
    }


@pytest.mark.parametrize("params", [{"epochs": 0}, {"lr": 0}, {"momentum": 1}, {"batch_size": 1}, {"weight_decay": -1}])
def test_out_of_range(params):
    (name,) = params
    with pytest.raises(UnlearnError, match=f"hyperparameter {name} = .* of train is not usable"):
        Retrain(params)
