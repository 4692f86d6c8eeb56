"""Runs that a comparison makes once and finds again."""

from dataclasses import replace

import mlflow
import pytest

from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import get_method

PARAMS = get_method("finetune")({"epochs": 1}).params.model_dump(mode="json")


@pytest.fixture(scope="module")
def gold(runner):
    return runner.gold(1000)


def number_of_runs() -> int:
    return len(mlflow.search_runs(output_format="list"))


def test_a_gold_is_loaded_from_its_run(runner, gold):
    before = number_of_runs()
    again = runner.gold(1000)
    assert number_of_runs() == before
    assert (again.digest, again.seconds) == (gold.digest, gold.seconds)
    assert again.digest == weights_digest(again.module) != weights_digest(runner.session.module)


def test_a_trial_is_reused_and_its_model_made_again(runner, gold):
    trial = runner.trial("finetune", PARAMS, 3, gold)
    before = number_of_runs()
    assert runner.trial("finetune", PARAMS, 3, gold) == trial
    assert number_of_runs() == before
    assert trial.moved and trial.metrics["jsd"] > 0 and "acc_val" in trial.selection_metrics
    assert weights_digest(runner.unlearned(trial).model) == trial.digest
    with pytest.raises(UnlearnError, match="finetune with seed 3 ran elsewhere or with other versions"):
        runner.unlearned(replace(trial, digest="another"))


def test_the_gold_is_its_own_reference(runner, gold):
    measured = runner.measure(gold.outputs, gold, 0)
    assert measured["jsd"] == measured["avg_gap"] == 0
