"""One process's trials, on the template's version."""

import math
from collections.abc import Iterator
from dataclasses import replace

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
from mlflow_unlearn.tuning.trials import Objective, _Best, weight_change
from mlflow_unlearn.tuning.winner import Candidate, choose

SPACE = {"alpha": [1, 8], "lr": 0.001, "epochs": 1, "prefix": "none"}


@pytest.fixture(scope="module")
def objective(template, tmp_path_factory) -> Iterator[Objective]:
    folder = tmp_path_factory.mktemp("trials")
    with copied(template, folder / "store") as store, mlflow.start_run() as run:
        options = config.Tune(model_uri="models:/clf/1", forget="random:8%", device="cpu", seed=3)
        session = open_session(store.client, options, folder, progress=False)
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


class Unread(torch.utils.data.Dataset):
    """A test set that is there, and that nobody may read."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        raise AssertionError("the test set was read")


def test_selection_reads_no_test_set(objective):
    """Trials, their pruner and the winner's rule: with a dataset that raises when it is read."""
    session = objective.session
    sealed = replace(session, splits=replace(session.splits, test=Unread()))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    without = {split: outputs for split, outputs in objective.original.items() if split != "test"}
    arguments = (sealed, study, objective.space, sealed.teacher(), without)
    blind = Objective(*arguments, None, objective.options, objective.command_run)
    study.optimize(blind, n_trials=2)
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 2
    assert blind.value_during_training(session.module, vars(sealed.splits)) >= 0
    assert blind.result(choose(study)).model is not None
    with pytest.raises(AssertionError, match="the test set was read"):
        sealed.evaluate_original(force=False)


def test_the_winner_is_kept_or_made_again():
    """Whichever of this process's trials would win so far: one that is overtaken is given up."""
    best = _Best()
    for number, (value, error, change) in enumerate([(0.2, 0.05, 0.3), (0.22, 0.05, 0.2), (0.1, 0.05, 0.9)]):
        best.add(Candidate(value, number, error, change), f"result {number}")
        assert (best.number, best.result) == (number, f"result {number}")
    best.add(Candidate(0.11, 3, 0.05, 0.95), "result 3")
    assert (best.number, best.result) == (2, "result 2")


def test_how_far_weights_moved():
    """‖(3, 4)‖ / ‖(0, 10)‖ over both parameters."""
    before, after = (torch.nn.Linear(1, 1) for _ in range(2))
    for model, values in ((before, (0.0, 10.0)), (after, (3.0, 14.0))):
        for parameter, value in zip(model.parameters(), values, strict=True):
            torch.nn.init.constant_(parameter, value)
    assert weight_change(before, after) == pytest.approx(0.5) and weight_change(before, before) == 0


def test_a_trial_that_collapses_is_complete_and_infeasible(objective):
    """SSD takes nearly all weights away: an attack finds nothing, and would have made it the winner."""
    space = search_space(["ssd"], "cnn", ["none"], {"alpha": 0.01, "lam": [0.0001, 0.0002], "prefix": "none"})
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
    session = open_session(objective.session.client, options, tmp_path, progress=False)
    original = session.evaluate_original(force=False)
    arguments = (session, objective.study, objective.space, session.teacher(), original)
    with pytest.raises(UnlearnError, match=r"objective=rf_jsd_val needs rf_jsd_val, .*: use .*entropy_ks_val"):
        Objective(*arguments, None, options, objective.command_run)
