"""AMUN: teach the model its own nearest mistakes about the forget samples.

Ebrahimpour-Boroojeny, Sundaram and Chandrasekaran, "Not All Wrong is Bad: Using Adversarial Examples for Unlearning",
ICML 2025, arXiv 2503.00917.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from mlflow_unlearn.engine.forward import true_class_margins
from mlflow_unlearn.engine.hardware import checked_logits
from mlflow_unlearn.engine.method import Method, OptimizerSpec, Params, Phase, Plan, Workspace, all_indices
from mlflow_unlearn.engine.modes import eval_mode
from mlflow_unlearn.methods.retrain import cross_entropy

DOUBLINGS = 12
"""Of the radius before a sample is given up; so much larger than an image it is no longer near it."""


def nearest_mistakes(
    model: nn.Module, images: Tensor, labels: Tensor, radius: Tensor, steps: int
) -> tuple[Tensor, Tensor, int]:
    """Images near ``images`` that the model takes for another class, by projected gradient descent in ℓ2.

    For each sample alone, from the radius ε on: up to ``steps`` steps of 0.1 ε against the margin ``z_y − max_{j≠y}
    z_j``, within the ball of radius ε and the range that each channel has in ``images``, until the prediction is wrong;
    where it stays right, again from the image with 2 ε. A sample that is wrong already is its own nearest mistake. The
    gradient is the margin's, since that of the cross-entropy vanishes where the model is certain.

    Args:
        model: in eval mode while this runs; its parameters get no gradient.
        images: ``[N, C, ...]``.
        labels: ``[N]``.
        radius: the first ε, a scalar.
        steps: per radius.

    Returns:
        The images found ``[N, C, ...]``, the classes that the model takes them for ``[N]`` (the label where none was
        found), and how many samples went forward and backward through the model, all steps together.
    """
    found, taken_for = images.clone(), labels.clone()
    over = [d for d in range(images.ndim) if d != 1]
    low, high = images.amin(over, keepdim=True), images.amax(over, keepdim=True)
    left, passes = torch.arange(len(images), device=images.device), 0
    with eval_mode(model):
        for doubling in range(DOUBLINGS):
            epsilon = radius * 2**doubling
            at = images[left]
            searching, place = left, at
            for step in range(steps + 1):
                place = place.detach().requires_grad_()
                logits = checked_logits(model(place), labels[searching])
                passes += len(place)
                guess = logits.argmax(dim=1)
                right = guess == labels[searching]
                found[searching[~right]], taken_for[searching[~right]] = place.detach()[~right], guess[~right]
                if step == steps or not right.any():
                    searching = searching[right]
                    break
                margins = true_class_margins(logits, labels[searching])
                (gradient,) = torch.autograd.grad(margins[right].sum(), place)
                searching, at = searching[right], at[right]
                direction = gradient[right] / _lengths(gradient[right])
                place = place.detach()[right] - 0.1 * epsilon * direction
                away = place - at
                place = (at + away * (epsilon / _lengths(away)).clamp(max=1.0)).clamp(low, high)
            left = searching
            if not len(left):
                break
    return found, taken_for, passes


def _lengths(vectors: Tensor) -> Tensor:
    """The ℓ2 norm of each of ``[N, ...]``, ``[N, 1, ...]``, never quite 0."""
    lengths: Tensor = vectors.flatten(1).norm(dim=1).clamp_min(1e-12)
    return lengths.view(-1, *[1] * (vectors.ndim - 1))


class AmunParams(Params):
    """Hyperparameters of AMUN; ``radius`` is the first ε as a fraction of the mean length of the forget images."""

    epochs: int = Field(10, ge=1, le=1000, json_schema_extra={"search": {"factor": 2.0}})
    lr: float = Field(0.01, gt=0, le=10, json_schema_extra={"search": {"factor": 10.0, "log": True}})
    lr_decay: float = Field(0.1, gt=0, le=1)
    lr_decay_every: int = Field(5, ge=1, le=1000)
    steps: int = Field(50, ge=1, le=10000)
    radius: float = Field(0.2, gt=0, le=100)
    batch_size: int = Field(128, ge=2, le=65536)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)


class Amun(Method):
    """Mistakes of the original, found in eval mode; then training on both sets and on them, BatchNorm in train mode."""

    name = "amun"
    position = 14
    Params = AmunParams
    params: AmunParams
    final_metrics = ("attack_passes",)

    def plan(self, workspace: Workspace) -> Plan:
        """The nearest mistakes, then passes over retain set, forget set and mistakes, all shuffled together."""
        p, ws = self.params, workspace
        total = sum(float(images.flatten(1).norm(dim=1).sum()) for images, _ in ws.batches("forget", p.batch_size))
        count = len(ws.labels("forget"))
        radius = torch.tensor(p.radius * max(total / count, 1e-12))
        images, classes, passes = [], [], 0
        for some, labels in ws.batches("forget", p.batch_size):
            near, guesses, more = nearest_mistakes(ws.model, some, labels, radius.to(some), p.steps)
            wrong = guesses != labels
            images.append(near[wrong].cpu())
            classes.append(guesses[wrong].cpu())
            passes += more
        mistakes = TensorDataset(torch.cat(images), torch.cat(classes))
        if len(mistakes) < count:
            ws.warn(f"AMUN found no mistake near {count - len(mistakes)} of the {count} forget samples")
        for epoch in range(p.epochs):
            stats = yield Phase(
                cross_entropy,
                OptimizerSpec("sgd", p.lr, p.weight_decay, p.momentum),
                p.batch_size,
                forget=all_indices(ws.labels("forget")),
                retain=all_indices(ws.labels("retain")),
                synthetic=mistakes,
                lr_scale=p.lr_decay ** (epoch // p.lr_decay_every),
            )
            ws.record(epoch=epoch, loss=stats.loss, seconds=stats.seconds)
        return {"attack_passes": float(passes)}
