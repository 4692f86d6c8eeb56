"""Rewind: go back to a checkpoint of the version's own training, and run the rest of it again without the forget set.

"R2D" of Mu and Klabjan, "Rewind-to-Delete: Certified Machine Unlearning for Nonconvex Functions", arXiv 2409.09778,
with checkpoints that the training has kept. From a state that has never seen the forget set it is exact.
"""

import torch
from pydantic import Field

from mlflow_unlearn.engine.method import Plan, Workspace
from mlflow_unlearn.methods.retrain import RetrainParams, Training


class RewindParams(RetrainParams):
    """Hyperparameters: those of the training, which are recorded, and how far back.

    ``sigma`` is absolute: the standard deviation of the noise that each weight gets at the end, as in the paper.
    """

    share: float = Field(0.8, gt=0, le=1, json_schema_extra={"search": {"low": 0.1, "high": 1.0}})
    sigma: float = Field(0.0, ge=0, le=1)
    fall_back: bool = False


class Rewind(Training):
    """The forget set is never read. BatchNorm in train mode, from the statistics of the checkpoint."""

    name = "rewind"
    position = 90
    Params = RewindParams
    params: RewindParams
    needs = "checkpoints"
    own_prefix = True
    from_recipe = tuple(RetrainParams.model_fields)
    final_metrics = ("rewound_to",)

    def plan(self, workspace: Workspace) -> Plan:
        """Go back, run the remaining epochs on the retain set, and add the noise."""
        p = self.params
        noise = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=workspace.generator)))
        done = workspace.rewind(p.share, p.epochs, fall_back=p.fall_back)
        phase = self.epoch(workspace)
        for epoch in range(done, p.epochs):
            stats = yield phase
            workspace.record(epoch=epoch, loss=stats.loss, seconds=stats.seconds)
        if p.sigma:
            with torch.no_grad():
                for weight in workspace.model.parameters():
                    if weight.requires_grad:
                        weight.add_(torch.randn(weight.shape, generator=noise).to(weight), alpha=p.sigma)
        return {"rewound_to": done}
