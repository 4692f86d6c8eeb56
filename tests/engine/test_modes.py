import pytest
import torch
from torch import nn
from toy import net

from mlflow_unlearn.engine.modes import eval_mode, evaluating, in_mode


@pytest.mark.parametrize("training", [True, False])
def test_a_mode_for_all_modules(training):
    model = net().train(not training)
    with in_mode(model, training):
        assert all(module.training is training for module in model.modules())
    assert all(module.training is not training for module in model.modules())


def test_eval_mode_leaves_gradients_on():
    with eval_mode(net()):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_evaluating_puts_back_each_mode_even_after_an_error():
    model = net().train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()
        raise KeyError
    assert [module.training for module in model.modules()] == modes
    assert not torch.is_inference_mode_enabled()


def test_evaluating_does_not_call_eval():
    """An exported program refuses it."""

    class Exported(nn.Module):
        def train(self, mode=True):
            raise NotImplementedError

    with evaluating(exported := Exported()):
        assert not exported.training
    assert exported.training
