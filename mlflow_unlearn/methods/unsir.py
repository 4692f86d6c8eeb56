"""UNSIR: learn noise that maximises the loss of a class, damage the class with it, and repair the rest.

Tarun et al., "Fast Yet Effective Machine Unlearning", TNNLS 2023, arXiv 2111.08947.
"""

from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, TensorDataset

from mlflow_unlearn.data.buffers import IN_MEMORY, RowStore, half_of_memory
from mlflow_unlearn.data.splits import wholly_forgotten
from mlflow_unlearn.engine.method import Method, OptimizerSpec, Params, Phase, Plan, Workspace, random_subset
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods.retrain import cross_entropy

LARGEST_NOISE = 1 << 34
"""Bytes of the noise of all classes; what exceeds a quarter of the machine's memory is stored in a temporary file."""


def noise_loss(noise: Tensor, logits: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """``mean over the noise of (−CE(z, label) + λ · ‖noise‖²)``, a scalar (equation 2).

    Args:
        noise: ``[N, C, H, W]``.
        logits: of the noise, ``[N, K]``.
        labels: the class whose loss each maximises, ``[N]``.
        penalty: λ ≥ 0.
    """
    away = torch.nn.functional.cross_entropy(logits, labels)
    return penalty * noise.flatten(1).square().sum(dim=1).mean() - away


class UnsirParams(Params):
    """Hyperparameters of UNSIR.

    ``lr`` and ``epochs`` are those of the impair passes. For each forgotten class ``batch_size`` noise images are
    learned in ``noise_steps`` steps and seen ``copies`` times a pass; fewer where all would exceed `LARGEST_NOISE`.
    """

    noise_steps: int = Field(40, ge=1, le=10000)
    noise_lr: float = Field(0.1, gt=0, le=10)
    penalty: float = Field(0.1, ge=0, le=100)
    copies: int = Field(20, ge=1, le=1000)
    retain_fraction: float = Field(0.2, gt=0, le=1)
    epochs: int = Field(1, ge=1, le=1000)
    lr: float = Field(0.02, gt=0, le=10, json_schema_extra={"search": {"factor": 20.0, "log": True}})
    repair_epochs: int = Field(1, ge=1, le=1000)
    repair_lr: float = Field(0.01, gt=0, le=10, json_schema_extra={"search": {"factor": 20.0, "log": True}})
    batch_size: int = Field(256, ge=2, le=65536)


class Unsir(Method):
    """The forget samples themselves are never read, only the names of their classes.

    BatchNorm: eval mode while noise is learned, train mode while impairing and repairing.
    """

    name = "unsir"
    position = 7
    Params = UnsirParams
    params: UnsirParams

    def plan(self, workspace: Workspace) -> Plan:
        """Noise for each forgotten class, impair passes on noise and a retain sample, repair passes on the sample.

        Raises:
            UnlearnError: there is no room for the noise.
        """
        p, ws = self.params, workspace
        classes = torch.unique(ws.labels("forget"))
        retained = len(classes) - len(wholly_forgotten(ws.labels("forget"), ws.labels("retain")))
        if retained:
            ws.warn(
                f"UNSIR forgets whole classes, and {retained} of the {len(classes)} classes of this forget set are "
                "retained as well: it damages and repairs them as a whole"
            )
        images, _ = next(iter(ws.batches("retain", 1)))
        each = max(1, min(p.batch_size, LARGEST_NOISE // (images[0].nbytes * len(classes))))
        if each < p.batch_size:
            ws.warn(
                f"UNSIR learned {each} noise images a class in place of batch_size = {p.batch_size}: those of all "
                f"{len(classes)} classes of this forget set would take more than {LARGEST_NOISE >> 30} GiB"
            )
        labels = classes.repeat_interleave(each)
        noise = RowStore(len(labels), memory_limit=max(IN_MEMORY, half_of_memory() // 2), reserve=True)
        loss = partial(noise_loss, penalty=p.penalty)
        for start in range(0, len(labels), each):
            chunk = slice(start, start + each)
            images = torch.randn((each, *images.shape[1:]), generator=ws.generator)
            adam = OptimizerSpec("adam", p.noise_lr)
            if not noise.put(chunk, ws.optimise_inputs(images, labels[chunk], loss, adam, p.noise_steps)):
                raise UnlearnError(
                    f"UNSIR's noise of {len(classes)} classes ({len(labels) * images[0].nbytes / 1e9:.0f} GB) does not "
                    "fit into half of the free disk: give a smaller batch_size, or another TMPDIR"
                )
        synthetic: Dataset[Any] = ConcatDataset([TensorDataset(noise.get(slice(None)), labels)] * p.copies)
        retain = random_subset(ws.labels("retain"), p.retain_fraction, ws.generator)
        impair = Phase(cross_entropy, OptimizerSpec("adam", p.lr), p.batch_size, retain=retain, synthetic=synthetic)
        repair = Phase(cross_entropy, OptimizerSpec("adam", p.repair_lr), p.batch_size, retain=retain)
        for epoch, phase in enumerate([impair] * p.epochs + [repair] * p.repair_epochs):
            stats = yield phase
            ws.record(epoch=epoch, loss=stats.loss, seconds=stats.seconds)
        return {}
