"""Rewinding by the share of the schedule that is run again: what is remembered, and what it costs.

The first 200 images per class of Fashion-MNIST's training file, of which the first 15 % of each class are forgotten;
validation and test set as in `fashion_mnist.py`. timm's `test_resnet` (0.37 M weights) by SGD with Nesterov momentum
0.9, weight decay 5e-4, one-cycle to 0.1, batch 64, 20 epochs, with a checkpoint after every second one. Distances are
to a gold standard with another seed, `remembered` is calibrated by it and by a third one, the row "second gold". "cost"
is samples that went through the model for a gradient, "time" seconds of the processor, as fractions of retraining's.

    python benchmarks/rewind.py                             # Debian: apt-get install dataset-fashion-mnist
    python benchmarks/rewind.py --data DIR --seeds 1        # a folder with the four (gzipped) IDX files
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from fashion_mnist import DEBIAN, load
from torch.utils.data import TensorDataset

from mlflow_unlearn import Splits, evaluate
from mlflow_unlearn.api import unlearn_on
from mlflow_unlearn.engine.hardware import resolve_hardware
from mlflow_unlearn.engine.loop import Outcome, RunOptions, run
from mlflow_unlearn.engine.past import Keep, Past, Point
from mlflow_unlearn.engine.predictions import attack_target
from mlflow_unlearn.evidence.checkpoints import Kept
from mlflow_unlearn.methods.retrain import Training
from mlflow_unlearn.metrics.attacks.share import Share
from mlflow_unlearn.metrics.attacks.suite import share_between
from mlflow_unlearn.rng import isolated_rng

PER_CLASS, FORGOTTEN, EPOCHS = 200, 30, 20
RECIPE = {"epochs": EPOCHS, "lr": 0.1, "batch_size": 64}
SHARES = [number / 10 for number in range(1, 11)]
COLUMNS = ("remembered", "acc_forget", "mia_advantage", "jsd", "avg_gap_excess", "acc_retain", "acc_test")


def splits(folder: Path) -> tuple[Splits, TensorDataset]:
    """The four sets, and forget and retain together."""
    images, labels, test_images, test_labels = load(folder)
    by_class = [(labels == c).nonzero().flatten()[:PER_CLASS] for c in range(10)]
    forget = torch.cat([index[:FORGOTTEN] for index in by_class]).sort().values
    retain = torch.cat([index[FORGOTTEN:] for index in by_class]).sort().values
    part = lambda index: TensorDataset(images[index], labels[index])  # noqa: E731
    unseen = lambda a, b: TensorDataset(test_images[a:b], test_labels[a:b])  # noqa: E731
    sets = Splits(part(forget), part(retain), unseen(0, 2000), unseen(2000, 4000))
    return sets, part(torch.cat(by_class).sort().values)


def untrained(seed: int) -> torch.nn.Module:
    with isolated_rng(seed):
        return timm.create_model("test_resnet", num_classes=10, in_chans=1)


def timed(work: Callable[[], Outcome]) -> tuple[Outcome, float]:
    """What it makes, and the seconds of the processor: others may be at work on the machine."""
    start = time.process_time()
    return work(), time.process_time() - start


def trained(data: TensorDataset, seed: int, keep: Keep | None = None) -> Outcome:
    model = untrained(seed)
    hardware = resolve_hardware(model, data)
    return run(model, Training(RECIPE), {"retain": data}, hardware, RunOptions(seed, keep=keep))


def one_seed(sets: Splits, everything: TensorDataset, seed: int) -> dict[str, dict[str, float]]:
    states: dict[int, dict] = {}

    def store(state, epochs):
        states[epochs] = copy.deepcopy(state)
        return Kept(run_id="", path="", sha256="", stage=epochs)

    original = trained(everything, seed, Keep(EPOCHS // 2 - 1, EPOCHS, store))
    (gold, seconds), (second, others) = (timed(partial(trained, sets.retain, at)) for at in (seed + 100, seed + 200))
    hardware = resolve_hardware(original.model, everything)
    points = [Point(epochs, f"epoch {epochs}", lambda at=epochs: states[at], seen=1) for epochs in states]
    start = {"model": dict([*untrained(seed).named_parameters(), *untrained(seed).named_buffers()])}
    points.append(Point(0, "random weights", lambda: start, seen=0, anew=True))
    past = Past(tuple(points), EPOCHS, seed)
    before, *golds = (attack_target(one.model, sets, hardware) for one in (original, gold, second))
    rows = {}

    def row(name: str, outcome: Outcome, trained_on: int, took: float) -> None:
        metrics = evaluate(outcome.model, sets, original=original.model, gold=gold.model, num_workers=0)
        remembered = share_between(attack_target(outcome.model, sets, hardware), before, golds, seed=0)
        metrics = {**metrics, "remembered": remembered.value if isinstance(remembered, Share) else np.nan}
        rows[name] = {"cost": trained_on / gold.trained, "time": took / seconds} | {
            key: metrics[key] for key in COLUMNS
        }
        print(seed, name, {key: round(value, 4) for key, value in rows[name].items()}, flush=True)

    row("original", original, 0, 0.0)
    for share in SHARES:
        params, options = {**RECIPE, "share": share}, RunOptions(seed, past=past)
        result, took = timed(partial(unlearn_on, hardware, original.model, sets, "rewind", params, options))
        row(f"{share:.0%}", result, result.trained, took)
    row("second gold", second, second.trained, others)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEBIAN)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    start = time.perf_counter()
    sets, everything = splits(args.data)
    found = [one_seed(sets, everything, seed) for seed in range(args.seeds)]
    columns = ("cost", "time", *COLUMNS)
    print(f"\n| share run again | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in found[0]:
        values = np.array([[rows[name][column] for column in columns] for rows in found])
        cells = [
            f"{m:.3f} ± {s:.3f}" for m, s in zip(values.mean(0), values.std(0, ddof=int(len(found) > 1)), strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
