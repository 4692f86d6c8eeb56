"""Two ranks compared with one process, and with what two independent processes gain on this machine.

ResNet18 with the small-image stem on 28 × 28 images, LoTUS with a batch of 128, one thread per process. Alone, in two
independent processes at once, and in two ranks that split every batch, in alternation. The gain of the two independent
ones is the ceiling: they share memory and cache as well.

    python benchmarks/ranks.py [--ordinary-stem] [--repetitions 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
LAUNCH = """
import sys
from mlflow_unlearn.distributed.launch import launch

sys.exit(launch(sys.argv[1:], 2, device="cpu", module="ranks"))
"""


def work(small: bool) -> None:
    """Runs in a separate process, or in each rank: rank 0 prints the seconds."""
    import torch
    from speed import make_sets

    from mlflow_unlearn import unlearn
    from mlflow_unlearn.distributed import ranks
    from mlflow_unlearn.engine.architectures import build_model
    from mlflow_unlearn.rng import isolated_rng

    torch.set_num_threads(1)
    with ranks.joined_up() as leads:
        if not leads:
            ranks.worker_loop()
            return
        with isolated_rng(0):
            model = build_model("resnet18", 10, (1, 28, 28), small=small).eval()
        sets = make_sets(model, 0.15 if small else 0.4)
        params = {"epochs": 1, "lr": 1e-7, "batch_size": 128}
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            unlearn(model, sets, "lotus", params, device="cpu")
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds[-1]), flush=True)


def run(*commands: list[str]) -> float:
    """Run the commands at the same time: the mean of what they print."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for command in commands]
    return statistics.mean(float(process.communicate()[0]) for process in running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ordinary-stem", action="store_true", help="a sixteenth of the work, the same gradients")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if args.work:
        work(not args.ordinary_stem)
        return
    arguments = ["--work", *(["--ordinary-stem"] if args.ordinary_stem else [])]
    alone = [sys.executable, "-m", "ranks", *arguments]
    together = [sys.executable, "-c", LAUNCH, *arguments]
    cases = {"alone": [alone], "two independent": [alone, alone], "two ranks": [together]}
    measured: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.repetitions):
        for name, commands in cases.items():
            measured[name].append(run(*commands))
            print(f"{name:<16} {measured[name][-1]:7.2f} s", flush=True)
    seconds = {name: statistics.median(values) for name, values in measured.items()}
    ceiling = 2 * seconds["alone"] / seconds["two independent"]
    gain = seconds["alone"] / seconds["two ranks"]
    print(f"two ranks gain {gain:.2f}, two independent processes {ceiling:.2f}: {gain / ceiling:.3f} (at least 0.85)")
    args.out.write_text(json.dumps({"seconds": measured, "gain": gain, "ceiling": ceiling}, indent=1) + "\n")


if __name__ == "__main__":
    main()
