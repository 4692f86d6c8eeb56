"""`unlearn --until pass` on digits: how often it registers a version, and whether each of these passes its review.

Splits × numbers of threads, each with its own data split, request and seeds, by the commands of the demo. Exit code 1
where fewer than four fifths register a version, or one that was registered does not pass.

    python benchmarks/until.py [SPLITS]
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = "--architecture timm:test_resnet --epochs 70 --lr 0.1 --batch-size 128 --weight-decay 0".split()
THREADS = (1, 2)
SHARE = 0.8


def call(folder: Path, threads: int, *arguments: str) -> tuple[int, str]:
    """Exit code and all output of a command."""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_UNLEARN_CACHE": str(folder / "cache"),
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "mlflow_unlearn", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def story(split: int, threads: int) -> tuple[bool, bool]:
    """Whether a version was registered, and whether what happened is as it should be."""
    with tempfile.TemporaryDirectory() as name:
        folder, seed = Path(name), ("--seed", str(split))
        data = f"digits,train=50%,seed={split}"
        train = ("train", "--data", data, "--name", "clf", *RECIPE, *seed)
        request = ("request", "--model-uri", "models:/clf/1", "--forget", f"random:20%,seed={split}")
        for before in (train, request):
            code, output = call(folder, threads, *before)
            if code != 0:
                sys.exit(output)
        start = time.perf_counter()
        code, output = call(folder, threads, "unlearn", "--model-uri", "models:/clf/1", "--until", "pass", *seed)
        seconds = time.perf_counter() - start
        reviewed = call(folder, threads, "review", "--model-uri", "models:/clf/2")[0] if code == 0 else None
    last = [line for line in output.splitlines() if line.startswith(("Attempt", "Error"))][-1]
    print(
        f"| {split} | {threads} | {code} | {reviewed if code == 0 else '–'} | {seconds:.0f} | {last[:150]} |",
        flush=True,
    )
    return code == 0, (code == 0 and reviewed == 0) or code == 3


def main() -> None:
    """Print a row a story."""
    splits = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print("| split | threads | unlearn | review | seconds | last line |\n|---|---|---|---|---|---|")
    found = [story(split, threads) for split in range(splits) for threads in THREADS]
    registered, right = (sum(values) for values in zip(*found, strict=True))
    print(f"\n{registered} of {len(found)} registered a version; {right} ended as they should.")
    sys.exit(0 if registered >= SHARE * len(found) and right == len(found) else 1)


if __name__ == "__main__":
    main()
