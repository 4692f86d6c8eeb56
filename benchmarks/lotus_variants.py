"""LoTUS's choices compared with the published ones: which state to return, and where to take the accuracy from.

``keep=closest`` returns the state with the smallest |delta| instead of the last one; ``accuracy=training`` takes the
accuracy on the forget set from the training pass instead of a separate pass. scikit-learn's digits, ResNet18, 10 % of
the training samples forgotten, three seeds, two alphas, three learning rates: distance to gold (avg_gap_excess),
rf_jsd, test accuracy, mia_excess, and the time relative to the published choice.

    python benchmarks/lotus_variants.py
"""

import time

import numpy as np
from digits import sets_of, trained

from mlflow_unlearn import evaluate, unlearn
from mlflow_unlearn.data.datasets import as_dataset
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.source import stratified
from mlflow_unlearn.data.transforms import build_transform
from mlflow_unlearn.engine.architectures import weights_digest

SHOWN = ("avg_gap_excess", "rf_jsd", "acc_test", "mia_excess")
VARIANTS = {"published": {}, "keep=closest": {"keep": "closest"}, "accuracy=training": {"accuracy": "training"}}


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
                for name, variant in VARIANTS.items():
                    result = unlearn(original, sets, params={"alpha": alpha, "lr": lr, **variant}, seed=seed)
                    digest = weights_digest(result.model)
                    if name == "published":
                        published, seconds = digest, result.seconds
                    metrics = evaluate(result.model, sets, original=original, gold=gold, seed=seed)
                    values = [*(metrics[key] for key in SHOWN), result.seconds / seconds]
                    rows.setdefault((alpha, lr, name), []).append(values)
                    differ[alpha, lr, name] = differ.get((alpha, lr, name), 0) + (digest != published)
                    print(seed, alpha, lr, name, f"{len(result.history)} epochs", result.final, flush=True)
    columns = (*SHOWN, "seconds, relative")
    print(f"{'alpha':>5} {'lr':>7} {'variant':<17} " + " ".join(f"{key:>18}" for key in columns) + "  differ")
    for (alpha, lr, name), values in rows.items():
        mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
        cells = " ".join(f"{m:9.4f} ({s:.4f})".rjust(18) for m, s in zip(mean, spread, strict=True))
        print(f"{alpha:5g} {lr:7g} {name:<17} {cells}  {differ[alpha, lr, name]} of 3")
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
