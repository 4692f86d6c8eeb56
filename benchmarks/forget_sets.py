"""All methods over forget sets beyond the paper's: fractions of 1 to 50 %, and one, three and a group of classes.

Digits (20 % of scikit-learn's scans as training set, ResNet18 with the small stem, three seeds) and Fashion-MNIST (200
images per class, ResNet18 with the ordinary stem, one seed). Every figure is written to the data set's JSON file as
soon as it is measured; what is there is not measured again, so the script can be interrupted and resumed.

    python benchmarks/forget_sets.py digits            # or fashion; --only lotus,scrub measures some methods
    python benchmarks/forget_sets.py tables            # the tables of docs/benchmarks.md from the JSON files
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import fashion_mnist
import numpy as np
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from mlflow_unlearn import Splits, evaluate, unlearn
from mlflow_unlearn.data.datasets import as_dataset
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.source import stratified
from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.data.transforms import build_transform
from mlflow_unlearn.engine.architectures import build_model
from mlflow_unlearn.engine.hardware import resolve_hardware
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import BUILTIN
from mlflow_unlearn.methods.retrain import Training
from mlflow_unlearn.rng import isolated_rng

SHARES = (0.01, 0.05, 0.10, 0.25, 0.50)
RUNS: dict[str, tuple[str, dict]] = {name: (name, {}) for name in BUILTIN if name != "retrain"} | {
    # Sized for a small training set: the default is 20 × 256 noise images per class.
    "unsir": ("unsir", {"batch_size": 16}),
    # At fractions of 10 % and more the published alpha of 10 cannot select a weight.
    "ssd": ("ssd", {"alpha": 1.0}),
    "lotus alpha=auto": ("lotus", {"alpha": "auto"}),
    "lotus alpha=4": ("lotus", {"alpha": 4.0}),
    "lotus alpha=8": ("lotus", {"alpha": 8.0}),
    "lotus alpha=16": ("lotus", {"alpha": 16.0}),
}
KEPT = ("avg_gap_excess", "avg_gap", "acc_forget", "acc_retain", "acc_test", "acc_test_forgotten", "mia", "mia_excess")
KEPT += ("mia_auc", "mia_auc_low", "mia_auc_high", "jsd", "rf_jsd", "mia_advantage", "avg_gap_advantage")


class Digits:
    recipe = {"epochs": 12, "lr": 0.02, "batch_size": 16}
    seeds = (0, 1, 2)
    # Of ten: one; three; those that are drawn with closed loops.
    classes = {"class": (3,), "three classes": (1, 4, 8), "super-class": (0, 6, 8, 9)}

    def __init__(self) -> None:
        source = load_source("digits,train=20%")
        read = build_transform("none", channels=1)
        self.train, self.val, self.test = (as_dataset(part, read) for part in (source.train, source.val, source.test))

    def fresh(self) -> nn.Module:
        return build_model("resnet18", 10, (1, 8, 8))


class Fashion:
    recipe = {"epochs": 15, "lr": 0.05, "batch_size": 32}
    seeds = (0,)
    # Shirt; pullover, coat and shirt; what is worn on feet (sandal, sneaker, ankle boot).
    classes = {"class": (6,), "three classes": (2, 4, 6), "super-class": (5, 7, 9)}

    def __init__(self) -> None:
        sets, self.train = fashion_mnist.splits(fashion_mnist.DEBIAN, per_class=200)
        self.val, self.test = sets.val, sets.test

    def fresh(self) -> nn.Module:
        return fashion_mnist.network()


def forget_sets(task) -> Iterator[tuple[str, np.ndarray]]:
    labels = labels_of(task.train).numpy()
    for share in SHARES:
        yield f"{share:.0%}", stratified(labels, share, 0)
    for name, classes in task.classes.items():
        yield name, np.flatnonzero(np.isin(labels, classes))


def trained(task, dataset, seed: int, path: Path) -> nn.Module:
    """A model trained on ``dataset``, or the one whose weights are stored at ``path``."""
    with isolated_rng(seed):
        model = task.fresh()
    if path.exists():
        model.load_state_dict(torch.load(path))
        return model.eval()
    hardware = resolve_hardware(model, dataset)
    model = run(model, Training(task.recipe), {"retain": dataset}, hardware, RunOptions(seed)).model
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model


class Store:
    """Rows by key, in a JSON file that is written with each one."""

    def __init__(self, name: str) -> None:
        self.path = Path(__file__).with_name(f"{name}.json")
        self.rows = json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, key: str, row: dict) -> None:
        self.rows[key] = row
        self.path.write_text(json.dumps(self.rows, indent=0, sort_keys=True) + "\n")
        print(key, f"avg_gap_excess {row.get('avg_gap_excess', float('nan')):.4f}", row.get("failed", ""), flush=True)


def complete(row: dict) -> bool:
    """Whether it has been measured, also by what an earlier release did not measure."""
    return "failed" in row or "mia_advantage" in row


def measure(name: str, only: list[str], weights: Path, seeds: int) -> None:
    task, store = {"digits": Digits, "fashion": Fashion}[name](), Store(f"forget_sets_{name}")
    for kind, forget in forget_sets(task):
        retain = np.setdiff1d(np.arange(len(task.train)), forget)
        sets = Splits(Subset(task.train, forget.tolist()), Subset(task.train, retain.tolist()), task.val, task.test)
        for seed in task.seeds[:seeds]:
            wanted = ["original", "retrain", "floor", *(only or RUNS)]
            missing = [m for m in wanted if not complete(store.rows.get(f"{kind}/{m}/{seed}", {}))]
            if not missing:
                continue
            folder = weights / name
            original = trained(task, ConcatDataset([task.train]), seed, folder / f"original_{seed}.pt")
            start = time.perf_counter()
            gold = trained(task, sets.retain, seed + 1000, folder / f"{kind}_{seed + 1000}.pt")
            models = {"original": (original, None), "retrain": (gold, time.perf_counter() - start)}
            for method in missing:
                try:
                    if method == "floor":
                        models[method] = (
                            trained(task, sets.retain, seed + 2000, folder / f"{kind}_{seed + 2000}.pt"),
                            None,
                        )
                    elif method in RUNS:
                        result = unlearn(original, sets, *RUNS[method], seed)
                        models[method] = (result.model, result.seconds)
                except UnlearnError as error:
                    store.add(f"{kind}/{method}/{seed}", {"failed": str(error)})
                    continue
                model, seconds = models.pop(method)
                found = evaluate(model, sets, original=original, gold=gold, seed=seed)
                row = {key: found[key] for key in KEPT if key in found} | {"seconds": seconds}
                store.add(f"{kind}/{method}/{seed}", row)


def tables() -> None:
    for name, task in (("digits", Digits), ("fashion", Fashion)):
        rows = Store(f"forget_sets_{name}").rows
        kinds = [f"{share:.0%}" for share in SHARES] + list(task.classes)
        for column in ("avg_gap_excess", "avg_gap", "mia_excess", "acc_forget", "acc_test"):
            print(f"\n**{name}, `{column}`**\n\n| method | {' | '.join(kinds)} |\n|---{'|---:' * len(kinds)}|")
            for method in ["original", "retrain", "floor", *RUNS]:
                cells = []
                for kind in kinds:
                    found = [rows.get(f"{kind}/{method}/{seed}", {}).get(column) for seed in task.seeds]
                    values = [value for value in found if value is not None]
                    spread = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
                    cells.append(f"{statistics.fmean(values):.3f}{spread}" if values else "–")
                print(f"| {method} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["digits", "fashion", "tables"])
    parser.add_argument("--only", default="", help="methods to measure, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="at most so many")
    parser.add_argument("--weights", type=Path, default=Path("forget_sets_weights"), help="folder of trained models")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.what == "tables":
        tables()
        return
    start = time.perf_counter()
    measure(args.what, [part for part in args.only.split(",") if part], args.weights, args.seeds)
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes, {torch.get_num_threads()} threads", file=sys.stderr)


if __name__ == "__main__":
    main()
