"""From the command to the first training step, and what comes after the last one, on scikit-learn's digits.

The commands run as a user would run them, in a separate folder with a SQLite store; a run of ``unlearn`` records where
its time went (metrics ``seconds.*``).

    python benchmarks/startup.py [--repetitions 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlflow.tracking import MlflowClient

IMPORTS = (
    "import time; start = time.perf_counter(); import mlflow_unlearn.commands.unlearn; "
    "print(time.perf_counter() - start)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        env = os.environ | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_UNLEARN_CACHE": f"{folder}/cache"}
        client = MlflowClient(uri)

        def command(*arguments: str) -> float:
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "mlflow_unlearn", *arguments],
                env=env,
                cwd=folder,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            return time.perf_counter() - start

        command("train", "--data", "digits", "--name", "clf", "--epochs", "3")
        for seed in range(args.repetitions):
            imports = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
            wall = command("unlearn", "--model-uri", "models:/clf/1", "--forget", f"random:10%,seed={seed}")
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            [run, *_] = client.search_runs(experiments, "tags.`unlearn.command` = 'unlearn'", max_results=1)
            seconds = {k.removeprefix("seconds."): v for k, v in run.data.metrics.items() if k.startswith("seconds.")}
            before = sum(seconds[phase] for phase in ("start", "open", "original"))
            results = {
                "imports": float(imports.stdout),
                "to the first step": before,
                "saving the model": seconds["save"],
                "registering and logging": wall - sum(seconds.values()),
                **{f"seconds.{phase}": value for phase, value in seconds.items()},
            }
            for name, value in results.items():
                rows.setdefault(name, []).append(value)
    bounds = {"imports": 8, "to the first step": 15, "registering and logging": 10}
    for name, values in rows.items():
        bound = f" (at most {bounds[name]})" if name in bounds else ""
        print(f"{name:<24} {statistics.median(values):6.2f} s{bound}")
    args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
