"""Several models as one module: sub-models behind layers that they may share, and the mean of their logits."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlflow_unlearn.engine.frozen_prefix import split_at


class Ensemble(nn.Module):
    """``logits = mean over s of member_s(frozen(x))``, images ``[B, C, H, W]`` to logits ``[B, K]``.

    SISA (Bourtoule et al., S&P 2021) lets sub-models vote or takes the mean of their outputs; of logits it is a module
    like any other, with calibrated ranks and gradients.
    """

    def __init__(
        self, members: Sequence[nn.Module], frozen: nn.Module | None = None, pretrained_cfg: Any = None
    ) -> None:
        """Keep the modules by reference.

        Args:
            members: the sub-models, or their trainable heads.
            frozen: the layers before these heads, which all share; None where there are none.
            pretrained_cfg: of timm's models, by which ``transform=timm`` reads images; the members are parts of such.
        """
        super().__init__()
        self.frozen, self.pretrained_cfg = frozen, pretrained_cfg
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, K]``."""
        features = images if self.frozen is None else self.frozen(images)
        return torch.stack([member(features) for member in self.members]).mean(dim=0)


@dataclass(frozen=True)
class EnsembleSpec:
    """An ensemble as the name of an architecture: ``ensemble:4:resnet18``, ``ensemble:4,prefix=head:timm:NAME``.

    Attributes:
        members: how many sub-models.
        prefix: the module before which the layers are frozen and shared; None where nothing is.
        architecture: of each.
    """

    members: int
    prefix: str | None
    architecture: str

    def __str__(self) -> str:
        """As `parse` reads it."""
        prefix = f",prefix={self.prefix}" if self.prefix is not None else ""
        return f"ensemble:{self.members}{prefix}:{self.architecture}"

    @classmethod
    def parse(cls, text: str) -> "EnsembleSpec | None":
        """From a text; None where that is the name of one model."""
        match = re.fullmatch(r"ensemble:([1-9]\d*)(?:,prefix=([^:,]+))?:(.+)", text)
        return None if match is None else cls(int(match[1]), match[2], match[3])


def assembled(models: Sequence[nn.Module], prefix: str | None) -> Ensemble:
    """One module of whole models: with a ``prefix``, the layers of the first one before it, and all heads behind it.

    Raises:
        UnlearnError: the models cannot be split there.
    """
    config = getattr(models[0], "pretrained_cfg", None)
    if prefix is None:
        return Ensemble(models, pretrained_cfg=config)
    parts = [split_at(model, prefix) for model in models]
    return Ensemble([part.trainable_head for part in parts], parts[0].frozen_layers, config)
