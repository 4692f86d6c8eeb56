"""Disturb and repair beside LoTUS and beside retraining, on Fashion-MNIST with a small ResNet and a small ViT.

The first 300 images per class of the training file, of which the first 10 % of each class are forgotten; validation and
test set as in `fashion_mnist.py`. One seed. ResNet of four stages with a block each (torchvision's, one input channel),
15 epochs, one-cycle to 0.05; ViT of four blocks of width 96 on patches of 7 × 7, 40 epochs, one-cycle to 0.1; both by
SGD with Nesterov momentum 0.9, weight decay 5e-4, batch 128. A repair takes their rate, as the commands would from the
record. "relative" is the time as a fraction of retraining's.

    python benchmarks/disturb.py                            # both, all rows
    python benchmarks/disturb.py --model vit --rows "original|perturb"
    python benchmarks/disturb.py --models DIR               # keeps the trained models there, and finds them again
"""

import argparse
import re
import sys
import time
import warnings
from pathlib import Path

import torch
from fashion_mnist import DEBIAN, splits
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models.resnet import BasicBlock, ResNet

from mlflow_unlearn import evaluate, unlearn
from mlflow_unlearn.engine.hardware import resolve_hardware
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.errors import UnlearnError, UnlearnWarning
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.methods.retrain import Training
from mlflow_unlearn.rng import isolated_rng

PER_CLASS = 300
COLUMNS = ("acc_forget", "acc_retain", "acc_test", "mia_excess", "mia_auc", "jsd", "avg_gap_excess")


def resnet() -> nn.Module:
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    model.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return model


def vit() -> nn.Module:
    sizes = {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 96, "depth": 4, "num_heads": 4}
    return VisionTransformer(num_classes=10, **sizes)


MODELS = {"resnet": (resnet, {"epochs": 15, "lr": 0.05}), "vit": (vit, {"epochs": 40, "lr": 0.1})}
ROWS: dict[str, list[tuple[str, str, dict]]] = {
    "resnet": [
        ("LoTUS", "lotus", {"lr": 1e-4}),
        ("LoTUS, alpha 8", "lotus", {"lr": 1e-4, "alpha": 8}),
        ("finetune, lr .05", "finetune", {"lr": 0.05, "epochs": 5}),
        ("transpose", "transpose", {}),
        ("transpose, 8 epochs", "transpose", {"epochs": 8}),
        ("transpose, authors", "transpose", {"epochs": 3, "lr": 1e-3, "schedule": "cosine", "batch_size": 64}),
        ("perturb", "perturb", {}),
        ("perturb, 8 epochs", "perturb", {"epochs": 8}),
        ("msg", "msg", {}),
        ("msg, reset .3, kept 1", "msg", {"reset": 0.3}),
        ("msg, reset .3, kept .1", "msg", {"reset": 0.3, "kept": 0.1}),
        ("retrain_from", "retrain_from", {}),
        ("amun", "amun", {}),
    ],
    "vit": [
        ("LoTUS", "lotus", {}),
        ("finetune, lr .1", "finetune", {"lr": 0.1, "epochs": 5}),
        ("perturb, a .8, 5 epochs", "perturb", {"amount": 0.8, "epochs": 5}),
        ("perturb, a 1, 10 epochs", "perturb", {"amount": 1.0, "epochs": 10}),
        ("perturb, a 1, 20 epochs", "perturb", {"amount": 1.0, "epochs": 20}),
        ("msg", "msg", {}),
        ("retrain_from", "retrain_from", {}),
        ("amun", "amun", {}),
    ],
}


def trained(kind: str, data: TensorDataset, seed: int, kept: Path | None) -> tuple[nn.Module, float]:
    """A model trained on ``data``, and the seconds that it took."""
    build, recipe = MODELS[kind]
    with isolated_rng(seed):
        model = build()
    file = kept and kept / f"{kind}-{len(data)}-{seed}.pt"
    if file and file.exists():
        state, seconds = torch.load(file, weights_only=True)
        model.load_state_dict(state)
        return model.eval(), seconds
    outcome = run(model, Training(recipe), {"retain": data}, resolve_hardware(model, data), RunOptions(seed))
    if file:
        torch.save((outcome.model.state_dict(), outcome.seconds), file)
    return outcome.model, outcome.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEBIAN)
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--rows", default="", help="regular expression: only these")
    parser.add_argument("--models", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore", UnlearnWarning)
    start = time.perf_counter()
    sets, everything = splits(args.data, PER_CLASS)
    for kind in [args.model] if args.model else MODELS:
        original, _ = trained(kind, everything, 0, args.models)
        gold, gold_seconds = trained(kind, sets.retain, 100, args.models)
        second, _ = trained(kind, sets.retain, 200, args.models)
        print(f"\n{kind}\n{'':<24}" + "".join(f"{key:>16}" for key in COLUMNS) + f"{'seconds':>10}{'relative':>10}")

        def row(name: str, model: nn.Module, seconds: float, original=original, gold=gold, gold_seconds=gold_seconds):
            metrics = evaluate(model, sets, original=original, gold=gold, num_workers=0)
            cells = "".join(f"{metrics[key]:16.4f}" if key in metrics else f"{'—':>16}" for key in COLUMNS)
            print(f"{name:<24}{cells}{seconds:10.1f}{seconds / gold_seconds:10.2f}", flush=True)

        for name, model in (("original", original), ("gold", gold), ("second gold", second)):
            if re.search(args.rows, name):
                row(name, model, gold_seconds if "gold" in name else 0.0)
        for name, method, params in ROWS[kind]:
            if not re.search(args.rows, name):
                continue
            try:
                recorded = get_method(method).recorded({"lr": MODELS[kind][1]["lr"]})  # the epochs are the rows'
                result = unlearn(original, sets, method, {**recorded, **params}, num_workers=0)
            except UnlearnError as error:
                print(f"{name:<24}{error}", file=sys.stderr)
                continue
            row(name, result.model, result.seconds)
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
