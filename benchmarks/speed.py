"""Unlearning and evaluating compared with the plain recipe, and with the bare passes that are needed, in one process.

ResNet18 with the small-image stem, 28 × 28 images, LoTUS over 10 epochs with a batch of 128; forget, retain, validation
and test set of 1,000, 9,000, 2,000 and 2,000 images (times ``--scale``). The images are noise, since content does
not affect the time, and the labels such that LoTUS's rule does not stop it early.

The plain recipe, as published: the teacher runs in every step, all is fp32 and contiguous, and the features of the
membership attack are read one image at a time, on all four sets (its non-members are validation and test set). Other
passes take as many images at once as ours do. The bounds follow from the hardware: ``r`` and ``r_f`` are the times of
the fastest training step (forward, backward, optimiser) and forward pass among precisions and layouts, relative to fp32
contiguous. A scale of 0.0692 has steps of 128 images, like the full size; 0.06 would have 111.

    python benchmarks/speed.py [--scale 0.0692] [--repetitions 3]
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from mlflow_unlearn import Splits, evaluate, unlearn
from mlflow_unlearn.engine.architectures import build_model
from mlflow_unlearn.engine.hardware import autocast, pick_numerics, processor
from mlflow_unlearn.rng import isolated_rng

CPU = torch.device("cpu")
EPOCHS, BATCH, SHARE = 10, 128, 0.3  # a batch of 128 is what our forward passes take of such images, too
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def make_sets(model: nn.Module, scale: float) -> Splits:
    def part(count: int, wrong: bool = False) -> TensorDataset:
        images = torch.randn(round(count * scale), 1, 28, 28)
        with torch.inference_mode():
            predicted = torch.cat([model(some).argmax(1) for some in images.split(BATCH)])
        return TensorDataset(images, ((predicted + wrong) % 10).clone())

    with isolated_rng(0):
        return Splits(part(1000), part(9000), part(2000, wrong=True), part(2000, wrong=True))


def predictions(model: nn.Module, images: torch.Tensor, size: int = BATCH) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(some).argmax(1) for some in images.split(size)])


def steps(model: nn.Module, images: torch.Tensor, teacher: nn.Module | None = None) -> None:
    """LoTUS's passes and nothing else; the loss has its cost, not its meaning."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-7, weight_decay=5e-4, fused=teacher is None)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images)).tensor_split(-(-len(images) // BATCH)):
            targets = torch.full((len(index), 10), 0.1)
            if teacher is not None:
                with torch.no_grad():
                    targets = teacher(images[index]).softmax(1)
            optimizer.zero_grad(set_to_none=True)
            (-(targets * model(images[index]).log_softmax(1)).sum(1).mean()).backward()
            optimizer.step()


def chosen(sets: Splits) -> torch.Tensor:
    """Forget set and LoTUS's subset of the retain set."""
    retain = sets.retain.tensors[0]
    return torch.cat([sets.forget.tensors[0], retain[: round(SHARE * len(retain))]])


def plain_unlearn(model: nn.Module, sets: Splits) -> None:
    for images in (sets.val.tensors[0], *[sets.forget.tensors[0]] * (EPOCHS + 1)):
        predictions(model, images)
    steps(model, chosen(sets), teacher=model)


def plain_evaluate(model: nn.Module, sets: Splits) -> None:
    for part in vars(sets).values():
        predictions(model, part.tensors[0])
        predictions(model, part.tensors[0], size=1)


def bare_unlearn(model: nn.Module, sets: Splits) -> None:
    """The teacher once, the forget set after each epoch."""
    for images in (sets.val.tensors[0], chosen(sets), *[sets.forget.tensors[0]] * EPOCHS):
        predictions(model, images)
    steps(model, chosen(sets))


def bare_evaluate(model: nn.Module, sets: Splits) -> None:
    for part in vars(sets).values():
        predictions(model, part.tensors[0])


def hardware(model: nn.Module) -> tuple[float, float, dict[str, float]]:
    """``r``, ``r_f``, and the seconds behind them."""
    images = torch.randn(BATCH, 1, 28, 28)
    trial, seconds = copy.deepcopy(model), {}
    optimizer = torch.optim.AdamW(trial.parameters(), 1e-7, weight_decay=5e-4, fused=True)
    for repetition in range(4):
        for precision in ("fp32", "bf16"):
            for layout in LAYOUTS:
                placed, batch = trial.to(memory_format=layout), images.to(memory_format=layout)
                start = time.perf_counter()
                with autocast(precision, CPU), torch.inference_mode():
                    placed(batch)
                middle = time.perf_counter()
                optimizer.zero_grad(set_to_none=True)
                with autocast(precision, CPU):
                    output = placed(batch)
                output.float().logsumexp(1).mean().backward()
                optimizer.step()
                end = time.perf_counter()
                for kind, value in (("forward", middle - start), ("step", end - middle)):
                    if repetition:
                        seconds.setdefault(f"{kind} {precision} {layout}", []).append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [
        min(v for name, v in medians.items() if name.startswith(kind)) / medians[f"{kind} fp32 {LAYOUTS[0]}"]
        for kind in ("step", "forward")
    ]
    return ratios[0], ratios[1], medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of the four sets")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--prefix", default="layer4", help="first module that is trained behind a frozen prefix")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    with isolated_rng(0), torch.no_grad():
        model = build_model("resnet18", 10, (1, 28, 28))
        # Running statistics that training will not invert, nor the predictions with them.
        for _ in range(30):
            model(torch.randn(64, 1, 28, 28))
        model.eval()
    sets = make_sets(model, args.scale)
    params = {"epochs": EPOCHS, "batch_size": BATCH, "lr": 1e-7}

    def ours(precision: str, prefix: str = "none"):
        result = unlearn(model, sets, "lotus", params, device="cpu", precision=precision, prefix=prefix)
        if len(result.history) != EPOCHS:
            raise SystemExit(f"LoTUS stopped after {len(result.history)} epochs: the times cannot be compared")

    work = {
        "plain unlearn": lambda: plain_unlearn(model, sets),
        "unlearn, auto": lambda: ours("auto"),
        "unlearn, auto, prefix": lambda: ours("auto", args.prefix),
        "bare unlearn, fp32": lambda: bare_unlearn(model, sets),
        "unlearn, fp32": lambda: ours("fp32"),
        "plain evaluate": lambda: plain_evaluate(model, sets),
        "evaluate, auto": lambda: evaluate(model, sets, device="cpu", precision="auto"),
        "bare evaluate, fp32": lambda: bare_evaluate(model, sets),
        "evaluate, fp32": lambda: evaluate(model, sets, device="cpu", precision="fp32"),
    }
    picked = pick_numerics("auto", model, sets.retain.tensors[0][:32], CPU)
    measured: dict[str, list[float]] = {name: [] for name in work}
    rs = []
    for _ in range(args.repetitions):
        rs.append(hardware(model))
        for name, run in work.items():
            start = time.perf_counter()
            run()
            measured[name].append(time.perf_counter() - start)
            print(f"{name:<24} {measured[name][-1]:8.2f} s", flush=True)
    seconds = {name: statistics.median(values) for name, values in measured.items()}
    r, r_f = (statistics.median(values[i] for values in rs) for i in (0, 1))
    rows = [
        ("unlearn ÷ plain", "unlearn, auto", "plain unlearn", 0.85 * r),
        ("unlearn with prefix ÷ plain", "unlearn, auto, prefix", "plain unlearn", 0.5 * 0.85 * r),
        ("evaluate ÷ plain", "evaluate, auto", "plain evaluate", 0.22 * r_f),
        ("unlearn ÷ bare steps", "unlearn, fp32", "bare unlearn, fp32", 1.05),
        ("evaluate ÷ bare passes", "evaluate, fp32", "bare evaluate, fp32", 1.10),
    ]
    print(f"\n{processor(CPU)}, {torch.get_num_threads()} threads; auto is {picked}; r = {r:.3f}, r_f = {r_f:.3f}")
    ratios = {}
    for name, own, other, bound in rows:
        ratios[name] = {"ratio": seconds[own] / seconds[other], "bound": bound}
        print(f"{name:<28} {ratios[name]['ratio']:.3f} (at most {bound:.3f})")
    results = {
        "processor": processor(CPU),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "scale": args.scale,
        "auto": picked,
        "r": r,
        "r_f": r_f,
        "hardware_seconds": rs[-1][2],
        "seconds": measured,
        "ratios": ratios,
    }
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
