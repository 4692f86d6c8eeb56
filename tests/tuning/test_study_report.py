"""What a study leaves, of a study made by hand."""

import mlflow
import optuna
import pytest
import yaml

from mlflow_unlearn.tuning.space import TrialConfig
from mlflow_unlearn.tuning.study_report import log, show


@pytest.fixture
def study():
    made = optuna.create_study(study_name="ours")
    for x, constraint in ((0.5, 0.0), (0.25, 0.125), (0.75, -1.0)):
        trial = made.ask()
        trial.suggest_float("x", 0, 1)
        trial.set_constraint("acc_val", constraint)
        made.tell(trial, x)
    made.tell(made.ask(), state=optuna.trial.TrialState.FAIL)
    return made


def test_one_row_per_trial(study, capsys):
    show(study, study.trials[0], "rf_jsd_val")
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert out.startswith("study ours, by rf_jsd_val")
    assert [(row[0], *row[2:]) for row in rows] == [
        ("0 (best)", "0.5000", "met"),
        ("1", "0.2500", "acc_val"),
        ("2", "0.7500", "met"),
        ("3", "–", "fail"),
    ]


def test_artifacts(empty_store, study):
    description = {"objective": "rf_jsd_val", "seed": 7, "rule": "the smallest"}
    with mlflow.start_run() as run:
        log(study, description, study.trials[0], TrialConfig("lotus", "none", {"prefix": 2}))
    uri = f"runs:/{run.info.run_id}/tune"
    record = mlflow.artifacts.load_dict(f"{uri}/study.json")
    assert (record["study"], record["winner"], record["seed"]) == ("ours", 0, 7)
    assert [(trial["state"], trial["broken"]) for trial in record["trials"]] == [
        ("complete", []),
        ("complete", ["acc_val"]),
        ("complete", []),
        ("fail", []),
    ]
    best = mlflow.artifacts.load_text(f"{uri}/best.yaml")
    assert "-P seed=7" in best
    assert yaml.safe_load(best) == {"method": "lotus", "prefix": "none", "params": {"prefix": 2}}
    assert len(mlflow.artifacts.load_text(f"{uri}/trials.csv").splitlines()) == 5


def test_a_study_without_a_winner_has_no_best(empty_store, study):
    with mlflow.start_run() as run:
        log(study, {"objective": "rf_jsd_val", "seed": 7})
    names = {file.path for file in empty_store.client.list_artifacts(run.info.run_id, "tune")}
    assert "tune/study.json" in names and "tune/best.yaml" not in names
