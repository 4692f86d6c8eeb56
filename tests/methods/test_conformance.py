"""What holds for every method, whatever its paper: the conformance suite, and what its small models cannot show."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import TensorDataset
from toy import (
    PLAIN_METHODS,
    Net,
    accuracy,
    class_splits,
    digits,
    global_state,
    net,
    original,
    same,
    splits,
    state,
    take,
)

from mlflow_unlearn import Splits, unlearn
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import BUILTIN
from mlflow_unlearn.testing import check_method

CHEAP = {"epochs": 2, "batch_size": 16, "alpha": 1.0, "noise_steps": 2, "copies": 1}
FORGETS_A_CLASS = {
    "lotus": {"epochs": 20, "lr": 3e-3},
    "finetune": {"epochs": 20, "lr": 0.1, "batch_size": 32},
    "neggrad_plus": {"epochs": 20, "batch_size": 32},
    "random_labels": {"epochs": 10, "lr": 0.05, "batch_size": 32},
    "bad_teacher": {"epochs": 5, "lr": 0.01, "batch_size": 32},
    "scrub": {"epochs": 4, "lr": 5e-3, "msteps": 3, "gamma": 1, "alpha": 0.5, "temperature": 2, "batch_size": 16},
    "ssd": {"alpha": 3.0},
    "unsir": {"batch_size": 16, "copies": 2, "retain_fraction": 1, "epochs": 2, "repair_epochs": 5},
    "salun": {"epochs": 10, "lr": 0.03, "batch_size": 32},
    "transpose": {"epochs": 20, "lr": 0.2, "batch_size": 32},
    "perturb": {"epochs": 20, "batch_size": 32},
    "msg": {"epochs": 20, "lr": 0.2, "batch_size": 32, "reset": 0.5},
    "retrain_from": {"epochs": 20, "batch_size": 32},
    "retrain": {"epochs": 20, "batch_size": 32},
}
DISTURBING = ("transpose", "perturb", "msg", "retrain_from", "amun")
RETAIN_ALONE = ("finetune", "retrain", "transpose", "perturb")
each = pytest.mark.parametrize("name", PLAIN_METHODS)
pytestmark = pytest.mark.filterwarnings("ignore::mlflow_unlearn.errors.UnlearnWarning")

# What BatchNorm can break. All else shows in the small models as well.
OF_NORM = ("moves", "input_untouched", "no_shared_storage", "globals_restored", "eval_mode", "finite", "one_sample")
ON_A_LARGE_MODEL = ("transpose", "perturb", "finetune")
"""The others every night."""
WITH_NORMS = ("neggrad_plus", "scrub")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        pytest.param(*pair, marks=pytest.mark.slow) if pair[0] in DISTURBING[2:] else pair
        for pair in product(BUILTIN, ("cnn", "vit"))
    ],
)
def test_the_suite_finds_nothing(name, model):
    assert check_method(name, models=[model]) == []


@pytest.mark.nightly
@pytest.mark.parametrize("name", WITH_NORMS)
def test_the_suite_finds_nothing_about_norms(name):
    """The others are among the slow and the nightly ones, with all properties."""
    assert check_method(name, models=["resnet18"], properties=OF_NORM) == []


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.nightly] * (name not in ON_A_LARGE_MODEL)) for name in BUILTIN]
)
def test_the_suite_finds_nothing_on_the_large_model(name):
    assert check_method(name, models=["resnet18"]) == []


def cheap(name):
    return {key: value for key, value in CHEAP.items() if key in BUILTIN[name].Params.model_fields}


def forget(name, model=None, sets=None, **options):
    return unlearn(model or original(), sets or splits(), name, cheap(name), **options)


def moved(model, result):
    """Names of the parameters that are not as they were."""
    after = dict(result.model.named_parameters())
    return {name for name, value in model.named_parameters() if not torch.equal(value, after[name])}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORGETS_A_CLASS)  # amun goes on teaching the class
def test_the_returned_model_is_the_one_that_forgot(name):
    sets = class_splits()
    result = unlearn(original(), sets, name, FORGETS_A_CLASS[name])
    assert moved(original(), result)
    assert accuracy(result.model, sets.forget) < 0.3 < 1 == accuracy(original(), sets.forget)
    assert accuracy(result.model, sets.retain) > 0.9
    assert accuracy(result.model, take(sets.test, sets.test.tensors[1] != 3)) > 0.6


class TestWithinInferenceMode:
    """One run of each method, called where no gradients are recorded."""

    @pytest.fixture(scope="class", params=PLAIN_METHODS)
    def done(self, request):
        model = original().train()
        model[1].eval()
        model[6].bias.grad = torch.ones(10)
        before, epochs = (state(model), [module.training for module in model.modules()]), []
        with torch.inference_mode():
            world = global_state()
            result = forget(request.param, model, on_epoch=epochs.append)
            assert global_state() == world
        return SimpleNamespace(name=request.param, model=model, before=before, epochs=epochs, result=result)

    def test_the_callers_model_is_left_alone(self, done):
        weights, modes = done.before
        assert same(state(done.model), weights) and torch.equal(done.model[6].bias.grad, torch.ones(10))
        assert modes == [module.training for module in done.model.modules()]
        assert all(p.requires_grad for p in done.model.parameters()) and done.model[0].weight.grad is None

    def test_the_returned_model_can_be_trained(self, done):
        assert moved(done.model, done.result)
        assert all(p.requires_grad and p.grad is None and not p.is_inference() for p in done.result.model.parameters())

    def test_the_weights_are_those_without_it(self, done):
        assert weights_digest(done.result.model) == weights_digest(forget(done.name).model)

    def test_each_pass_is_on_record_with_its_seconds(self, done):
        assert done.epochs == done.result.history and len(done.epochs) == {"ssd": 0, "unsir": 3}.get(done.name, 2)
        for epoch, row in enumerate(done.epochs):
            assert row["epoch"] == epoch and 0 < row["seconds"] < done.result.seconds and {"loss"} <= row.keys()
            assert all(isinstance(value, (int, float)) for value in row.values())
        assert {key: done.result.params[key] for key in cheap(done.name)} == cheap(done.name)


@pytest.mark.slow
@each
@pytest.mark.parametrize(
    "sets",
    [splits(150, 10), Splits(digits(0, 1), digits(1, 2), digits(200, 350), digits(350, 500))],
    ids=["little left", "one of each"],
)
def test_few_retain_samples(name, sets):
    result = forget(name, sets=sets)
    assert moved(original(), result)
    assert all(torch.isfinite(value).all() for value in result.model.state_dict().values())


@each
def test_a_model_in_which_nothing_is_random_or_normalised(name):
    """The student starts as its teacher, sample by sample: a divergence from it has no gradient there."""
    model = net(norm=False)
    model.load_state_dict(state(original()), strict=False)
    model[5].p = 0.0
    result = forget(name, model)
    assert "6.weight" in moved(model, result) and not list(result.model.buffers())


@pytest.mark.parametrize(
    "name", [name for name in PLAIN_METHODS if name != "retrain_from"]
)  # which cannot split such a model
def test_outputs_that_are_no_logits(name):
    class Pair(Net):
        def forward(self, images):
            return super().forward(images), images

    with pytest.raises(UnlearnError, match="the model returns a tuple"):
        forget(name, Pair())


@each
def test_a_label_without_an_output(name):
    sets = vars(splits())
    unread = {"unsir": {"retain"}, **dict.fromkeys((*RETAIN_ALONE, "retrain_from"), {"forget"})}.get(name, set())
    for split in {"forget", "retain"} - unread:
        images, labels = sets[split].tensors
        wrong = TensorDataset(images, labels.where(torch.arange(len(labels)) > 0, torch.tensor(10)))
        everything = {"retain_fraction": 1} if "retain_fraction" in BUILTIN[name].Params.model_fields else {}
        with pytest.raises(UnlearnError, match=r"the data has label 10, and the model has 10 outputs \(0 to K − 1\)"):
            unlearn(original(), Splits(**sets | {split: wrong}), name, cheap(name) | everything)
