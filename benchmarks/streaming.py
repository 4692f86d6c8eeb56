"""Sets that are not in memory: time grows with the number of samples used, anonymous memory hardly at all.

The samples are generated when they are read, from their number:
32 × 32 colour patterns of ten classes, with noise.

- Time of `unlearn` (LoTUS, one epoch) with 4,000 samples of forget set and retain sample together, |D_f ∪ S_r|, and
  with twice, four and eight times as many. The cost of each further sample, from one size to the next, must differ by
  at most 10 % from the mean. In wall-clock time, the shortest of several runs, and in CPU time, which other work on
  the machine affects less.
- Anonymous memory (RssAnon, sampled) of an evaluation of 10,000 and of 100,000 retain samples: at most 50 MB more.
  What is kept of a sample is its label, its prediction and its entropy: 24 bytes.

    python benchmarks/streaming.py [--repeats 3] [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from anonymous import Sampler
from torch import nn
from torch.utils.data import Dataset

from mlflow_unlearn import Splits, evaluate, unlearn
from mlflow_unlearn.data.batching import gather

BASE, SIZES = 4000, (1, 2, 4, 8)
STREAMED = 10_000, 100_000


class Stream(Dataset):
    """Stores nothing but the number of samples."""

    deterministic = True

    def __init__(self, count: int, start: int) -> None:
        self.count, self.start = count, start
        self.labels = (torch.arange(count) + start) % 10

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        number = self.start + index
        pattern = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(number % 10))
        noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1000 + number))
        return pattern.repeat_interleave(8, 1).repeat_interleave(8, 2) + noise, number % 10


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = []
    for channels, out in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(channels, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def trained() -> nn.Module:
    """A few steps, after which it recognises all ten classes, so that LoTUS makes its one pass."""
    model, data = network(), Stream(2000, 4 << 20)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for batch in torch.arange(2000).split(50):
        images, labels = gather(data, batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def processor_seconds() -> float:
    """Of this process and of the workers that have ended."""
    return sum(os.times()[:4])


def cost(samples: int) -> dict[str, float]:
    half = samples // 2
    splits = Splits(Stream(half, 0), Stream(half, 1 << 20), Stream(500, 2 << 20), Stream(500, 3 << 20))
    model = trained()
    params = {"epochs": 1, "batch_size": 100, "retain_fraction": 1.0}
    before, start = processor_seconds(), time.perf_counter()
    result = unlearn(model, splits, "lotus", params, num_workers=1)
    clock = time.perf_counter() - start
    if len(result.history) != 1:
        raise RuntimeError("LoTUS made no pass: the model does not recognise the samples")
    return {"samples": samples, "clock": clock, "processor": processor_seconds() - before}


def memory(samples: int) -> dict[str, float]:
    splits = Splits(Stream(1000, 0), Stream(samples, 1 << 20), Stream(1000, 2 << 20), Stream(1000, 3 << 20))
    model = trained()
    with Sampler() as sampled:
        evaluate(model, splits, original=model, num_workers=1)
    return {"samples": samples, "peak": sampled.peak, "peak_all": sampled.peak_all}


def process(what: str, amount: int) -> dict[str, float]:
    """In a separate process, independent of the one before."""
    command = [sys.executable, __file__, "--part", what, str(amount)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def marginal(costs: list[dict[str, float]], key: str) -> tuple[list[float], float]:
    """Seconds of each further sample from one size to the next, and the largest deviation from the mean of all."""
    small, large = costs[0], costs[-1]
    mean = (large[key] - small[key]) / (large["samples"] - small["samples"])
    steps = [(b[key] - a[key]) / (b["samples"] - a["samples"]) for a, b in pairwise(costs)]
    return steps, max(abs(step / mean - 1) for step in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        what, amount = args.part
        print(json.dumps({"cost": cost, "memory": memory}[what](int(amount))))
        return

    runs = [[process("cost", BASE * times) for times in SIZES] for _ in range(args.repeats)]
    shortest = [{key: min(run[key] for run in same) for key in same[0]} for same in zip(*runs, strict=True)]
    print("|D_f ∪ S_r|   seconds   of the processor")
    for one in shortest:
        print(f"{one['samples']:>11}   {one['clock']:7.2f}   {one['processor']:7.2f}")
    off = {}
    for key, name in (("clock", "by the clock"), ("processor", "by processor time")):
        steps, off[key] = marginal(shortest, key)
        shown = ", ".join(f"{1000 * step:.3f}" for step in steps)
        print(f"ms for each further sample, {name}: {shown}: at most {off[key]:.1%} off the mean (bar: 10 %)")

    small, large = (process("memory", samples) for samples in STREAMED)
    growth = large["peak"] - small["peak"]
    print(
        f"RssAnon, {STREAMED[0]} and {STREAMED[1]} samples: {small['peak'] / 1e6:.0f}, {large['peak'] / 1e6:.0f} MB: "
    )
    print(f"{growth / 1e6:+.1f} MB (bar: 50); with the worker {(large['peak_all'] - small['peak_all']) / 1e6:+.1f} MB")
    if args.json:
        setting = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()}
        found = setting | {"runs": runs, "off": off, "memory": [small, large], "growth": growth}
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(0 if min(off.values()) <= 0.1 and growth <= 50e6 else 1)


if __name__ == "__main__":
    main()
