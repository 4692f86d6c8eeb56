"""Random Labeling: teach the forget samples wrong labels, beside the retain set with its true ones.

Graves, Nagisetty and Ganesh, "Amnesiac Machine Learning", AAAI 2021, arXiv 2010.10981.
"""

from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from mlflow_unlearn.engine.method import (
    Batch,
    Method,
    OptimizerSpec,
    Phase,
    Plan,
    Workspace,
    all_indices,
    run_epochs,
)
from mlflow_unlearn.methods.finetune import FinetuneParams


def wrong_labels(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """For each of ``labels [B]`` another one, uniform over the ``K − 1`` others; drawn on the CPU."""
    shift = torch.randint(1, num_classes, labels.shape, generator=generator)
    return (labels + shift.to(labels.device)) % num_classes


def random_labels_loss(batch: Batch, generator: torch.Generator) -> Tensor:
    """Mean cross-entropy of logits ``[B, K]``, a scalar in nats; forget samples get `wrong_labels` anew each time."""
    wrong = wrong_labels(batch.labels, batch.logits.shape[1], generator)
    return torch.nn.functional.cross_entropy(batch.logits, torch.where(batch.forget, wrong, batch.labels))


class RandomLabelsParams(FinetuneParams):
    """Hyperparameters of Random Labeling: those of finetuning, with another learning rate."""

    lr: float = Field(0.01, gt=0, le=10, json_schema_extra={"search": {"factor": 10.0, "log": True}})


class RandomLabels(Method):
    """Forget and retain set shuffled together, nothing stored between batches; BatchNorm in train mode."""

    name = "random_labels"
    position = 3
    Params = RandomLabelsParams
    params: RandomLabelsParams

    def plan(self, workspace: Workspace) -> Plan:
        """One pass an epoch over the forget set and the whole retain set."""
        p, ws = self.params, workspace
        phase = Phase(
            partial(random_labels_loss, generator=ws.generator),
            OptimizerSpec("sgd", p.lr, p.weight_decay, p.momentum),
            p.batch_size,
            forget=all_indices(ws.labels("forget")),
            retain=all_indices(ws.labels("retain")),
        )
        return run_epochs(ws, phase, p.epochs)
