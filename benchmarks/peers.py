"""Beside supreme-unlearning (PyPI, MIT): each method that both have, on one split and one model, in turns.

The first 300 images per class of Fashion-MNIST, the small ResNet of `disturb.py`, a tenth of each class forgotten. The
peer is installed into an environment of its own, as its users have it; every run is a process of its own with one
thread, theirs and ours in turns, and the clock covers the method alone. Ours runs with its own defaults, and once more
with the peer's epochs, rate and batch size where it has these.

    python benchmarks/peers.py FOLDER [METHODS]             # keeps the environment and the models there
"""

import json
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path

import torch
from disturb import PER_CLASS, resnet, trained
from fashion_mnist import DEBIAN, splits
from torch.utils.data import DataLoader

from mlflow_unlearn import evaluate, unlearn

PEER = ("supreme-unlearning", "debugpy")
"""With what it imports and does not declare."""
TURNS = 3
METHODS = {
    "finetune": {"epochs": 5, "lr": 0.02, "batch_size": 128},
    "bad_teacher": {"epochs": 1, "lr": 1e-4, "batch_size": 256},
    "random_labels": {"epochs": 3, "batch_size": 128},
    "scrub": {"epochs": 10, "lr": 5e-4, "batch_size": 128, "msteps": 3, "alpha": 0.5, "gamma": 1.0, "temperature": 2.0},
    "ssd": {"alpha": 10.0, "lam": 1.0},
}
"""With the peer's settings, as far as ours has the hyperparameter."""
COLUMNS = ("acc_forget", "acc_retain", "acc_test", "jsd", "avg_gap_advantage")


def environment(folder: Path) -> Path:
    """The interpreter of an environment that has the peer."""
    python = folder / "peer" / "bin" / "python"
    if not python.exists():
        venv.create(folder / "peer", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEER], check=True)
    return python


def ours(folder: Path, method: str, params: str, seed: str, out: str) -> None:
    """One run of ours, in a process of its own."""
    sets, _ = splits(DEBIAN, PER_CLASS)
    original = resnet()
    original.load_state_dict(torch.load(folder / "task.pt")["original"])
    result = unlearn(original.eval(), sets, method, json.loads(params), seed=int(seed), num_workers=0)
    torch.save({"state": result.model.state_dict(), "seconds": result.seconds}, out)


def main() -> None:
    """Print a row a method and tool."""
    if sys.argv[1] == "--ours":
        ours(Path(sys.argv[2]), *sys.argv[3:])
        return
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    python = environment(folder)
    sets, everything = splits(DEBIAN, PER_CLASS)
    original, _ = trained("resnet", everything, 0, folder)
    gold, gold_seconds = trained("resnet", sets.retain, 100, folder)
    second, _ = trained("resnet", sets.retain, 200, folder)
    whole = {name: next(iter(DataLoader(data, len(data)))) for name, data in vars(sets).items()}
    torch.save({"original": original.state_dict(), **{n: tuple(v) for n, v in whole.items()}}, folder / "task.pt")
    here = Path(__file__).parent

    def once(tool: str, method: str, seed: int) -> tuple[torch.nn.Module, float]:
        out, task = folder / "out.pt", folder / "task.pt"
        params = json.dumps(METHODS[method] if tool == "ours, their settings" else {})
        command = {
            "supreme": [python, here / "peers_supreme.py", task, method, str(seed), out],
        }.get(tool, [sys.executable, here / "peers.py", "--ours", folder, method, params, str(seed), out])
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environ, cwd=here, stdout=subprocess.DEVNULL)
        found = torch.load(out)
        model = resnet()
        model.load_state_dict(found["state"])
        return model.eval(), found["seconds"]

    print(f"| method | tool | seconds | {' | '.join(COLUMNS)} |\n|---|---|{'---:|' * (len(COLUMNS) + 1)}")

    def row(method: str, tool: str, models: list[torch.nn.Module], seconds: float | None) -> None:
        rows = [evaluate(m, sets, original=original, gold=gold, num_workers=0) for m in models]
        cells = [f"{statistics.fmean(found[key] for found in rows):.4f}" for key in COLUMNS]
        print(
            f"| {method} | {tool} | {'–' if seconds is None else f'{seconds:.1f}'} | {' | '.join(cells)} |", flush=True
        )

    row("original", "", [original], None)
    row("gold", "", [gold], gold_seconds)
    row("second gold", "", [second], None)
    for method in sys.argv[2].split(",") if len(sys.argv) > 2 else METHODS:
        tools = ("supreme", "ours", "ours, their settings")
        runs = {tool: [] for tool in tools}
        for turn in range(TURNS):
            for tool in tools:
                runs[tool].append(once(tool, method, turn))
        for tool, made in runs.items():
            row(method, tool, [model for model, _ in made], statistics.median(seconds for _, seconds in made))


if __name__ == "__main__":
    main()
