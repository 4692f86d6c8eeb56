"""The weights in which a model keeps its features, for the methods that disturb them."""

import math

import torch
from torch import Tensor, nn


def feature_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name the trainable kernels of convolutions and matrices of linear and attention layers, but for the output's.

    The output layer is the last one of these by the order of the model's modules. Norms, biases, tokens and embeddings
    are left out: they are few, and a repair restores them in no time.
    """
    found, output = _weights(model)
    return {name: weight for name, weight in found.items() if weight is not output}


def _weights(model: nn.Module) -> tuple[dict[str, nn.Parameter], nn.Parameter | None]:
    """The trainable weights by name, one that layers share once, and the output layer's, trainable or not."""
    found: dict[str, nn.Parameter] = {}
    output = None
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            keys = ["weight"]
        elif isinstance(module, nn.MultiheadAttention):
            keys = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
        else:
            continue
        for key, weight in module.named_parameters(prefix, recurse=False):
            if key.rpartition(".")[2] in keys:
                output = weight
                if weight.requires_grad and not any(weight is known for known in found.values()):
                    found[key] = weight
    return found, output


def towards_noise(weight: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """``√(1 − a²) · w + a · σ_w · n`` with n ~ N(0, 1), of the shape of ``weight [...]``.

    σ_w is the root mean square of w, so that the size of the weights stays as it is. The noise is drawn on the CPU.

    Args:
        weight: w.
        amount: a, from 0 (the weight itself) to 1 (noise alone).
        generator: of the noise.
    """
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    return math.sqrt(1 - amount**2) * weight + amount * weight.square().mean().sqrt() * noise


def too_few_features(method: str, model: nn.Module) -> str | None:
    """The refusal of a method that disturbs all `feature_weights`, where there are hardly any."""
    what = "kernels and matrices before the output layer"
    instead = "train more layers (no prefix, none frozen), or use finetune with a learning rate as in training"
    return too_few(method, what, len(feature_weights(model)), model, instead)


def too_few(method: str, what: str, changed: int, model: nn.Module, instead: str) -> str | None:
    """The refusal of a method that would disturb ``changed`` layers of ``model``, fewer than half of them.

    Args:
        method: its name.
        what: the weights that it changes, in words.
        changed: how many of them the model has.
        model: with the layers that can be trained.
        instead: what would do.
    """
    count = len(_weights(model)[0])
    if changed > 0 and 2 * changed >= count:
        return None
    return (
        f"{method} would change {changed} of the {count} layers that are trained here ({what}), and where it is fewer "
        f"than half, the others keep what they have learned: {instead}"
    )
