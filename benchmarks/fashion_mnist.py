"""LoTUS against retraining on Fashion-MNIST: original, gold, a second gold (the floor) and LoTUS, side by side.

The first 1,000 images per class of the training file, of which the first 10 % of each class are forgotten; the first
2,000 images of the test file are the validation set, the next 2,000 the test set. ResNet18 with one input channel and
the ordinary stem, SGD (Nesterov momentum 0.9, weight decay 5e-4, one-cycle to 0.05), 15 epochs, batch 128, fp32, no
augmentation; LoTUS with lr 1e-4, batch 128, 10 epochs.

    python benchmarks/fashion_mnist.py                      # Debian: apt-get install dataset-fashion-mnist
    python benchmarks/fashion_mnist.py --data DIR           # a folder with the four (gzipped) IDX files

The same data and network for the commands, here all methods with three seeds:

    export PYTHONPATH=benchmarks
    mlflow-unlearn train --data python:fashion_mnist:debian_splits --architecture fashion_mnist:network --name fashion
    mlflow-unlearn compare --model-uri models:/fashion/1 --forget group:split=forget
"""

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.datasets import FashionMNIST
from torchvision.models import resnet18

from mlflow_unlearn import Splits, evaluate, unlearn
from mlflow_unlearn.engine.hardware import resolve_hardware
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.methods.retrain import Training
from mlflow_unlearn.metrics.suite import Metrics
from mlflow_unlearn.rng import isolated_rng

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
COLUMNS = [
    "acc_forget",
    "acc_retain",
    "acc_test",
    "mia",
    "mia_test",
    "mia_excess",
    "mia_auc",
    "entropy_ks",
    "rf_jsd",
    "jsd",
    "avg_gap",
    "avg_gap_excess",
]
# An earlier, independent measurement of the same setting (means over three seeds, on a different processor).
REFERENCE = {
    "original": [0.998, 0.997, 0.874, 0.888, 0.756, 0.132, 0.556, 0.138, 0.0374, 0.052, 0.0494, 0.0505],
    "gold": [0.904, 1.000, 0.870, 0.793, 0.760, 0.033, 0.515, 0.044, 0.0075, 0, 0, 0],
    "second gold": [0.897, 1.000, 0.868, 0.793, 0.769, 0.024, 0.513, 0.041, 0.0074, 0.033, 0.0033, 0.0050],
    "LoTUS alpha 2": [0.992, 0.990, 0.871, 0.821, 0.722, 0.099, 0.546, 0.110, 0.0263, 0.050, 0.0319, 0.0415],
    "LoTUS alpha 8": [0.989, 0.991, 0.870, 0.673, 0.674, -0.001, 0.500, 0.040, 0.0158, 0.052, 0.0538, 0.0324],
}


def load(folder: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised images ``[N, 1, 28, 28]`` and labels of the training and the test file."""
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root) / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for source in folder.glob("*-ubyte*"):
            with (gzip.open if source.suffix == ".gz" else open)(source, "rb") as packed:
                (raw / source.name.removesuffix(".gz")).write_bytes(packed.read())
        parts = [FashionMNIST(root, train=train, download=False) for train in (True, False)]
        return tuple(
            tensor
            for part in parts
            for tensor in (((part.data.float() / 255 - 0.2860) / 0.3530).unsqueeze(1), part.targets)
        )


def splits(folder: Path, per_class: int = 1000) -> tuple[Splits, TensorDataset]:
    """The four sets, and forget and retain together."""
    images, labels, test_images, test_labels = load(folder)
    by_class = [(labels == c).nonzero().flatten()[:per_class] for c in range(10)]
    forget = torch.cat([index[: per_class // 10] for index in by_class]).sort().values
    retain = torch.cat([index[per_class // 10 :] for index in by_class]).sort().values
    train = torch.cat(by_class).sort().values
    part = lambda index: TensorDataset(images[index], labels[index])  # noqa: E731
    unseen = lambda a, b: TensorDataset(test_images[a:b], test_labels[a:b])  # noqa: E731
    return Splits(part(forget), part(retain), unseen(0, 2000), unseen(2000, 4000)), part(train)


def debian_splits() -> Splits:
    return splits(DEBIAN)[0]


def network() -> nn.Module:
    model = resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


def fresh_model(seed: int) -> nn.Module:
    with isolated_rng(seed):
        return network()


def trained(dataset: TensorDataset, seed: int) -> nn.Module:
    model = fresh_model(seed)
    recipe = Training({"epochs": 15, "lr": 0.05, "batch_size": 128, "weight_decay": 5e-4, "momentum": 0.9})
    return run(model, recipe, {"retain": dataset}, resolve_hardware(model, dataset), RunOptions(seed)).model


def one_seed(seed: int, sets: Splits, train: TensorDataset, save: Path | None, keep: str) -> dict[str, Metrics]:
    models, seconds = {}, {}

    def timed(name, make):
        start = time.perf_counter()
        models[name] = make()
        seconds[name] = time.perf_counter() - start
        print(f"seed {seed}: {name} in {seconds[name]:.0f} s", flush=True)
        if save is not None:
            torch.save(models[name].state_dict(), save / f"{name.replace(' ', '_')}_{seed}.pt")

    def make_or_load(name, make):
        path = None if save is None else save / f"{name.replace(' ', '_')}_{seed}.pt"
        if path is not None and path.exists():
            model = fresh_model(0)
            model.load_state_dict(torch.load(path))
            models[name], seconds[name] = model.eval(), float("nan")
        else:
            timed(name, make)

    make_or_load("original", lambda: trained(train, seed))
    make_or_load("gold", lambda: trained(sets.retain, seed + 100))
    make_or_load("second gold", lambda: trained(sets.retain, seed + 200))
    for alpha in (2.0, 8.0):
        params = {"alpha": alpha, "lr": 1e-4, "epochs": 10, "batch_size": 128, "keep": keep}
        timed(
            f"LoTUS alpha {alpha:g}",
            lambda params=params: unlearn(models["original"], sets, params=params, seed=seed).model,
        )
    rows = {}
    for name, model in models.items():
        rows[name] = evaluate(model, sets, original=models["original"], gold=models["gold"], seed=seed)
        rows[name]["seconds"] = seconds[name]
    return rows


REFERENCE_SPREAD = {
    "original": {"acc_test": 0.004, "mia": 0.011, "mia_excess": 0.010, "mia_auc": 0.004, "rf_jsd": 0.003, "jsd": 0.004}
    | {"avg_gap": 0.004, "avg_gap_excess": 0.005},
    "gold": {
        "acc_forget": 0.004,
        "acc_test": 0.006,
        "mia": 0.002,
        "mia_excess": 0.006,
        "mia_auc": 0.002,
        "rf_jsd": 0.002,
    },
    "second gold": {"acc_forget": 0.008, "acc_test": 0.001, "mia": 0.003, "mia_excess": 0.003, "mia_auc": 0.004}
    | {"rf_jsd": 0.001, "jsd": 0.003, "avg_gap": 0.001, "avg_gap_excess": 0.001},
    "LoTUS alpha 2": {"acc_forget": 0.005, "acc_test": 0.007, "mia": 0.012, "mia_excess": 0.002, "mia_auc": 0.005}
    | {"rf_jsd": 0.003, "jsd": 0.005, "avg_gap": 0.002, "avg_gap_excess": 0.001},
    "LoTUS alpha 8": {"acc_forget": 0.008, "acc_test": 0.005, "mia": 0.018, "mia_excess": 0.012, "mia_auc": 0.007}
    | {"rf_jsd": 0.002, "jsd": 0.004, "avg_gap": 0.004, "avg_gap_excess": 0.005},
}
"""Standard deviations over the reference's three seeds, as far as it gives them."""


def report(rows: list[dict[str, Metrics]]) -> bool:
    """Print the table; return whether every figure agrees with the reference within twice the spread over seeds.

    The spread is the larger of the two standard deviations, ours and the reference's.
    """
    width = max(map(len, REFERENCE))
    print(" " * (width + 12) + " ".join(f"{c:>14}" for c in [*COLUMNS, "seconds"]))
    agree = True
    for name, reference in REFERENCE.items():
        values = np.array([[row[name][c] for c in [*COLUMNS, "seconds"]] for row in rows])
        mean = values.mean(axis=0)
        spread = values.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(values.shape[1])
        cells = " ".join(f"{m:8.4f}({s:.3f})" for m, s in zip(mean, spread, strict=True))
        print(f"{name:<{width}} measured   {cells}")
        print(f"{'':<{width}} reference  " + " ".join(f"{r:8.4f}       " for r in reference))
        theirs = np.array([REFERENCE_SPREAD[name].get(column, 0.0) for column in COLUMNS])
        spread = np.maximum(spread[:-1], theirs)
        # Half a unit of the reference's last printed digit does not count as a disagreement.
        off = np.abs(mean[:-1] - reference) > 2 * spread + 0.0005
        for column, m, r, s, bad in zip(COLUMNS, mean[:-1], reference, spread, off, strict=True):
            if bad:
                agree = False
                print(f"{'':<{width}} differs    {column}: {m:.4f} against {r:.4f}, {abs(m - r) / max(s, 1e-9):.1f} SD")
    for alpha in (2, 8):
        name = f"LoTUS alpha {alpha}"
        loss = max(row["original"]["acc_test"] - row[name]["acc_test"] for row in rows)
        below = all(row[name]["rf_jsd"] < row["original"]["rf_jsd"] for row in rows)
        print(
            f"{name}: largest loss of acc_test {loss:.4f} (≤ 0.010), rf_jsd below the original's on every seed: {below}"
        )
    return agree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEBIAN)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", choices=["last", "closest"], default="last", help="which state LoTUS returns")
    parser.add_argument("--save", type=Path, help="keep weights here, and reuse originals and golds found here")
    parser.add_argument("--json", type=Path, help="write every metric of every seed here")
    args = parser.parse_args()
    if args.save is not None:
        args.save.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    sets, train = splits(args.data)
    rows = [one_seed(seed, sets, train, args.save, args.keep) for seed in range(args.seeds)]
    agree = report(rows)
    minutes, cpu = (time.perf_counter() - start) / 60, sum(os.times()[:2]) / 60
    print(f"{minutes:.1f} minutes, {cpu:.1f} CPU minutes, {torch.get_num_threads()} threads, {os.cpu_count()} CPUs")
    print("agrees with the reference within twice the spread" if agree else "see the differences above")
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
