"""How the suite runs each method, and what the method promises beyond the properties that all have."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from mlflow_unlearn.data.splits import Splits

Unlearner = Callable[[nn.Module, Splits, int], nn.Module]
"""``(model, splits, seed)`` → a new model: anything that unlearns, whether it is written as a `Method` or not."""

Promises = Mapping[str, Mapping[str, Any]]
"""Property → the hyperparameters under which it holds, or the values that it needs."""

BATCH_SIZE = 8
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "lotus": {"epochs": 1},
    "finetune": {"epochs": 1},
    "neggrad_plus": {"epochs": 1},
    "random_labels": {"epochs": 1},
    "bad_teacher": {"epochs": 1},
    "scrub": {"epochs": 1},
    # With the authors' alpha of 10 and a third of the samples to forget, no weight could be selected.
    "ssd": {"alpha": 1.0},
    "unsir": {"epochs": 1, "noise_steps": 2, "copies": 1},
    # With frozen statistics a ResNet diverges within two epochs at the default learning rate.
    "salun": {"epochs": 1, "lr": 1e-3},
    "transpose": {"epochs": 1},
    "perturb": {"epochs": 1},
    "msg": {"epochs": 1},
    "retrain_from": {"epochs": 1},
    "amun": {"epochs": 1},
    "rewind": {"epochs": 1},
    "exact": {},
    "retrain": {"epochs": 1},
}
"""What makes a method cheap, or effective on a few samples.

Other methods run with their defaults, but with at most two ``epochs``. For all, ``batch_size`` is at most `BATCH_SIZE`:
a forget set has to be able to be smaller than a batch.
"""

_STEADY = {"weight_decay": 0.0, "momentum": 0.0}
PROMISES: Mapping[str, Promises] = {
    "neggrad_plus": {"forget_loss_rises": {"beta": 0.5, "epochs": 6, "lr": 0.02, **_STEADY}},
    # The loss of the min passes is zero: what moves the weights are the max passes.
    "scrub": {"forget_loss_rises": {"alpha": 0.0, "gamma": 0.0, "epochs": 2, "msteps": 2, "lr": 0.015, **_STEADY}},
    "ssd": {"batch_invariant": {}},
    "salun": {"masked": {"share": 0.1}},
}
"""Method → what it promises beyond the properties that all have."""
