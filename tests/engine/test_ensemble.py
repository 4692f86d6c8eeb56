"""Several models as one module."""

import pytest
import torch
from toy import digits, net

from mlflow_unlearn.engine.architectures import build_model, is_factory
from mlflow_unlearn.engine.ensemble import Ensemble, EnsembleSpec, assembled
from mlflow_unlearn.errors import UnlearnError

IMAGES = digits(0, 4).tensors[0]


def test_the_mean_of_the_logits():
    models = [net(seed).eval() for seed in (0, 1, 2)]
    by_hand = sum(model(IMAGES) for model in models) / 3
    assert torch.allclose(Ensemble(models).eval()(IMAGES), by_hand, atol=1e-6)


def test_layers_before_the_prefix_are_there_once():
    models = [net(seed).eval() for seed in (0, 1)]
    ensemble = assembled(models, "6").eval()
    models[1].load_state_dict({**models[0].state_dict(), **dict(_last(models[1]))})
    assert torch.allclose(ensemble(IMAGES), (models[0](IMAGES) + models[1](IMAGES)) / 2, atol=1e-6)
    names = {name.partition(".")[0] for name in ensemble.state_dict()}
    assert names == {"frozen", "members"} and sum("Conv" in str(type(m)) for m in ensemble.modules()) == 1
    with pytest.raises(UnlearnError, match="no module 'none' to cut before"):
        assembled(models, "none")


def _last(model):
    return ((name, value.clone()) for name, value in model.state_dict().items() if name.startswith("6."))


@pytest.mark.parametrize(
    "spec",
    [EnsembleSpec(4, None, "resnet18"), EnsembleSpec(12, "blocks.3", "timm:vit"), EnsembleSpec(1, None, "a.b:c")],
)
def test_it_is_the_name_of_an_architecture(spec):
    assert EnsembleSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["resnet18", "ensemble:0:resnet18", "ensemble:4", "ensemble:four:resnet18", "e.f:g"])
def test_names_of_other_architectures(text):
    assert EnsembleSpec.parse(text) is None


@pytest.mark.slow
def test_it_is_built_and_exported_like_any_other():
    for spec in ("ensemble:2:timm:test_resnet", "ensemble:2,prefix=fc:timm:test_resnet"):
        model = build_model(spec, 10, (1, 8, 8)).eval()
        program = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        assert program.state_dict.keys() == model.state_dict().keys()
        assert torch.allclose(program.module()(IMAGES[:3]), model(IMAGES[:3]), atol=1e-5)
    first, second = model.members
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_the_users_code_is_known_behind_it():
    assert is_factory("ensemble:4:package.module:factory")
    assert not is_factory("ensemble:4:resnet18") and not is_factory("ensemble:4,prefix=head:timm:vit")
