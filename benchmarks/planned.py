"""The prediction of ``plan=true`` compared with what then happens: seconds and peak anonymous memory of ``unlearn``.

Digits and Fashion-MNIST with ResNet18, and digits with a ViT; every case in its own store with an empty cache, so
that nothing is reused from the dry run.

    python benchmarks/planned.py                    # Debian: apt-get install dataset-fashion-mnist
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from mlflow.tracking import MlflowClient

HERE = Path(__file__).parent
FASHION = ("--data", "python:fashion_mnist:debian_splits", "--architecture", "fashion_mnist:network")
CASES = {
    "digits, ResNet18": (("--data", "digits", "--epochs", "2"), ("--forget", "random:10%")),
    "digits, ViT": (
        ("--data", "digits", "--architecture", "vit_tiny", "--epochs", "2", "--lr", "0.001"),
        ("--forget", "random:10%", "--method", "finetune", "--params", '{"epochs": 4}'),
    ),
    "digits, SCRUB": (("--data", "digits", "--epochs", "2"), ("--forget", "random:10%", "--method", "scrub")),
    "Fashion-MNIST, ResNet18": ((*FASHION, "--epochs", "3"), ("--forget", "group:split=forget")),
    "Fashion-MNIST, prefix": ((*FASHION, "--epochs", "3"), ("--forget", "group:split=forget", "--prefix", "layer4")),
}


def command(folder: str, cache: str, *arguments: str) -> tuple[float, float]:
    """Seconds, and peak of ``RssAnon`` in bytes."""
    env = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_UNLEARN_CACHE": f"{folder}/{cache}",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
    }
    start, peak = time.perf_counter(), [0]
    whole = [sys.executable, "-m", "mlflow_unlearn", *arguments]
    process = subprocess.Popen(whole, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def sample() -> None:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            lines = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
            peak[0] = max(peak[0], *[1024 * int(line.split()[1]) for line in lines], 0)
            time.sleep(0.02)

    sampler = threading.Thread(target=sample)
    sampler.start()
    _, err = process.communicate()
    seconds = time.perf_counter() - start
    sampler.join()
    if process.returncode:
        raise SystemExit(err)
    return seconds, peak[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of a case's name")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    found = {}
    for name, (train, unlearn) in CASES.items():
        if args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            command(folder, "cache", "train", "--name", "clf", *train)
            whole = ("unlearn", "--model-uri", "models:/clf/1", "--force", "true", *unlearn)
            dry, _ = command(folder, "dry", *whole, "--plan", "true")
            client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            [run, *_] = client.search_runs(experiments, max_results=1)
            predicted = run.data.metrics
            seconds, memory = command(folder, "real", *whole)
            [run, *_] = client.search_runs(experiments, "tags.`unlearn.command` = 'unlearn'", max_results=1)
            phases = {k: v for k, v in run.data.metrics.items() if k.startswith("seconds.")}
        ratios = predicted["plan.seconds"] / seconds, predicted["plan.memory_bytes"] / memory
        found[name] = {"dry_run": dry, "predicted": predicted, "seconds": seconds, "memory": memory, "phases": phases}
        print(
            f"{name:<26} {predicted['plan.seconds']:7.1f} s of {seconds:7.1f} ({ratios[0]:.2f}), "
            f"{predicted['plan.memory_bytes'] / 1e6:6.0f} MB of {memory / 1e6:6.0f} ({ratios[1]:.2f}); "
            f"dry run {dry:.0f} s",
            flush=True,
        )
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
