"""One process's trials, on the template's version."""

import math
from collections.abc import Iterator

import mlflow
import optuna
import pytest
import torch
from stores import copied

from mlflow_unlearn import config
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.session.session import open_session
from mlflow_unlearn.tuning.space import search_space
from mlflow_unlearn.tuning.trials import Objective
from mlflow_unlearn.tuning.winner import choose

SPACE = '{"alpha": [1, 8], "lr": 0.001, "epochs": 1, "prefix": "none"}'


@pytest.fixture(scope="module")
def objective(template, tmp_path_factory) -> Iterator[Objective]:
    folder = tmp_path_factory.mktemp("trials")
    with copied(template, folder / "store") as store, mlflow.start_run() as run:
        options = config.Tune(model_uri="models:/clf/1", forget="random:8%", device="cpu", seed=3)
        session = open_session(store.client, run.info.run_id, options, folder, progress=False)
        space, teacher = search_space(["lotus"], "cnn", ["none"], SPACE), session.teacher()
        original = session.evaluate_original(force=False, teacher=teacher)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        yield Objective(session, study, space, teacher, original, None, options, run.info.run_id)


def test_the_winner_is_made_again_bit_by_bit_or_refused(objective):
    study = objective.study
    study.optimize(objective, n_trials=1)
    [trial] = study.trials
    assert mlflow.get_run(trial.user_attrs["run_id"]).data.metrics["objective"] == trial.value
    made = objective.unlearn(objective.space.config(trial.params))
    assert weights_digest(made.model) == trial.user_attrs["weights_sha256"]
    kept = {"params": trial.params, "distributions": trial.distributions, "value": 0.0}
    study.add_trial(optuna.create_trial(**kept, user_attrs={"weights_sha256": "another"}))
    with pytest.raises(UnlearnError, match="trial 1 ran elsewhere, with another seed or other versions"):
        objective.result(study.trials[1])


def test_a_trial_that_collapses_is_complete_and_infeasible(objective):
    """SSD takes nearly all weights away: an attack finds nothing, and would have made it the winner."""
    space = search_space(["ssd"], "cnn", ["none"], '{"alpha": 0.01, "lam": [0.0001, 0.0002], "prefix": "none"}')
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    arguments = (objective.session, study, space, objective.session.teacher(), objective.original)
    study.optimize(Objective(*arguments, None, objective.options, objective.command_run), n_trials=1)
    [trial] = study.trials
    assert trial.state == optuna.trial.TrialState.COMPLETE and trial.constraints["collapsed"] == 1
    assert trial.value == pytest.approx(math.log(2) + 1)
    with pytest.raises(NothingToUnlearn, match="collapsed was broken by 1"):
        choose(study)


def test_a_useless_model_looks_worse_to_a_pruner_than_any_that_meets_the_constraints(objective):
    session, splits = objective.session, vars(objective.session.splits)
    original = objective.value_during_training(session.module, splits)
    useless = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    assert 0 <= original < 1 <= objective.value_during_training(useless, splits)


def test_an_objective_that_cannot_be_computed_names_others(objective, tmp_path):
    """With a class wholly forgotten no sample of it is retained, as RF-JSD asks for."""
    options = objective.options.model_copy(update={"objective": "rf_jsd_val", "forget": "class:3"})
    session = open_session(objective.session.client, objective.command_run, options, tmp_path, progress=False)
    original = session.evaluate_original(force=False)
    arguments = (session, objective.study, objective.space, session.teacher(), original)
    with pytest.raises(UnlearnError, match=r"objective = 'rf_jsd_val' needs rf_jsd_val, .*: use .*entropy_ks_val"):
        Objective(*arguments, None, options, objective.command_run)
