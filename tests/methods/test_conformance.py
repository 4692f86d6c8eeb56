"""What holds for every method, whatever its paper."""

import copy

import pytest
import torch
from torch.utils.data import TensorDataset
from toy import CPU, Net, accuracy, class_splits, digits, global_state, net, original, same, splits, state, take

from mlflow_unlearn import Splits, unlearn
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import BUILTIN
from mlflow_unlearn.methods.retrain import Training

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
    "retrain": {"epochs": 20, "batch_size": 32},
}
each = pytest.mark.parametrize("name", BUILTIN)
pytestmark = pytest.mark.filterwarnings("ignore::mlflow_unlearn.errors.UnlearnWarning")


def cheap(name):
    return {key: value for key, value in CHEAP.items() if key in BUILTIN[name].Params.model_fields}


def forget(name, model=None, sets=None, seed=0, **params):
    return unlearn(model or original(), sets or splits(), name, cheap(name) | params, seed)


def moved(model, result):
    """Names of the parameters that are not as they were."""
    after = dict(result.model.named_parameters())
    return {name for name, value in model.named_parameters() if not torch.equal(value, after[name])}


@each
def test_the_returned_model_is_the_one_that_forgot(name):
    sets = class_splits()
    result = unlearn(original(), sets, name, FORGETS_A_CLASS[name])
    assert moved(original(), result)
    assert accuracy(result.model, sets.forget) < 0.3 < 1 == accuracy(original(), sets.forget)
    assert accuracy(result.model, sets.retain) > 0.9
    assert accuracy(result.model, take(sets.test, sets.test.tensors[1] != 3)) > 0.6


@each
@pytest.mark.parametrize("mode", ["no_grad", "inference"])
def test_the_callers_world_is_left_alone(name, mode):
    model = original().train()
    model[1].eval()
    model[6].bias.grad = torch.ones(10)
    before, modes = state(model), [module.training for module in model.modules()]
    with {"no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]():
        world = global_state()
        result = forget(name, model)
        assert global_state() == world
    assert same(state(model), before) and torch.equal(model[6].bias.grad, torch.ones(10))
    assert modes == [module.training for module in model.modules()]
    assert all(p.requires_grad for p in model.parameters()) and model[0].weight.grad is None
    assert not any(module.training for module in result.model.modules())
    assert all(p.requires_grad and p.grad is None and not p.is_inference() for p in result.model.parameters())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in result.model.parameters()}
    assert weights_digest(result.model) == weights_digest(forget(name).model)


@each
def test_the_seed(name):
    torch.manual_seed(1)
    first = weights_digest(forget(name, seed=3).model)
    torch.manual_seed(2)
    assert weights_digest(forget(name, seed=3).model) == first
    assert (weights_digest(forget(name, seed=4).model) != first) is BUILTIN[name].stochastic


@each
@pytest.mark.parametrize(
    "sets",
    [
        splits(1),
        splits(2, 100),
        splits(150, 10),
        Splits(take(digits(0, 60), digits(0, 60).tensors[1] != 3), digits(60, 200), digits(200, 350), digits(350, 500)),
        class_splits(),
        Splits(digits(0, 1), digits(1, 2), digits(200, 350), digits(350, 500)),
    ],
    ids=["one sample", "less than a batch", "little left", "a class not in it", "one class", "one of each"],
)
def test_any_forget_set(name, sets):
    model = original()
    result = forget(name, model, sets)
    assert moved(model, result)
    assert all(torch.isfinite(value).all() for value in result.model.state_dict().values())


@pytest.fixture(scope="module")
def plain():
    """A network without BatchNorm that knows its data."""
    recipe = Training({"epochs": 20, "lr": 0.1, "batch_size": 32})
    return run(net(norm=False), recipe, {"retain": digits(0, 200)}, CPU, RunOptions(0)).model


@each
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_model_without_norm(name, dropout, plain):
    model = copy.deepcopy(plain)
    model[5].p = dropout
    result = forget(name, model)
    assert "6.weight" in moved(model, result) and not list(result.model.buffers())


@each
def test_frozen_parameters_stay_as_they_are(name):
    model = original()
    model[0].requires_grad_(False)
    result = forget(name, model)
    assert "6.weight" in moved(model, result) and not moved(model, result) & {"0.weight", "0.bias"}
    assert [p.requires_grad for p in result.model.parameters()] == [p.requires_grad for p in model.parameters()]


@each
@pytest.mark.parametrize("call", [forget, lambda name, **params: BUILTIN[name](params)], ids=["unlearn", "the method"])
def test_an_unknown_hyperparameter_is_told_the_known_ones(name, call):
    params = BUILTIN[name].Params
    with pytest.raises(UnlearnError) as caught:
        call(name, lerning_rate=1)
    message, _, known = str(caught.value).partition("valid values: ")
    assert message.startswith(f"unknown hyperparameter 'lerning_rate' of {name}: ")
    assert known == params.known() and all(key in known for key in params.model_fields)


@each
def test_the_history_tells_each_pass_with_its_seconds(name):
    heard = []
    result = unlearn(original(), splits(), name, cheap(name), on_epoch=heard.append)
    assert heard == result.history and len(heard) == {"ssd": 0, "unsir": 3}.get(name, 2)
    for epoch, row in enumerate(heard):
        assert row["epoch"] == epoch and 0 < row["seconds"] < result.seconds and {"loss"} <= row.keys()
        assert all(isinstance(value, (int, float)) for value in row.values())
    assert {key: result.params[key] for key in cheap(name)} == cheap(name)


@each
def test_a_model_of_which_nothing_can_be_trained(name):
    with pytest.raises(UnlearnError, match="all parameters of the model are frozen"):
        forget(name, original().requires_grad_(False))


@each
def test_outputs_that_are_no_logits(name):
    class Pair(Net):
        def forward(self, images):
            return super().forward(images), images

    with pytest.raises(UnlearnError, match="the model returns a tuple"):
        forget(name, Pair())


@each
def test_a_label_without_an_output(name):
    sets = vars(splits())
    unread = {"unsir": {"retain"}, "finetune": {"forget"}, "retrain": {"forget"}}.get(name, set())
    for role in {"forget", "retain"} - unread:
        images, labels = sets[role].tensors
        wrong = TensorDataset(images, labels.where(torch.arange(len(labels)) > 0, torch.tensor(10)))
        everything = {"retain_fraction": 1} if "retain_fraction" in BUILTIN[name].Params.model_fields else {}
        with pytest.raises(UnlearnError, match=r"the data has label 10, and the model has 10 outputs \(0 to K − 1\)"):
            forget(name, sets=Splits(**sets | {role: wrong}), **everything)
