"""Does bfloat16 stay within the spread over seeds? LoTUS in fp32 and in bf16 on scikit-learn's digits.

ResNet18, 30 % of the scans trained on, 10 % of them forgotten, three seeds, originals and gold models in fp32;
unlearned and measured in each precision.

    python benchmarks/bf16.py
"""

import numpy as np
from digits import sets_of, trained

from mlflow_unlearn import evaluate, unlearn
from mlflow_unlearn.data.datasets import as_dataset
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.source import stratified
from mlflow_unlearn.data.transforms import build_transform

SHOWN = ("avg_gap_excess", "avg_gap", "acc_forget", "acc_test", "mia_excess", "mia_auc", "rf_jsd", "jsd")


def main() -> None:
    source = load_source("digits,train=30%")
    everything = as_dataset(source.train, build_transform("none", channels=1))
    rows: dict[str, list[list[float]]] = {"fp32": [], "bf16": []}
    for seed in range(3):
        sets = sets_of(source, stratified(source.train.labels, 0.1, seed))
        original, gold = trained(everything, seed), trained(sets.retain, seed + 100)
        for precision, values in rows.items():
            model = unlearn(original, sets, params={"alpha": 8.0}, seed=seed, device="cpu", precision=precision).model
            found = evaluate(model, sets, original=original, gold=gold, seed=seed, device="cpu", precision=precision)
            values.append([found[key] for key in SHOWN])
    fp32, bf16 = (np.array(values) for values in rows.values())
    print(f"{'metric':<16} {'fp32':>8} {'bf16':>8} {'largest difference':>20} {'SD over seeds':>14}")
    for i, key in enumerate(SHOWN):
        worst, spread = np.abs(fp32[:, i] - bf16[:, i]).max(), fp32[:, i].std(ddof=1)
        print(f"{key:<16} {fp32[:, i].mean():8.4f} {bf16[:, i].mean():8.4f} {worst:20.4f} {spread:14.4f}")


if __name__ == "__main__":
    main()
