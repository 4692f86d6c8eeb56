"""A frozen prefix against training all layers: LoTUS from several split points, over forget sets, networks and seeds.

Digits (20 % of scikit-learn's scans as training set): ResNet18 with the small stem, and a ViT of eight blocks.
Forgotten are a random 10 %, one class, and the neighbouring rows 0 to 179, which are mostly scans of one or two hands.
Beside the metrics: CPU seconds of the unlearning, fractions of parameters, gradient and forward time behind each split
point, the steps in which the forgotten samples are relearned, and what a linear probe finds in the features. Every row
is written to prefix_digits.json as soon as it is measured; what is there is not measured again.

    OMP_NUM_THREADS=1 python benchmarks/prefix.py             # or: prefix.py fashion, one seed of Fashion-MNIST
    python benchmarks/prefix.py tables                        # the tables of docs/prefix.md from the JSON files
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import forget_sets
import numpy as np
import pandas as pd
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset

from mlflow_unlearn import Splits, evaluate, unlearn
from mlflow_unlearn.data.batching import gather
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.source import stratified
from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.engine.architectures import reinitialised_copy
from mlflow_unlearn.engine.frozen_prefix import depth_behind, split_at
from mlflow_unlearn.engine.hardware import resolve_hardware
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.engine.method import all_indices, run_epochs
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.methods import OptimizerSpec, Phase, Plan, Workspace
from mlflow_unlearn.methods.retrain import Training, cross_entropy
from mlflow_unlearn.rng import isolated_rng

ALPHAS = (2.0, 8.0)
DECIDING = ("avg_gap_excess", "jsd", "acc_test")
SHARES = ("depth", "parameters", "gradient", "forward")
CANDIDATES = [(share, least) for share in SHARES for least in (0.25, 0.5)]
KEPT = ("avg_gap_excess", "avg_gap", "jsd", "acc_forget", "acc_retain", "acc_test", "mia_excess", "mia_auc")
MOST_STEPS = 100


class AdamTrain(Training):
    """`Training` with AdamW: a ViT does not learn from 359 scans with SGD."""

    def plan(self, workspace: Workspace) -> Plan:
        p = self.params
        rule = OptimizerSpec("adamw", p.lr, p.weight_decay, one_cycle_epochs=p.epochs)
        phase = Phase(cross_entropy, rule, p.batch_size, retain=all_indices(workspace.labels("retain")))
        return run_epochs(workspace, phase, p.epochs)


class ResNet(forget_sets.Digits):
    method, cuts, head = Training, ("layer2", "layer3", "layer4"), "fc"
    lotus = {"lr": 1e-4, "epochs": 10, "batch_size": 32}

    def forget_sets(self) -> dict[str, np.ndarray]:
        labels = labels_of(self.train).numpy()
        rows = np.array([int(name.removeprefix("digits/")) for name in load_source("digits,train=20%").train.ids])
        group = np.flatnonzero(rows < 180)
        return {"10%": stratified(labels, 0.1, 0), "class": np.flatnonzero(labels == 3), "group": group}


class ViT(ResNet):
    method, recipe = AdamTrain, {"epochs": 30, "lr": 0.002, "batch_size": 16}
    cuts, head = ("blocks.2", "blocks.4", "blocks.6"), "head"

    def fresh(self) -> nn.Module:
        model = reinitialised_copy(
            timm.create_model(
                "vit_tiny_patch16_224",
                num_classes=10,
                **{"in_chans": 1, "img_size": 8, "patch_size": 2, "embed_dim": 64, "depth": 8, "num_heads": 2},
                global_pool="avg",
            )
        )
        nn.init.normal_(model.pos_embed, std=0.2)
        return model


class Fashion(forget_sets.Fashion):
    method, cuts, head = Training, ("layer2", "layer3", "layer4"), "fc"
    lotus = {"lr": 1e-4, "epochs": 10, "batch_size": 128}

    def forget_sets(self) -> dict[str, np.ndarray]:
        labels = labels_of(self.train).numpy()
        return {"10%": stratified(labels, 0.1, 0), "class": np.flatnonzero(labels == 6)}


NETWORKS = {"digits": {"resnet18": ResNet, "vit": ViT}, "fashion": {"resnet18": Fashion}}


def trained(task, dataset: Dataset, seed: int, path: Path) -> nn.Module:
    """A model trained on ``dataset``, or the one whose weights are stored at ``path``."""
    with isolated_rng(seed):
        model = task.fresh()
    if path.exists():
        model.load_state_dict(torch.load(path))
        return model.eval()
    hardware = resolve_hardware(model, dataset)
    model = run(model, task.method(task.recipe), {"retain": dataset}, hardware, RunOptions(seed)).model
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model


def tensors(dataset: Dataset) -> tuple[Tensor, Tensor]:
    images, labels = gather(dataset, range(len(dataset)))
    return images, labels.long()


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(images), labels)


def relearned_after(model: nn.Module, images: Tensor, labels: Tensor, target: float) -> int:
    """Steps of Adam (2e-5, all forgotten samples in each step) until their loss is ``target`` again; at most 100."""
    student = copy.deepcopy(model).eval()
    rule = torch.optim.Adam(student.parameters(), 2e-5)
    for step in range(MOST_STEPS):
        loss = loss_of(student, images, labels)
        if loss.item() <= target:
            return step
        rule.zero_grad()
        loss.backward()
        rule.step()
    return MOST_STEPS


@torch.no_grad()
def features(model: nn.Module, name: str, images: Tensor) -> np.ndarray:
    """What arrives at module ``name``, averaged over positions, ``[N, D]``."""
    seen = split_at(model, name).frozen_layers.eval()(images)
    return (seen.flatten(2).mean(2) if seen.ndim == 4 else seen.mean(1) if seen.ndim == 3 else seen).numpy()


def probe(read: Callable[[Tensor], np.ndarray], sets: dict[str, tuple[Tensor, Tensor]], forgotten: int | None) -> float:
    """How well a linear probe on features detects what was forgotten.

    Of single samples: AUC on forgotten against test samples of a probe trained on retained against validation
    samples. Of a class: its recall on the test set, of a probe of all classes trained on the validation set.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=300))
    known = {role: read(sets[role][0]) for role in ("retain", "val", "forget", "test")}
    if forgotten is not None:
        model.fit(known["val"], sets["val"][1])
        return float((model.predict(known["test"][sets["test"][1] == forgotten]) == forgotten).mean())
    model.fit(np.concatenate([known["retain"], known["val"]]), _members(known["retain"], known["val"]))
    scores = model.decision_function(np.concatenate([known["forget"], known["test"]]))
    return float(roc_auc_score(_members(known["forget"], known["test"]), scores))


def _members(ours: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.arange(len(ours) + len(others)) < len(ours)


def gradient_share(model: nn.Module, name: str, images: Tensor, labels: Tensor) -> float:
    """Fraction of the squared gradient norm of the forget loss behind the split point, at the original's weights."""
    student = copy.deepcopy(model).eval()
    loss_of(student, images, labels).backward()
    square = lambda module: sum(p.grad.square().sum().item() for p in module.parameters())  # noqa: E731
    return square(split_at(student, name).trainable_head) / square(student)


def forward_share(model: nn.Module, name: str, images: Tensor) -> float:
    """Fraction of the CPU time of a forward pass behind the split point: the smallest of five."""
    parts = split_at(model, name)
    with torch.no_grad():
        inner = parts.frozen_layers(images)

        def seconds(module: nn.Module, x: Tensor) -> float:
            start = time.process_time()
            module(x)
            return time.process_time() - start

        before = min(seconds(parts.frozen_layers, images) for _ in range(5))
        behind = min(seconds(parts.trainable_head, inner) for _ in range(5))
    return behind / (before + behind)


def measurements(task, original: nn.Module, gold: nn.Module, sets: dict, forgotten: int | None, target: float) -> dict:
    """Measurements of the split points before any unlearning, and the two references of probe and relearning."""
    images, labels = sets["forget"]
    some = sets["test"][0][:64]
    row = {"relearned": {"gold": relearned_after(gold, images, labels, target)}, "probe": {}}
    for name in (*task.cuts, task.head):
        for kind, model in (("original", original), ("gold", gold)):
            row["probe"][f"{kind} {name}"] = probe(lambda x, m=model, n=name: features(m, n, x), sets, forgotten)
    total = sum(p.numel() for p in original.parameters())
    row["parameters"] = {
        n: sum(p.numel() for p in split_at(original, n).trainable_head.parameters()) / total for n in task.cuts
    }
    row["gradient"] = {name: gradient_share(original, name, images, labels) for name in task.cuts}
    row["forward"] = {name: forward_share(original, name, some) for name in task.cuts}
    return row


def cost(task, data: Splits, original: nn.Module) -> dict[str, float]:
    """CPU seconds of the unlearning behind each split point, minimum of three, interleaved.

    As the command measures it: the original has been measured before, and its outputs are known.
    """
    hardware = resolve_hardware(original, data.retain)
    found: dict[str, list[float]] = {name: [] for name in ("none", *task.cuts)}
    for _ in range(3):
        for name, seconds in found.items():
            prefix = None if name == "none" else name
            teacher = Teacher(copy.deepcopy(original), vars(data), hardware, prefix=prefix)
            evaluate_splits(original, data, hardware, teacher=teacher)
            start = time.process_time()
            unlearn(original, data, "lotus", {**task.lotus, "alpha": 8.0}, teacher=teacher)
            seconds.append(time.process_time() - start)
    return {name: min(seconds) for name, seconds in found.items()}


def measure(what: str, weights: Path) -> None:
    store = forget_sets.Store(f"prefix_{what}")
    for network, kind_of_task in NETWORKS[what].items():
        task = kind_of_task()
        folder = weights / f"{what}_{network}"
        for seed in task.seeds:
            for kind, forget in task.forget_sets().items():
                wanted = [(alpha, name) for alpha in ALPHAS for name in ("none", *task.cuts)]
                keys = {pair: f"{network}/{kind}/{seed}/alpha={pair[0]:g}/{pair[1]}" for pair in wanted}
                facts_key = f"{network}/{kind}/{seed}/facts"
                if all(key in store.rows for key in (*keys.values(), facts_key, f"{network}/cost")):
                    continue
                retain = np.setdiff1d(np.arange(len(task.train)), forget)
                data = Splits(
                    Subset(task.train, forget.tolist()), Subset(task.train, retain.tolist()), task.val, task.test
                )
                original = trained(task, ConcatDataset([task.train]), seed, folder / f"original_{seed}.pt")
                gold = trained(task, data.retain, seed + 1000, folder / f"{kind}_{seed + 1000}.pt")
                sets = {role: tensors(getattr(data, role)) for role in ("forget", "retain", "val", "test")}
                with torch.no_grad():
                    target = loss_of(original, *sets["forget"]).item()
                forgotten = int(sets["forget"][1][0]) if kind == "class" else None
                if facts_key not in store.rows:
                    store.add(facts_key, measurements(task, original, gold, sets, forgotten, target))
                for (alpha, name), key in keys.items():
                    if key in store.rows:
                        continue
                    start = time.process_time()
                    result = unlearn(original, data, "lotus", {**task.lotus, "alpha": alpha}, seed, prefix=name)
                    seconds = time.process_time() - start
                    found = evaluate(result.model, data, original=original, gold=gold, seed=seed)
                    row = {key: found[key] for key in KEPT if key in found} | {"seconds": seconds}
                    row["relearned"] = relearned_after(result.model, *sets["forget"], target)
                    read = lambda x, m=result.model, n=task.head: features(m, n, x)  # noqa: E731
                    row["probe"] = probe(read, sets, forgotten)
                    store.add(key, row)
                if kind == "10%" and seed == 0 and f"{network}/cost" not in store.rows:
                    store.add(f"{network}/cost", cost(task, data, original))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*NETWORKS, "tables"], nargs="?", default="digits")
    parser.add_argument("--weights", type=Path, default=Path("forget_sets_weights"), help="folder of trained models")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.what == "tables":
        tables()
        return
    start, cpu = time.perf_counter(), time.process_time()
    measure(args.what, args.weights)
    minutes = (time.perf_counter() - start) / 60
    print(
        f"{minutes:.1f} minutes, {(time.process_time() - cpu) / 60:.1f} CPU minutes, {torch.get_num_threads()} threads"
    )


def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """All unlearnings with their relative CPU time, and what was measured of split points and references."""
    runs, known = [], []
    for what, tasks in NETWORKS.items():
        depths = {}
        for network, kind_of_task in tasks.items():
            model = kind_of_task.fresh(None)
            depths[network] = {name: depth_behind(model, name) for name in kind_of_task.cuts}
        for key, row in forget_sets.Store(f"prefix_{what}").rows.items():
            network, kind, *more = key.split("/")
            if not more:
                continue
            seed, rest, *name = more
            place = {"network": f"{network}, {what}", "kind": kind, "seed": seed}
            if name:
                runs.append({**place, "alpha": rest.removeprefix("alpha="), "cut": name[0], **row})
                continue
            known.append({**place, "model": "retrained", "cut": "", "relearned": row["relearned"]["gold"]})
            known += [
                {**place, "model": "retrained" if model == "gold" else model, "cut": cut_, "probe": value}
                for (model, cut_), value in ((key.split(" "), value) for key, value in row["probe"].items())
            ]
            known += [
                {
                    **place,
                    "model": "cut",
                    "cut": name,
                    "depth": depth,
                    **{share: row[share][name] for share in SHARES[1:]},
                }
                for name, depth in depths[network].items()
            ]
    found = pd.DataFrame(runs)
    setting = ["network", "kind", "seed", "alpha"]
    plain = found[found.cut == "none"].set_index(setting)
    for column in (*DECIDING, "seconds"):
        found[f"plain {column}"] = found.set_index(setting).index.map(plain[column])
    found["cost"] = found["seconds"] / found["plain seconds"]
    return found, pd.DataFrame(known)


def spread(values: pd.Series) -> str:
    """Mean, and standard deviation over seeds."""
    digits = 0 if values.name == "relearned" else 3
    deviation = f" ({values.std():.{digits}f})".replace("(0.", "(.") if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}"


def show(title: str, rows: pd.DataFrame, index: list[str], values: list[str]) -> None:
    shown = rows.pivot_table(index=index, columns="kind", values=values, aggfunc=spread, sort=False)
    shown = shown[[(value, kind) for value in values for kind in shown.columns.levels[1] if (value, kind) in shown]]
    lines(
        title, [*index, *(f"{value} {kind}" for value, kind in shown.columns)], shown.reset_index().to_numpy().tolist()
    )


def lines(title: str, header: list[str], rows: list[list[object]]) -> None:
    print(f"\n**{title}**\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def rules(runs: pd.DataFrame, known: pd.DataFrame) -> list[list[object]]:
    """Each rule's choice in each setting, against all layers: mean differences, cost, and how often it is not worse."""
    cuts = known[known.model == "cut"]
    chosen = {f"last with {least:.0%} of the {share}": cuts[cuts[share] >= least] for share, least in CANDIDATES}
    probes = known[(known.model == "original") & known.cut.isin(cuts.cut.unique())]
    order = (probes.probe - 0.5).abs().sort_values(ascending=False).index
    chosen["last with 25% of the depth, none for a whole class"] = cuts[(cuts.depth >= 0.25) & (cuts.kind != "class")]
    chosen["least separable forget set"] = probes.loc[order]
    rows = []
    for name, candidates in chosen.items():
        # The last of those that are left in each setting; none where none is left.
        picked = candidates.groupby(["network", "kind", "seed"]).cut.last()
        for network, mine in runs.groupby("network", sort=False):
            wanted = pd.Series(mine.set_index(["network", "kind", "seed"]).index.map(picked), index=mine.index)
            mine = mine[mine.cut == wanted.fillna("none")]
            change = pd.DataFrame({key: mine[key] - mine[f"plain {key}"] for key in DECIDING})
            fine = (change.avg_gap_excess <= 0) & (change.jsd <= 0) & (change.acc_test >= 0)
            shown = [f"{change[key].mean():+.4f} ({change[key].std():.4f})" for key in DECIDING]
            counts = ", ".join(f"{cut_} {n}" for cut_, n in mine.cut.value_counts().items())
            rows.append([name, network, counts, *shown, f"{mine.cost.mean():.2f}", f"{fine.sum()} of {len(fine)}"])
    return rows


def tables() -> None:
    runs, known = frames()
    for network, mine in runs.groupby("network", sort=False):
        facts_ = known[known.network == network]
        show(network, mine.sort_values(["alpha", "cut"]), ["alpha", "cut"], list(DECIDING))
        show("CPU seconds relative to all layers", mine, ["alpha", "cut"], ["cost"])
        show("shares behind the cut", facts_[facts_.model == "cut"], ["cut"], list(SHARES))
        show("learned again", mine[mine.alpha == "8"], ["cut"], ["relearned", "probe"])
        show("by the retrained model", facts_[facts_.relearned.notna()], ["model"], ["relearned"])
        show("what a probe sees", facts_[facts_.probe.notna()], ["cut", "model"], ["probe"])
    for what in NETWORKS:
        for key, row in forget_sets.Store(f"prefix_{what}").rows.items():
            if key.endswith("/cost"):
                shown = [f"{value:.2f} ({value / row['none']:.2f})" for value in row.values()]
                lines(f"CPU seconds of the unlearning alone (relative), {what}", [key, *row], [["", *shown]])
    header = ["rule", "network", "chosen", *DECIDING, "seconds", "no worse in all three"]
    lines("rules, difference to all layers", header, rules(runs, known))


if __name__ == "__main__":
    main()
