"""Bad Teacher: on the forget set learn from an untrained model, on retain samples from the original.

Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023, arXiv 2205.08096 (equation 3).
"""

from functools import partial

from pydantic import Field
from torch import Tensor

from mlflow_unlearn.engine.method import (
    Batch,
    Method,
    OptimizerSpec,
    Params,
    Phase,
    Plan,
    Workspace,
    all_indices,
    random_subset,
    run_epochs,
)
from mlflow_unlearn.methods._distillation import distillation


def bad_teacher_loss(batch: Batch, temperature: float) -> Tensor:
    """Mean over the batch of ``KL(teacher ‖ student)``, logits ``[B, K]``, a scalar; the phase names the teachers.

    Raises:
        ValueError: the batch has no teacher logits.
    """
    if batch.teacher_logits is None:
        raise ValueError("Bad Teacher needs its teachers' logits: its phase must name them")
    return distillation(batch.teacher_logits, batch.logits, temperature) / temperature**2


class BadTeacherParams(Params):
    """Hyperparameters of Bad Teacher; the defaults are the authors'."""

    temperature: float = Field(1.0, gt=0, le=100, json_schema_extra={"search": {"low": 0.5, "high": 8.0, "log": True}})
    retain_fraction: float = Field(0.3, gt=0, le=1)
    epochs: int = Field(1, ge=1, le=1000, json_schema_extra={"search": {"factor": 4.0}})
    lr: float = Field(1e-4, gt=0, le=1, json_schema_extra={"search": {"factor": 10.0, "log": True}})
    batch_size: int = Field(256, ge=2, le=65536)
    weight_decay: float = Field(0.0, ge=0, le=1)


class BadTeacher(Method):
    """The incompetent teacher is randomly initialised throughout: it has no weight of the original.

    Both sets shuffled together; teachers in eval mode, the student's BatchNorm in train mode.
    """

    name = "bad_teacher"
    position = 4
    Params = BadTeacherParams
    params: BadTeacherParams

    def plan(self, workspace: Workspace) -> Plan:
        """One pass an epoch over the forget set and a fixed fraction of the retain set."""
        p, ws = self.params, workspace
        phase = Phase(
            partial(bad_teacher_loss, temperature=p.temperature),
            OptimizerSpec("adam", p.lr, p.weight_decay),
            p.batch_size,
            forget=all_indices(ws.labels("forget")),
            retain=random_subset(ws.labels("retain"), p.retain_fraction, ws.generator),
            teacher="random on forget",
        )
        return run_epochs(ws, phase, p.epochs)
