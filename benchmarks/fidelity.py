"""Do trials on a fraction of the retain set rank as trials on all of it? LoTUS on scikit-learn's digits.

ResNet18, 30 % of the scans trained on, 10 % of them forgotten; random settings from the declared space, each run
on all of the retain set and on fractions of it, evaluated as in `tune`: by its default objective and by rf_jsd alone,
both on the validation set, and by the constraints.

    python benchmarks/fidelity.py [--settings 16] [--seeds 2]
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from digits import sets_of, trained
from scipy.stats import spearmanr
from torch.utils.data import Subset

from mlflow_unlearn import unlearn
from mlflow_unlearn.data.datasets import as_dataset
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.source import stratified
from mlflow_unlearn.data.transforms import build_transform
from mlflow_unlearn.engine.hardware import resolve_hardware
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.tuning.selection import constraints, criterion, on_validation
from mlflow_unlearn.tuning.space import search_space

SHARES = (1.0, 0.5, 0.25)
OBJECTIVES = ("rf_jsd_mia_val", "rf_jsd_val")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    source = load_source("digits,train=30%")
    everything = as_dataset(source.train, build_transform("none", channels=1))
    space = search_space(("lotus",), "cnn", ["none"], {})
    rows = []
    for seed in range(args.seeds):
        sets = sets_of(source, stratified(source.train.labels, 0.1, seed))
        original = trained(everything, seed)
        hardware = resolve_hardware(original, sets.retain, device="cpu")
        whole = evaluate_splits(original, sets, hardware)
        before = on_validation(whole, whole, seed=seed)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        for number in range(args.settings):
            setting = space.suggest(study.ask())
            params = {name: setting[name] for name in ("alpha", "lr", "epochs")}
            for share in SHARES:
                order = torch.randperm(len(sets.retain), generator=torch.Generator().manual_seed(seed))
                some = Subset(sets.retain, order[: round(share * len(order))].sort().values.tolist())
                start = time.perf_counter()
                model = unlearn(original, dataclasses.replace(sets, retain=some), params=params, seed=seed).model
                seconds = time.perf_counter() - start
                metrics = on_validation(evaluate_splits(model, sets, hardware), whole, seed=seed)
                feasible = all(value <= 0 for value in constraints(metrics, before).values())
                rows.append(
                    {"seed": seed, "number": number, "params": params, "share": share, "seconds": seconds}
                    | {name: criterion(name, metrics) for name in OBJECTIVES}
                    | {"feasible": feasible}
                )
    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    for objective in OBJECTIVES:
        show(rows, objective, args.seeds)


def show(rows: list[dict[str, Any]], objective: str, seeds: int) -> None:
    """Print one table: how the values of a fraction rank compared with those of the whole retain set."""
    columns = f"{'Spearman by seed':>20} {'same verdict':>14} {'its best is in full':>24}"
    print(f"{objective}\n{'share':>6} {'seconds':>8} {columns}")
    for share in SHARES:
        ranks, same, chosen, seconds = [], [], [], []
        for seed in range(seeds):
            full, part = ([r for r in rows if r["seed"] == seed and r["share"] == s] for s in (1.0, share))
            ranks.append(spearmanr([r[objective] for r in full], [r[objective] for r in part])[0])
            same += [a["feasible"] == b["feasible"] for a, b in zip(full, part, strict=True)]
            best = min((r for r in part if r["feasible"]), key=lambda r: r[objective])
            again = full[best["number"]]
            by_value = sorted((r for r in full if r["feasible"]), key=lambda r: r[objective])
            chosen.append(f"{by_value.index(again) + 1} of {len(by_value)}" if again["feasible"] else "infeasible")
            seconds.append(np.mean([r["seconds"] for r in part]) / np.mean([r["seconds"] for r in full]))
        shown = ", ".join(f"{rank:.2f}" for rank in ranks)
        print(f"{share:6.2f} {np.mean(seconds):8.2f} {shown:>20} {np.mean(same):14.2f} {', '.join(chosen):>24}")


if __name__ == "__main__":
    main()
