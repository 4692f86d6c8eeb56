"""`tune` without a gold standard on Fashion-MNIST, and how good its winner and its criteria are by that standard.

The setting of ``fashion_mnist.py``, three originals. For each a study of 20 trials with the command's defaults, without
a gold standard; then every trial's model compared with gold, on the test set. Prints the winner beside the published
setting (trial 0), and the rank correlation (Spearman, over the trials) of each criterion that a user could select by
with the distances from gold, which users cannot compute.

    python benchmarks/tune_fashion.py --models FOLDER --seed 0     # also 1 and 2; side by side, one thread each
    python benchmarks/tune_fashion.py tables
    python benchmarks/tune_fashion.py across     # the same criteria over what forget_sets.py has measured

FOLDER contains what ``fashion_mnist.py --save FOLDER`` wrote: ``original_0.pt``, ``gold_0.pt``, …
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import fashion_mnist as fashion
import mlflow
import numpy as np
import torch
from scipy.stats import spearmanr

from mlflow_unlearn import evaluate
from mlflow_unlearn.cli import main as command
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.tuning.trials import Objective

OUT = Path(__file__).with_suffix(".json")
CRITERIA = {
    "rf_jsd_val": lambda m: m["rf_jsd_val"],
    "max(0, mia_auc_val − 0.5)": lambda m: max(0.0, m["mia_auc_val"] - 0.5),
    "abs(mia_excess_val)": lambda m: abs(m["mia_excess_val"]),
    "entropy_ks_val": lambda m: m["entropy_ks_val"],
    "rf_jsd_val + abs(mia_excess_val)": lambda m: m["rf_jsd_val"] + abs(m["mia_excess_val"]),
    "rf_jsd_val + entropy_ks_val": lambda m: m["rf_jsd_val"] + m["entropy_ks_val"],
    "rf_jsd_val + max(0, mia_auc_val − 0.5)": lambda m: m["rf_jsd_val"] + max(0.0, m["mia_auc_val"] - 0.5),
    "acc_forget": lambda m: m["acc_forget"],
}
DISTANCES = ("avg_gap_excess", "avg_gap", "jsd")


def study(seed: int, models: Path, n_trials: int, out: Path, space: str) -> None:
    nets = {}
    for name in ("original", "gold"):
        nets[name] = fashion.fresh_model(0)
        nets[name].load_state_dict(torch.load(models / f"{name}_{seed}.pt"))
        nets[name].eval()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.pytorch.log_model(
            nets["original"], name="m", registered_model_name="fashion", serialization_format="pickle",
            pip_requirements=["torch"],
        )  # fmt: skip
        mlflow.end_run()
        # The objective keeps no weights; here every model is needed afterwards.
        whole = Objective.unlearn

        def keeping(self, setting, **options):
            result = whole(self, setting, **options)
            torch.save(result.model.state_dict(), Path(folder) / f"{weights_digest(result.model)}.pt")
            return result

        Objective.unlearn = keeping
        arguments = ("tune", "--model-uri", "models:/fashion/1", "--data", "python:fashion_mnist:debian_splits")
        arguments += ("--transform", "none", "--forget", "group:split=forget", "--seed", str(seed))
        arguments += ("--n-trials", str(n_trials), "--study", "benchmark", "--space", space)
        try:
            command(list(arguments))
        except SystemExit as end:
            if end.code:
                raise
        client = mlflow.MlflowClient()
        [parent] = client.search_runs(["0"], "tags.`unlearn.command` = 'tune'")
        record = mlflow.artifacts.load_dict(f"runs:/{parent.info.run_id}/tune/study.json")
        sets, _ = fashion.splits(fashion.DEBIAN)
        rows = []
        for trial in record["trials"]:
            if trial["state"] != "complete":
                continue
            model = fashion.fresh_model(0)
            model.load_state_dict(torch.load(Path(folder) / f"{trial['weights_sha256']}.pt"))
            by_gold = evaluate(model.eval(), sets, nets["original"], nets["gold"], seed=seed)
            validated = client.get_run(trial["run_id"]).data.metrics
            rows.append({**{k: trial[k] for k in ("number", "params", "broken")}, "judged": validated, "gold": by_gold})
        before = evaluate(nets["original"], sets, nets["original"], nets["gold"], seed=seed)
        found = json.loads(out.read_text()) if out.exists() else {}
        found[str(seed)] = {"winner": record["winner"], "trials": rows, "original": before, "space": space}
        out.write_text(json.dumps(found, indent=1) + "\n")


def tables(out: Path) -> None:
    found = {int(seed): one for seed, one in json.loads(out.read_text()).items()}
    print("| seed | winner | avg_gap_excess, published | … winner | ratio | avg_gap | … winner | acc_test lost |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    pairs = []
    for seed, one in sorted(found.items()):
        trials = {row["number"]: row for row in one["trials"]}
        published, winner = trials[0]["gold"], trials[one["winner"]]["gold"]
        pairs.append((published["avg_gap_excess"], winner["avg_gap_excess"]))
        params = trials[one["winner"]]["params"].items()
        shown = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in params)
        cells = [f"{value:.4f}" for value in pairs[-1]] + [f"{pairs[-1][1] / pairs[-1][0]:.2f}"]
        cells += [f"{each['avg_gap']:.4f}" for each in (published, winner)]
        cells += [f"{one['original']['acc_test'] - winner['acc_test']:.4f}"]
        print(f"| {seed} | {one['winner']}: {shown} | {' | '.join(cells)} |")
    before, after = np.mean(pairs, axis=0)
    print(f"| mean | | {before:.4f} | {after:.4f} | {after / before:.2f} | | | |\n")
    print(f"| criterion | {' | '.join(DISTANCES)} | its winner's avg_gap_excess ÷ published |")
    print(f"|---|{'---:|' * (len(DISTANCES) + 1)}")
    for name, criterion in CRITERIA.items():
        cells, chosen = [], []
        for distance in DISTANCES:
            each = []
            for one in found.values():
                selected_by = [criterion(row["judged"]) for row in one["trials"]]
                each.append(spearmanr(selected_by, [row["gold"][distance] for row in one["trials"]])[0])
            cells.append(f"{np.mean(each):.2f} ({', '.join(f'{value:.2f}' for value in each)})")
        for one in found.values():
            best = min((row for row in one["trials"] if not row["broken"]), key=lambda row: criterion(row["judged"]))
            chosen.append(best["gold"]["avg_gap_excess"] / one["trials"][0]["gold"]["avg_gap_excess"])
        print(f"| {name} | {' | '.join(cells)} | {np.mean(chosen):.2f} ({', '.join(f'{c:.2f}' for c in chosen)}) |")


def across() -> None:
    """The criteria over the results of ``forget_sets.py``: all methods, five alphas, 1 to 50 % forgotten, test set."""
    kinds = {
        "rf_jsd": lambda m: m["rf_jsd"],
        "abs(mia_excess)": lambda m: abs(m["mia_excess"]),
        "mia_advantage": lambda m: m["mia_advantage"],
        "rf_jsd + abs(mia_excess)": lambda m: m["rf_jsd"] + abs(m["mia_excess"]),
        "rf_jsd + mia_advantage": lambda m: m["rf_jsd"] + m["mia_advantage"],
    }
    distances = ("avg_gap_advantage", "avg_gap_excess", "jsd")
    print(f"| data | criterion | {' | '.join(distances)} | rows |\n|---|---{'|---:' * (len(distances) + 1)}|")
    for data in ("digits", "fashion"):
        groups: dict[str, list[dict[str, float]]] = {}
        for key, row in json.loads((OUT.parent / f"forget_sets_{data}.json").read_text()).items():
            share, method, seed = key.split("/")
            if "%" in share and method not in ("original", "retrain", "floor") and "mia_advantage" in row:
                groups.setdefault(f"{share}/{seed}", []).append(row)
        for name, criterion in kinds.items():
            cells = []
            for distance in distances:
                pairs = [
                    [(criterion(row), row[distance]) for row in rows if distance in row] for rows in groups.values()
                ]
                cells.append(np.mean([spearmanr(*zip(*each, strict=True))[0] for each in pairs if len(each) > 4]))
            shown = " | ".join(f"{cell:.2f}" for cell in cells)
            print(f"| {data} | {name} | {shown} | {sum(map(len, groups.values()))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="study", choices=["study", "tables", "across"])
    parser.add_argument("--space", default="", help="as the command's; default: the methods' own")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if args.what == "tables":
        tables(args.out.resolve())
    elif args.what == "across":
        across()
    else:
        study(args.seed, args.models.resolve(), args.trials, args.out.resolve(), args.space)


if __name__ == "__main__":
    main()
