"""How near to retraining `unlearn --until pass` and `tune` come, by the commands, gold unseen until they have chosen.

A setting and a seed at a time: an original, a gold standard and a second one (the floor between retrained models), what
the ladder registers, what `tune` registers, and `evaluate` of each beside gold. Everything lies in a folder and is
found there again, so that the script can be interrupted, and two can run at once on different settings.

    python benchmarks/nearness.py run DIR [--only REGEX] [--seeds 3]
    python benchmarks/nearness.py table DIR [--only REGEX]
"""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fashion_mnist
import mlflow
from mlflow.artifacts import download_artifacts
from mlflow.tracking import MlflowClient

from mlflow_unlearn import Splits
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.evidence.record import read_evidence

FASHION = "python:fashion_mnist:debian_splits"
SMALL = "python:nearness:small_splits"
TENTH = "group:split=forget"
KEPT = ("acc_forget", "acc_retain", "acc_test", "mia_advantage", "mia_advantage_null", "jsd")
KEPT += ("avg_gap_advantage", "avg_gap_excess")
GOLD, SECOND = 1000, 2000


@dataclass(frozen=True)
class Setting:
    """What is trained, and what it is to forget; ``{seed}`` stands for the seed."""

    data: str
    network: str
    forget: str
    recipe: dict[str, float] = field(default_factory=dict)
    trials: int = 8

    @property
    def objective(self) -> tuple[str, ...]:
        """Of `tune`; RF-JSD is over the classes that are partly retained."""
        return ("--objective", "mia_advantage_val") if "class" in self.forget else ()

    @property
    def train(self) -> tuple[str, ...]:
        return tuple(part for name, value in self.recipe.items() for part in (f"--{name}", str(value)))


RESNET = {"epochs": 15, "lr": 0.05}
VIT = {"epochs": 40, "lr": 0.1}
DIGITS = {"epochs": 70, "lr": 0.1, "weight-decay": 0}
SMALL_RESNET, DIGITS_DATA = "disturb:resnet", "digits,train=50%,seed={seed}"
STRICTEST = "ResNet18, 9,000 + 1,000"
SETTINGS = {
    STRICTEST: Setting(FASHION, "fashion_mnist:network", TENTH, RESNET),
    "ViT, 2,700 + 300": Setting(SMALL, "disturb:vit", TENTH, VIT),
    "digits, 20 %": Setting(DIGITS_DATA, "timm:test_resnet", "random:20%,seed={seed}", DIGITS),
    **{
        f"ResNet, {share} % of 3,000": Setting(SMALL, SMALL_RESNET, f"random:{share}%,seed={{seed}}", RESNET)
        for share in (1, 5, 25, 50)
    },
    "ResNet, one class": Setting(SMALL, SMALL_RESNET, "class:6", RESNET),
    "ResNet, three classes": Setting(SMALL, SMALL_RESNET, "classes", RESNET),
    "ResNet, a group": Setting(SMALL, SMALL_RESNET, "darkest", RESNET),
}
# So few samples are *undecided* whatever is done, and whole classes differ from all others.
LENIENT = "name: lenient\nmembership: {accept: [indistinguishable, undecided], uninformative: accept}\n"


def small_splits() -> Splits:
    """The first 300 images per class of Fashion-MNIST."""
    return fashion_mnist.splits(fashion_mnist.DEBIAN, 300)[0]


def listed(setting: Setting, folder: Path, seed: int) -> str:
    """The forget spec; three classes (pullover, coat, shirt) and the darkest tenth of all images as lists of ids."""
    if setting.forget not in ("classes", "darkest"):
        return setting.forget.format(seed=seed)
    train = load_source(setting.data).train
    if setting.forget == "classes":
        chosen = [train.ids[i] for i, label in enumerate(train.labels) if label in (2, 4, 6)]
    else:
        images = [float(train.images[i][0].mean()) for i in range(len(train))]
        darkest = sorted(range(len(train)), key=images.__getitem__)[: len(train) // 10]
        chosen = [train.ids[i] for i in darkest]
    path = folder / "forget.txt"
    path.write_text("\n".join(chosen) + "\n")
    return str(path)


class Store:
    """Commands in a store of their own, and what has been measured by them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.file = folder, folder / "figures.json"
        self.figures = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.uri = f"sqlite:///{folder}/mlflow.db"

    def command(self, *arguments: str) -> tuple[int, str]:
        """Exit code and the last line of what was printed."""
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_UNLEARN_CACHE": str(self.folder / "cache"),
            "MLFLOW_LOGGING_LEVEL": "WARNING",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, "-m", "mlflow_unlearn", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        with (self.folder / "log.txt").open("a") as log:
            log.write(f"$ {' '.join(arguments)}\n{done.stdout}{done.stderr}\n")
        lines = (done.stdout + done.stderr).strip().splitlines()
        if done.returncode not in (0, 3):
            sys.exit("\n".join(lines))
        return done.returncode, lines[-1]

    def measured(self, *arguments: str) -> dict[str, float]:
        """The figures of `evaluate` of a version; of the original where nothing came of it."""
        self.command("evaluate", *arguments)
        client = MlflowClient(self.uri)
        run = client.search_runs(["0"], "attributes.run_name LIKE 'evaluate%'", max_results=1)[0]
        own = "unlearned" if "unlearned.acc_test" in run.data.metrics else "original"
        return {key: run.data.metrics.get(f"{own}.{key}") for key in KEPT}

    def has(self, name: str) -> bool:
        """Whether a command that was interrupted afterwards has registered the model."""
        return bool(MlflowClient(self.uri).search_model_versions(f"name = '{name}'"))

    def record(self, name: str, **row: object) -> None:
        self.figures[name] = row
        self.file.write_text(json.dumps(self.figures, indent=1))
        print(
            self.folder.name, name, {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True
        )


def folder_name(name: str, seed: int) -> str:
    """Of a setting and seed."""
    return f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{seed}"


def measure(name: str, setting: Setting, seed: int, folder: Path) -> None:
    """Everything of one setting and seed that is missing."""
    store = Store(folder / folder_name(name, seed))
    forget = listed(setting, store.folder, seed)
    data = setting.data.format(seed=seed)
    training = ("train", "--data", data, "--architecture", setting.network, *setting.train)

    def evaluate(uri: str) -> dict[str, float]:
        fixed = ("--original-uri", "models:/clf/1", "--gold-uri", "models:/gold/1", "--forget", forget)
        return store.measured("--model-uri", uri, *fixed)

    def timed(*arguments: str) -> tuple[int, str, float]:
        start = time.perf_counter()
        code, line = store.command(*arguments)
        return code, line, time.perf_counter() - start

    for kind, version, own_seed in (
        ("clf", "original", seed),
        ("gold", "gold", GOLD + seed),
        ("second", "second gold", SECOND + seed),
    ):
        if version not in store.figures:
            without = () if kind == "clf" else ("--exclude", forget)
            _, _, seconds = timed(*training, "--name", kind, "--seed", str(own_seed), *without)
            store.record(version, seconds=seconds)
    for kind, version in (("clf", "original"), ("gold", "gold"), ("second", "second gold")):
        if "acc_test" not in store.figures[version]:
            store.record(version, **store.figures[version], **evaluate(f"models:/{kind}/1"))
    policy = store.folder / "lenient.yaml"
    policy.write_text(LENIENT)
    judged_by = ("--policy", str(policy)) if setting.network == SMALL_RESNET else ()
    ways = {
        "until": ("unlearn", "--until", "pass", *judged_by),
        "tune": ("tune", "--n-trials", str(setting.trials), "--storage", "sqlite:///optuna.db", *setting.objective),
    }
    for way, arguments in ways.items():
        if way in store.figures:
            continue
        target = ("--model-uri", "models:/clf/1", "--forget", forget, "--register-as", way, "--seed", str(seed))
        code, line, seconds = timed(*arguments, *target) if not store.has(way) else (0, "", float("nan"))
        if code == 3:
            store.record(way, nothing=line, seconds=seconds)
            continue
        mlflow.set_tracking_uri(store.uri)
        os.chdir(store.folder)  # where its artifacts are
        made = MlflowClient().get_model_version(way, "1")
        evidence, _ = read_evidence(Path(download_artifacts(made.source)))
        attempts = evidence.provenance.selection.attempts
        loop = sum(attempt.seconds for attempt in attempts) if way == "until" else evidence.learning.seconds
        row = {
            "seconds": seconds,
            "loop": loop,
            "method": made.tags["unlearn.method"],
            "params": evidence.provenance.params,
        }
        row |= {"share": sum(attempt.share for attempt in attempts)} if way == "until" else {}
        store.record(way, **row, **evaluate(f"models:/{way}/1"))


def bars(name: str, rows: list[dict[str, dict]]) -> Iterator[tuple[str, float, float, bool]]:
    """What is asked of each way: name, value, bound and whether it is kept; means over the seeds of a setting."""

    def mean(version: str, key: str) -> float:
        return statistics.fmean(row[version][key] for row in rows)

    for way in ("until", "tune"):
        if not all("acc_test" in row[way] for row in rows):
            continue
        gap, floor = mean(way, "avg_gap_advantage"), mean("second gold", "avg_gap_advantage")
        bound = max(mean("original", "avg_gap_advantage") / 2, floor)
        yield f"{way}: avg_gap_advantage", gap, bound, gap <= bound
        if name != STRICTEST:
            continue
        share = statistics.fmean(row[way]["loop"] / row["gold"]["seconds"] for row in rows)
        for what, value, most in (
            ("avg_gap_advantage", gap, 0.015),
            ("avg_gap_excess", mean(way, "avg_gap_excess"), 0.015),
            ("acc_forget beside gold's", abs(mean(way, "acc_forget") - mean("gold", "acc_forget")), 0.03),
            ("jsd ÷ the floor", mean(way, "jsd") / mean("second gold", "jsd"), 1.3),
            ("acc_test below gold's", mean("gold", "acc_test") - mean(way, "acc_test"), 0.01),
            ("share of retraining's time", share, 0.35),
        ):
            yield f"{way}: {what}", value, most, value <= most


def table(name: str, rows: list[dict[str, dict]]) -> None:
    """A row a version, means over the seeds with standard deviations in brackets, and what is kept of the bars."""
    print(f"\n**{name}**, {len(rows)} seeds\n")
    print(f"| version | {' | '.join(KEPT)} | registered |\n|---{'|---:' * (len(KEPT) + 1)}|")
    for version in ("original", "gold", "second gold", "until", "tune"):
        made = [row[version] for row in rows if "acc_test" in row.get(version, {})]
        cells = []
        for key in KEPT:
            values = [row[key] for row in made if row[key] is not None]
            spread = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.4f}{spread}" if values else "–")
        print(f"| {version} | {' | '.join(cells)} | {len(made)} of {len(rows)} |")
    for row in rows:
        for way in ("until", "tune"):
            found = row.get(way, {})
            chosen = {
                k: v for k, v in found.get("params", {}).items() if k in ("alpha", "epochs", "lr", "amount", "fraction")
            }
            said = (
                found.get("nothing")
                or f"{found.get('method')} {chosen}, {found.get('loop', 0) / row['gold']['seconds']:.2f} of retraining"
            )
            print(f"- {way}: {said[:300]}")
    for what, value, bound, kept in bars(name, rows):
        print(f"  - {what}: {value:.4f} (≤ {bound:.4f}): {'kept' if kept else 'missed'}")


def main() -> None:
    """Measure what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("folder", type=lambda path: Path(path).resolve())
    parser.add_argument("--only", default="", help="regular expression: only these settings")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    chosen = {name: setting for name, setting in SETTINGS.items() if re.search(args.only, name)}
    if args.what == "run":
        for (name, setting), seed in itertools.product(chosen.items(), range(args.seeds)):
            measure(name, setting, seed, args.folder)
        return
    for name in chosen:
        files = [args.folder / folder_name(name, seed) / "figures.json" for seed in range(args.seeds)]
        rows = [json.loads(file.read_text()) for file in files if file.exists()]
        rows = [row for row in rows if "tune" in row]
        if rows:
            table(name, rows)


if __name__ == "__main__":
    main()
