"""The divergence of a student from its teacher, shared by Bad Teacher and SCRUB."""

import torch
from torch import Tensor


def distillation(teacher_logits: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """``T² · mean over the batch of KL(softmax(z_o / T) ‖ softmax(z_u / T))``, a scalar in nats.

    The factor T² keeps the size of the gradient (Hinton et al., arXiv 1503.02531, section 2). The mean is over samples
    and not over samples × classes, as the default of ``torch.nn.functional.kl_div`` would have it.

    Args:
        teacher_logits: ``[B, K]``.
        logits: of the student, ``[B, K]``.
        temperature: T > 0.
    """
    student = torch.log_softmax(logits / temperature, dim=1)
    teacher = torch.log_softmax(teacher_logits / temperature, dim=1)
    divergence = torch.nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence
