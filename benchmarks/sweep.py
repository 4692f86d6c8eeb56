"""What a trial of `tune` costs compared with `unlearn` with the same hyperparameters, on scikit-learn's digits.

In alternation: some trials of one study, then `unlearn` once for each of their settings, as a user would run both.
Prints the overall ratio, and what a trial takes beyond unlearning and evaluating.

    python benchmarks/sweep.py [--trials 20] [--turns 2]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
from mlflow.tracking import MlflowClient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        mlflow.set_tracking_uri(uri)
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
        whole = ("--model-uri", "models:/clf/1", "--forget", "random:10%", "--force", "true")
        tuning, single, overheads, done = 0.0, 0.0, [], 0
        for turn in range(1, args.turns + 1):
            size = args.trials * turn // args.turns
            last = "best" if turn == args.turns else "none"
            tuning += command("tune", *whole, "--study", "s", "--n-trials", str(size), "--register", last)
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            [parent, *_] = client.search_runs(experiments, "tags.`unlearn.command` = 'tune'", max_results=1)
            study = mlflow.artifacts.load_dict(f"runs:/{parent.info.run_id}/tune/study.json")
            runs = [client.get_run(trial["run_id"]) for trial in study["trials"][done:]]
            span = (max(r.info.end_time for r in runs) - min(r.info.start_time for r in runs)) / 1000
            work = sum(r.data.metrics["unlearn_seconds"] + r.data.metrics["judge_seconds"] for r in runs)
            overheads.append((span - work) / work)
            for trial in study["trials"][done:]:
                params = {"prefix": "none", **trial["params"]}
                single += command("unlearn", *whole, "--params", json.dumps(params))
            done = size
            print(
                f"{done} trials: {tuning:.0f} s, as single commands {single:.0f} s, ratio {tuning / single:.2f}",
                flush=True,
            )
        print(f"a trial takes {100 * sum(overheads) / len(overheads):.1f} % beyond unlearning and evaluating")
        found = {"trials": done, "tune": tuning, "unlearn": single, "ratio": tuning / single, "overhead": overheads}
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
