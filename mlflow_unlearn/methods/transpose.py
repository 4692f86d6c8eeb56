"""CT: transpose the kernels of the convolutions, then repair the model on the retain set.

Fifth place of the NeurIPS 2023 machine unlearning challenge, as described by Cadet et al., "Deep Unlearn: Benchmarking
Machine Unlearning", EuroS&P 2025, arXiv 2410.01276.
"""

import torch
from pydantic import Field
from torch import nn

from mlflow_unlearn.engine.method import Method, Plan, Workspace
from mlflow_unlearn.methods._repair import EPOCHS_OF_TRAINING, FROM_RECIPE, RepairParams, repair
from mlflow_unlearn.methods._weights import too_few

INSTEAD = "use perturb, which disturbs every layer before the output"


def square_kernels(model: nn.Module) -> list[nn.Parameter]:
    """The trainable kernels ``[O, I, k, k]`` of two-dimensional convolutions with k > 1, front to back."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    kernels = {id(p): p for module in convolutions for p in module.parameters(recurse=False) if p.ndim == 4}
    return [p for p in kernels.values() if p.requires_grad and p.shape[2] == p.shape[3] > 1]


@torch.no_grad()
def transpose(kernel: torch.Tensor) -> None:
    """``w[o, i, a, b] ← w[o, i, b, a]`` of a kernel ``[O, I, k, k]``, in place.

    >>> kernel = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> transpose(kernel)
    >>> kernel
    tensor([[[[1., 3.],
              [2., 4.]]]])
    """
    kernel.copy_(kernel.transpose(2, 3).clone())


class TransposeParams(RepairParams):
    """Hyperparameters of CT: the fraction of the kernels that are transposed, the last ones first, and the repair's."""

    fraction: float = Field(1.0, gt=0, le=1, json_schema_extra={"search": {"low": 0.5, "high": 1.0}})


class Transpose(Method):
    """The forget set is never read. BatchNorm in train mode while the model is repaired."""

    name = "transpose"
    position = 10
    Params = TransposeParams
    params: TransposeParams
    from_recipe = FROM_RECIPE
    epochs_of_training = EPOCHS_OF_TRAINING
    presets = {"authors": {"epochs": 3, "lr": 1e-3, "schedule": "cosine", "batch_size": 64, "weight_decay": 5e-4}}

    @classmethod
    def unsuited(cls, model: nn.Module) -> str | None:
        """Fewer than half of the layers have a square kernel."""
        what = "convolutions with a square kernel above 1 × 1"
        return too_few(cls.name, what, len(square_kernels(model)), model, INSTEAD)

    def plan(self, workspace: Workspace) -> Plan:
        """Transpose, then repair."""
        kernels = square_kernels(workspace.model)
        for kernel in kernels[-max(1, round(self.params.fraction * len(kernels))) :]:
            transpose(kernel)
        return repair(workspace, self.params)
