"""What becomes of those who stay: unlearning may make retained samples easier to tell from unseen ones."""

import copy
from collections.abc import Callable, Mapping

import numpy as np
from torch import nn
from torch.utils.data import Subset

from mlflow_unlearn.engine.predictions import evaluate_split
from mlflow_unlearn.evidence.audit import ExposedRecord, RetainedRecord, recorded
from mlflow_unlearn.metrics.arrays import Floats, Ints
from mlflow_unlearn.metrics.attacks.detection import detect
from mlflow_unlearn.metrics.attacks.suite import AUDITED, ORIGINAL, Target
from mlflow_unlearn.session.session import Session

LARGEST = 2000
"""Retained samples that are looked at."""
WORST = 10


def retained_samples(
    session: Session,
    modules: Mapping[str, nn.Module],
    targets: Mapping[str, Target],
    names: Callable[[Ints], list[str]],
    *,
    seed: int,
) -> RetainedRecord | None:
    """How well the margin tells retained samples from unseen ones under each model, and who stands out more than ever.

    Args:
        session: whose retain set a random part is drawn from.
        modules: by name, ``audited`` and ``original`` among them.
        targets: the same models with their outputs on the test set.
        names: the ids of training samples, as the record may show them.
        seed: of the draw and the permutations.

    Returns:
        The record; None where no class is in both sets.

    Source: that retained samples may lose privacy: Hayes et al., SaTML 2025 (arXiv 2403.01218).
    """
    chosen = np.random.default_rng(seed).permutation(len(session.retain))[:LARGEST]
    data, hardware = Subset(session.splits.retain, chosen.tolist()), session.hardware
    found, odds = {}, {}
    for name, module in modules.items():
        placed = hardware.place(copy.deepcopy(module))
        outputs = evaluate_split(placed, data, hardware, description=f"evaluating {name} on retained samples")
        test = targets[name].outputs["test"]
        scores, labels = (outputs.log_odds, test.log_odds), (outputs.labels, test.labels)
        one = detect(*scores, *labels, len(test.class_sums), seed=seed)
        if one is None:
            return None
        found[name], odds[name] = recorded({"margin": one})["margin"], outputs.log_odds
    rise: Floats = odds[AUDITED] - odds.get(ORIGINAL, odds[AUDITED])
    order = np.argsort(-rise, kind="stable")[:WORST]
    worst = order[rise[order] > 0]
    ids = names(session.retain[chosen[worst]])
    return RetainedRecord(
        samples=len(chosen),
        attacks=found,
        rise_p95=float(np.quantile(rise, 0.95)),
        worst=[ExposedRecord(id=i, rise=float(rise[w])) for i, w in zip(ids, worst, strict=True)],
    )
