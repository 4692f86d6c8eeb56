"""Finetuning: ordinary training continues on the retain set alone, in the hope that the rest fades.

Baseline in Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, arXiv 2302.09880.
"""

from pydantic import Field

from mlflow_unlearn.engine.method import Method, OptimizerSpec, Params, Phase, Plan, Workspace, all_indices, run_epochs
from mlflow_unlearn.methods.retrain import cross_entropy


class FinetuneParams(Params):
    """Hyperparameters of finetuning."""

    epochs: int = Field(10, ge=1, le=1000, json_schema_extra={"search": {"factor": 2.0}})
    lr: float = Field(1e-3, gt=0, le=10, json_schema_extra={"search": {"factor": 10.0, "log": True}})
    batch_size: int = Field(128, ge=2, le=65536)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)


class Finetune(Method):
    """``mean over D_r of −log_softmax(z)[label]``; BatchNorm in train mode."""

    name = "finetune"
    position = 1
    Params = FinetuneParams
    params: FinetuneParams

    def plan(self, workspace: Workspace) -> Plan:
        """One pass an epoch over the retain set."""
        p = self.params
        optimizer = OptimizerSpec("sgd", p.lr, p.weight_decay, p.momentum)
        phase = Phase(cross_entropy, optimizer, p.batch_size, retain=all_indices(workspace.labels("retain")))
        return run_epochs(workspace, phase, p.epochs)
