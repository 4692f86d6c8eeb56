"""Which state should LoTUS return: the last one (as published), or the one with the smallest |delta|?

scikit-learn's digits, ResNet18, 10 % of the training samples forgotten, three seeds, two alphas, three lrs:
the distance to gold (avg_gap_excess), rf_jsd and the test accuracy of both choices.

    python benchmarks/keep.py
"""

import time

import numpy as np
from digits import sets_of, trained

from mlflow_unlearn import evaluate, unlearn
from mlflow_unlearn.data.datasets import as_dataset
from mlflow_unlearn.data.parts import stratified
from mlflow_unlearn.data.sources import load_source
from mlflow_unlearn.data.transforms import build_transform

SHOWN = ("avg_gap_excess", "rf_jsd", "acc_test", "mia_excess")


def main() -> None:
    start = time.perf_counter()
    source = load_source("digits,train=30%")
    everything = as_dataset(source.train, build_transform("none", channels=1))
    rows: dict[tuple[float, float, str], list[list[float]]] = {}
    differ = {}
    for seed in range(3):
        sets = sets_of(source, stratified(source.train.labels, 0.1, seed))
        original, gold = trained(everything, seed), trained(sets.retain, seed + 100)
        for alpha in (2.0, 8.0):
            for lr in (1e-4, 3e-4, 1e-3):
                ends = {}
                for keep in ("last", "closest"):
                    result = unlearn(original, sets, params={"alpha": alpha, "lr": lr, "keep": keep}, seed=seed)
                    metrics = evaluate(result.model, sets, original=original, gold=gold, seed=seed)
                    rows.setdefault((alpha, lr, keep), []).append([metrics[key] for key in SHOWN])
                    ends[keep] = result.final["delta"]
                differ[alpha, lr] = differ.get((alpha, lr), 0) + (ends["last"] != ends["closest"])
                print(seed, alpha, lr, ends, f"{len(result.history)} epochs", flush=True)
    print(f"{'alpha':>5} {'lr':>7} {'keep':<8} " + " ".join(f"{key:>22}" for key in SHOWN) + "  states differ")
    for (alpha, lr, keep), values in rows.items():
        mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
        cells = " ".join(f"{m:12.4f} ({s:.4f})".rjust(22) for m, s in zip(mean, spread, strict=True))
        print(f"{alpha:5g} {lr:7g} {keep:<8} {cells}  {differ[alpha, lr]} of 3")
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
