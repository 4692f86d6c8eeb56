"""Where the time of a command goes, and how far that is from the hardware's limit.

``unlearn`` on Fashion-MNIST (ResNet18, 1,000 images a class, LoTUS with its defaults) as a user runs it; its run
records the seconds of each phase. The limit of a phase is the floating-point operations of its passes, counted by
PyTorch, divided by the speed at which this machine multiplies large matrices in that precision.

    python benchmarks/limit.py [--precision bf16]      # Debian: apt-get install dataset-fashion-mnist
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from fashion_mnist import network
from mlflow.tracking import MlflowClient
from torch.utils.flop_counter import FlopCounterMode

from mlflow_unlearn.engine.hardware import processor

HERE = Path(__file__).parent
FORGET, RETAIN, OTHERS, EPOCHS, SHARE = 1000, 9000, 4000, 10, 0.3
NAMES = {
    "start": "start Python, import, open the run",
    "open": "open version and data",
    "original": "measure the original, teacher's logits with it",
    "method": "unlearn",
    "result": "measure the result",
    "metrics": "compute the metrics",
    "save": "write the model",
}


def matmul_rate(precision: str) -> float:
    """Operations per second: the best of several products of large matrices."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)


def operations() -> dict[str, float]:
    """Of the passes of each phase; backward twice as many as forward."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network().eval()(torch.zeros(1, 1, 28, 28))
    forward = counter.get_total_flops()
    everything = (FORGET + RETAIN + OTHERS) * forward
    learning = EPOCHS * ((FORGET + SHARE * RETAIN) * 3 + FORGET) * forward
    return {"original": everything, "method": learning, "result": everything}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    rate = matmul_rate(args.precision)
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_UNLEARN_CACHE": "off",
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
        }

        def command(*arguments: str) -> float:
            start = time.perf_counter()
            whole = [sys.executable, "-m", "mlflow_unlearn", *arguments]
            done = subprocess.run(whole, env=env, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            return time.perf_counter() - start

        data = ("--data", "python:fashion_mnist:debian_splits", "--architecture", "fashion_mnist:network")
        command("train", *data, "--name", "clf", "--epochs", "4")
        options = ("--forget", "group:split=forget", "--precision", args.precision)
        wall = command("unlearn", "--model-uri", "models:/clf/1", *options)
        client = MlflowClient(env["MLFLOW_TRACKING_URI"])
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        [run, *_] = client.search_runs(experiments, "tags.`unlearn.command` = 'unlearn'", max_results=1)
        seconds = {name: run.data.metrics[f"seconds.{name}"] for name in NAMES}
    seconds["rest"] = wall - sum(seconds.values())
    rate = max(rate, matmul_rate(args.precision))
    needed = operations()
    print(f"{processor(torch.device('cpu'))}, {torch.get_num_threads()} threads, {args.precision}")
    print(f"large matrices: {rate / 1e9:.0f} GFLOP/s\n\n| phase | seconds | share | GFLOP | limit, s | × limit |")
    print("|---|---:|---:|---:|---:|---:|")
    for phase, value in seconds.items():
        cells = " | | "
        if phase in needed:
            cells = f"{needed[phase] / 1e9:.0f} | {needed[phase] / rate:.1f} | {value * rate / needed[phase]:.2f}"
        print(f"| {NAMES.get(phase, 'log, register, table')} | {value:.1f} | {value / wall:.0%} | {cells} |")
    args.out.write_text(json.dumps({"wall": wall, "seconds": seconds, "rate": rate, "flop": needed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
