"""What `mia_advantage` does where nothing has changed, and where there is nothing to find.

1. The original's logits are multiplied by 1/4 … 100, which changes no decision: `mia_advantage`, its null and its
   reading must stay; beside them what decided before, which follows. And the same value with the logarithm of the sum
   of the other classes' exponentials in the place of the largest of their logits.
2. Unseen images are split at random into a "forget set" and others, 200 times for 100 and 1,000 of them, and a gold
   model is read on them: at the 5 % level at most 18 of 200 may be told apart.

Fashion-MNIST, as `fashion_mnist.py` trains on it, with fewer images a class.

    python benchmarks/advantage.py                          # Debian: apt-get install dataset-fashion-mnist
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from fashion_mnist import DEBIAN, load, splits, trained
from torch import nn
from torch.utils.data import TensorDataset

from mlflow_unlearn import evaluate
from mlflow_unlearn.engine.forward import forward, true_class_margins
from mlflow_unlearn.engine.hardware import resolve_hardware
from mlflow_unlearn.metrics.advantage import advantage
from mlflow_unlearn.metrics.reading import read_membership, tells_apart

FACTORS = (0.25, 1.0, 3.0, 10.0, 30.0, 100.0)
SHOWN = ("mia_advantage", "mia_advantage_null", "mia_margin_auc", "mia_excess", "entropy_ks", "mia_auc")
SPLITS, ALLOWED = 200, 18


class Scaled(nn.Module):
    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images) * self.factor


def answers(model: nn.Module, dataset: TensorDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[N, K]`` and labels ``[N]``."""
    parts = zip(*forward(model, dataset, resolve_hardware(model, dataset)), strict=True)
    logits, labels = (torch.cat([one.cpu() for one in part]) for part in parts)
    return logits, labels


def softly(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``z_y − log Σ_{j≠y} exp z_j`` ``[N]``."""
    z = logits.double()
    return z.gather(1, labels[:, None])[:, 0] - z.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)


def scaling(original: nn.Module, sets) -> bool:
    print(f"{'logits ×':>9} {'reading':>18} " + " ".join(f"{key:>19}" for key in SHOWN))
    found = set()
    for factor in FACTORS:
        metrics = evaluate(Scaled(original, factor), sets)
        word = read_membership(metrics, metrics.missing)
        found.add((word, *(round(metrics[key], 9) for key in SHOWN[:3])))
        print(f"{factor:>9g} {word:>18} " + " ".join(f"{metrics[key]:19.4f}" for key in SHOWN))
    print("value, null and reading stay" if len(found) == 1 else f"value, null or reading change: {found}")
    return len(found) == 1


def signals(original: nn.Module, sets) -> None:
    (z_f, y_f), (z_t, y_t) = (answers(original, part) for part in (sets.forget, sets.test))
    for name, of in (("max", true_class_margins), ("logsumexp", softly)):
        both = advantage(of(z_f, y_f).numpy(), of(z_t, y_t).numpy(), y_f.numpy(), y_t.numpy(), 10, seed=0)
        print(f"signal with {name}: mia_advantage {both.sides.advantage:.4f}, null {both.null.q95:.4f}")


def null(gold: nn.Module, unseen: TensorDataset) -> bool:
    logits, labels = answers(gold, unseen)
    margins, classes = true_class_margins(logits, labels).numpy(), labels.numpy()
    met = True
    for count in (100, 1000):
        start, rejected, nulls = time.perf_counter(), 0, []
        for seed in range(SPLITS):
            order = np.random.default_rng(seed).permutation(len(margins))
            forget, rest = order[:count], order[count:]
            found = advantage(margins[forget], margins[rest], classes[forget], classes[rest], 10, seed=seed)
            values = {"mia_advantage": found.sides.advantage, "mia_advantage_null": found.null.q95}
            auc = {"": found.auc, "_low": found.null.auc_low, "_high": found.null.auc_high}
            values |= {f"mia_margin_auc{end}": value for end, value in auc.items()}
            rejected += tells_apart(read_membership(values, {}))
            nulls.append(found.null.q95)
        seconds = (time.perf_counter() - start) / SPLITS
        print(
            f"n = {count}: {rejected} of {SPLITS} told apart (at most {ALLOWED}), null {np.mean(nulls):.4f} in the "
            f"mean, {seconds:.2f} s each beside {len(margins) - count} unseen samples"
        )
        met = met and rejected <= ALLOWED
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEBIAN)
    parser.add_argument("--per-class", type=int, default=300)
    args = parser.parse_args()
    sets, train = splits(args.data, args.per_class)
    original, gold = trained(train, 0), trained(sets.retain, 100)
    stays = scaling(original, sets)
    signals(original, sets)
    _, _, images, labels = load(args.data)
    sys.exit(0 if stays & null(gold, TensorDataset(images, labels)) else 1)


if __name__ == "__main__":
    main()
