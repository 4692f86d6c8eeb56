"""Tuning one method within a comparison, on the toy version."""

from dataclasses import replace

import mlflow
import pytest
from torch.utils.data import Dataset

from mlflow_unlearn.comparison.tuned import check_tunable, tune_method
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.metrics.suite import Metrics
from mlflow_unlearn.tuning.space import search_space


class Unread(Dataset):
    """A test set that is there, and that nobody may read."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        raise AssertionError("the test set was read")


@pytest.fixture
def blind(runner, monkeypatch):
    """The comparison once it has measured the original, with its test set sealed."""
    session = runner.session
    sealed = replace(session, splits=replace(session.splits, test=Unread(len(session.splits.test))))
    monkeypatch.setattr(runner, "session", sealed)
    monkeypatch.setattr(runner, "teacher", sealed.teacher())
    return runner


def complete(method: str, **params) -> dict:
    return get_method(method)(params, family="cnn").params.model_dump(mode="json")


def runs_of(method: str) -> dict:
    """By name."""
    found = mlflow.search_runs(filter_string=f"tags.`unlearn.method` = '{method}'", output_format="list")
    return {run.info.run_name: run for run in found}


@pytest.mark.slow
def test_the_own_setting_is_the_first_trial_and_what_is_finished_is_taken_over(blind):
    """β = 0.2 is outside of the space (0.5 to 0.9999) and tried all the same; neither test set nor gold is read."""
    own = complete("neggrad_plus", epochs=1, beta=0.2)
    tuned = tune_method(blind, "neggrad_plus", own, 3, seed=4)
    runs = runs_of("neggrad_plus")
    assert sorted(runs) == [f"neggrad_plus, trial {number}" for number in range(3)]
    betas = [float(run.data.params["unlearn.params.beta"]) for _, run in sorted(runs.items())]
    assert betas[0] == 0.2 and len(set(betas)) == 3 and min(betas[1:]) >= 0.5
    for run in runs.values():
        assert run.data.params["unlearn.seed"] == "4"
        assert {"rf_jsd_val", "mia_advantage_val"} <= run.data.metrics.keys()
        assert not {"acc_test", "jsd", "jsd_val", "avg_gap_advantage_val"} & run.data.metrics.keys()
    assert tune_method(blind, "neggrad_plus", own, 3, seed=4) == tuned
    assert len(runs_of("neggrad_plus")) == 3, "and the sampler asked for the same"
    tune_method(blind, "neggrad_plus", own, 4, seed=4)
    assert len(runs_of("neggrad_plus")) == 4, "of more trials the first ones are the same"


def test_no_trial_to_choose_from(blind):
    """Nothing moves: at a fifth of the samples SSD's ratio is at most 5."""
    tuned = tune_method(blind, "ssd", complete("ssd", alpha=1000), 2, seed=0)
    assert tuned.params is None
    assert tuned.remark.startswith("not tuned: none of 2 trials was completed, 2 failed; the first one: SSD cannot")
    assert tuned.remark.endswith("left every weight as it was")


def test_an_objective_that_cannot_be_computed(runner, monkeypatch):
    before = Metrics()
    before.missing["rf_jsd_val"] = "no sample of a class is left"
    monkeypatch.setitem(vars(runner), "before", before)
    with pytest.raises(UnlearnError, match=r"tuned=5 goes by rf_jsd_advantage_val, .*\(no sample of a class is left"):
        check_tunable(runner, 5)


def test_a_range_by_a_factor_ends_where_the_hyperparameter_does():
    """lr = 5 to 10 × 5 would go beyond 10, which fine-tuning refuses."""
    space = search_space(["finetune"], "cnn", ["none"], {}, {"finetune": complete("finetune", lr=5.0)})
    lr = space.distributions["finetune"]["lr"]
    assert (lr.low, lr.high) == (0.5, 10.0)
    assert space.config(space.published_settings()[0]).params["lr"] == 5.0
