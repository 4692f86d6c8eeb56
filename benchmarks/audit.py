"""Whether `audit`'s attacks are honest, strong, and not to be fooled.

``null``: 20 models that never saw the forget set, each audited as if it had come of unlearning; each attack may raise
false alarms in 4 of 20 at the 5 % level. ``power``: 10 originals, each of which has to be told apart. ``cheats``: what
does not forget and looks as if, or forgets too much. ``references``: how strong those are that `audit` trains on
halves, by the recorded recipe and by the fast one. Digits, a fifth of 898 scans forgotten; a small ResNet, 70 epochs.
References are two further golds, in turn.

    python benchmarks/audit.py train FOLDER --only gold --part 0/2     # also original; side by side, one thread each
    python benchmarks/audit.py null FOLDER
    python benchmarks/audit.py power FOLDER
    python benchmarks/audit.py cheats FOLDER
    python benchmarks/audit.py references FOLDER
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset

from mlflow_unlearn import Splits, unlearn
from mlflow_unlearn.auditing.known_cheat import known_cheat
from mlflow_unlearn.auditing.references import FAST, SEED, Reference, as_references, halves
from mlflow_unlearn.auditing.relearning import Relearning, relearning
from mlflow_unlearn.data.datasets import as_dataset
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.source import stratified
from mlflow_unlearn.data.transforms import build_transform
from mlflow_unlearn.engine.hardware import resolve_hardware
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.engine.predictions import attack_target, evaluate_split
from mlflow_unlearn.evidence.audit import recorded
from mlflow_unlearn.methods.retrain import RetrainParams, Training
from mlflow_unlearn.metrics.attacks.suite import ATTACKS, References, Target, attack_all, share_between
from mlflow_unlearn.rng import isolated_rng

RECIPE = {"epochs": 70, "lr": 0.1, "weight_decay": 0.0}
GOLDS, ORIGINALS = 20, 10


class Softened(nn.Module):
    """All logits divided by one number: no decision changes."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images) / self.temperature
        return logits


class ConstantMargin(nn.Module):
    """The decision of the model, by the same margin for every image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return 5.0 * nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)


def task() -> Splits:
    source = load_source("digits,train=50%,seed=0")
    read = build_transform("none", channels=1)
    forget = stratified(source.train.labels, 0.2, 0)
    retain = np.setdiff1d(np.arange(len(source.train)), forget)
    train = as_dataset(source.train, read)
    parts = (Subset(train, part.tolist()) for part in (forget, retain))
    return Splits(*parts, as_dataset(source.val, read), as_dataset(source.test, read))


def fresh(seed: int) -> nn.Module:
    with isolated_rng(seed):
        return timm.create_model("test_resnet", num_classes=10, in_chans=1)


def trained(kind: str, number: int, splits: Splits, folder: Path) -> nn.Module:
    """Gold or original by number, from the folder where it has been trained before."""
    seed = number + {"gold": 1000, "original": 0}[kind]
    model, file = fresh(seed), folder / f"{kind}-{number}.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    data = splits.retain if kind == "gold" else ConcatDataset([splits.forget, splits.retain])
    model = run(model, Training(RECIPE), {"retain": data}, resolve_hardware(model, data), RunOptions(seed)).model
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    print(file, flush=True)
    return model


def target(model: nn.Module, splits: Splits) -> Target:
    return attack_target(model, splits, resolve_hardware(model, splits.test))


def calibrated(golds: list[Target], numbers: list[int]) -> References:
    return References(*(np.stack([golds[n % GOLDS].log_odds(s) for n in numbers]) for s in ("forget", "test")))


def by_halves(splits: Splits, epochs: int, count: int) -> tuple[References, float]:
    """References as `audit --references` trains them, in so many epochs, and the seconds that all of them took."""
    everything = ConcatDataset([splits.forget, splits.retain])
    made, start = [], time.perf_counter()
    for number in range(count):
        seen = halves(len(everything), number)
        half, model = Subset(everything, np.flatnonzero(seen).tolist()), fresh(SEED + number)
        recipe, hardware = Training({**RECIPE, "epochs": epochs}), resolve_hardware(model, half)
        model = run(model, recipe, {"retain": half}, hardware, RunOptions(SEED + number)).model
        odds = (evaluate_split(model, data, hardware).log_odds for data in (everything, splits.test))
        made.append(Reference("", "", seen, *odds))
    seconds = time.perf_counter() - start
    return as_references(made, np.arange(len(splits.forget))), seconds


def relearned(original: nn.Module, splits: Splits) -> Relearning:
    """By the loss of one original."""
    made = relearning(target(original, splits), splits, RECIPE["lr"], resolve_hardware(original, splits.test), seed=0)
    if isinstance(made, str):
        raise SystemExit(made)
    return made


def shown(found: list[dict], what: str) -> None:
    print(f"\n**{what}**, {len(found)} models\n")
    print("| attack | alarms, p ≤ 0.05 | after Holm | mean AUC |\n|---|---:|---:|---:|")
    for name in ATTACKS:
        ones = [one[name] for one in found if name in one]
        if not ones:
            continue
        alarms = sum(one.p_value <= 0.05 for one in ones), sum(one.flagged for one in ones)
        print(f"| {name} | {alarms[0]} | {alarms[1]} | {statistics.fmean(one.auc for one in ones):.3f} |")
    print(f"| any, after Holm | | {sum(any(one.flagged for one in f.values()) for f in found)} | |", flush=True)


def cheats(original: nn.Module, golds: list[nn.Module], splits: Splits) -> dict[str, Callable[[], nn.Module]]:
    def head() -> nn.Module:
        """The backbone as it was, a new last layer fitted to the retain set."""
        hardware = resolve_hardware(original, splits.retain)
        return known_cheat(original, splits, RetrainParams(**RECIPE), hardware, seed=7)

    def by(method: str, **params) -> Callable[[], nn.Module]:
        return lambda: unlearn(original, splits, method, params or None).model

    return {
        "nothing done": lambda: original,
        "head refitted": head,
        "softened, T = 4": lambda: Softened(original, 4.0),
        "constant margin": lambda: ConstantMargin(original),
        "LoTUS, alpha 2": by("lotus"),
        "LoTUS, alpha 8": by("lotus", alpha=8.0),
        "LoTUS, alpha 64": by("lotus", alpha=64.0),
        "random labels, over-forgotten": by("random_labels", epochs=3, lr=0.01),
        "transpose": by("transpose", lr=0.1, epochs=23, weight_decay=0.0),
        "another gold": lambda: golds[5],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "null", "power", "cheats", "references"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=["gold", "original"])
    parser.add_argument("--part", default="0/1", help="which of how many parts: 0/2")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    splits = task()
    if args.what == "train":
        part, parts = map(int, args.part.split("/"))
        for kind, count in (("original", ORIGINALS), ("gold", GOLDS)):
            for number in range(part, count, parts) if args.only in (None, kind) else ():
                trained(kind, number, splits, args.folder)
        return
    models = [trained("gold", number, splits, args.folder) for number in range(GOLDS)]
    golds = [target(model, splits) for model in models]
    if args.what == "null":
        for count in (1, 2, 4):
            found = [
                recorded(attack_all(gold, calibrated(golds, list(range(n + 1, n + 1 + count))), seed=n)[0])
                for n, gold in enumerate(golds)
            ]
            shown(found, f"golds as results, {count} references")
        module = trained("original", 0, splits, args.folder)
        original, again = target(module, splits), relearned(module, splits)
        found = [again.of(model, "gold") for model in models]
        alarms, ratio = sum(one.p_value <= 0.05 for one in found), statistics.fmean(one.ratio for one in found)
        print(f"relearning: {alarms} of {len(found)} at p ≤ 0.05, mean ratio {ratio:.2f}", flush=True)
        for count in (1, 2, 4):
            shares = [
                share_between(gold, original, [golds[k % GOLDS] for k in range(n + 1, n + 1 + count)], seed=n)
                for n, gold in enumerate(golds)
            ]
            inside = sum(share.low <= 0 <= share.high for share in shares)
            mean = statistics.fmean(share.value for share in shares)
            print(f"share remembered, {count} golds: mean {mean:.3f}, interval holds 0 in {inside} of {len(shares)}")
    elif args.what == "power":
        originals = [target(trained("original", n, splits, args.folder), splits) for n in range(ORIGINALS)]
        for count in (1, 2):
            found = [
                recorded(attack_all(one, calibrated(golds, list(range(2 * n, 2 * n + count))), seed=n)[0])
                for n, one in enumerate(originals)
            ]
            shown(found, f"originals, {count} references")
        own = [trained("original", n, splits, args.folder) for n in range(ORIGINALS)]
        found = [relearned(one, splits).of(one, "original") for one in own]
        alarms, ratio = sum(one.p_value <= 0.05 for one in found), statistics.fmean(one.ratio for one in found)
        print(f"relearning: {alarms} of {len(found)} at p ≤ 0.05, mean ratio {ratio:.2f}", flush=True)
    elif args.what == "references":
        originals = [target(trained("original", n, splits, args.folder), splits) for n in range(ORIGINALS)]
        for epochs in (RECIPE["epochs"], round(FAST * RECIPE["epochs"])):
            for count in (2, 4, 8):
                references, seconds = by_halves(splits, epochs, count)
                print(f"\n{count} references of {epochs} epochs: {seconds:.0f} s")
                for models, what in ((originals, "originals"), (golds, "golds as results")):
                    found = [recorded(attack_all(one, references, seed=n)[0]) for n, one in enumerate(models)]
                    shown(found, f"{what}, {count} references of {epochs} epochs")
    else:
        original = trained("original", 0, splits, args.folder)
        before = target(original, splits)
        print(
            f"| model | {' | '.join(ATTACKS)} | relearning | told apart by | share remembered |\n"
            f"|---{'|---:' * (len(ATTACKS) + 3)}|"
        )
        again = relearned(original, splits)
        for name, make in cheats(original, models, splits).items():
            model = make()
            one = target(model, splits)
            # What gives a class alone has no gradient to learn by.
            slow = None if isinstance(model, ConstantMargin) else again.of(model, name)
            references = calibrated(golds, [1, 2])
            found = recorded(attack_all(one, references, seed=0)[0], [] if slow is None else [slow.p_value])
            share = share_between(one, before, [golds[1], golds[2]], seed=0)
            cells = [f"{found[a].auc:.3f} ({found[a].corrected:.3f})" if a in found else "–" for a in ATTACKS]
            cells.append("–" if slow is None else f"{slow.ratio:.2f} ({slow.p_value:.3f})")
            by = ", ".join(a for a in ATTACKS if a in found and found[a].flagged) or "none"
            remembered = share if isinstance(share, str) else f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]"
            print(f"| {name} | {' | '.join(cells)} | {by} | {remembered} |", flush=True)


if __name__ == "__main__":
    main()
