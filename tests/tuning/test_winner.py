"""Which trial wins: by the stated rule, always the same one, and never one that breaks a constraint."""

import optuna
import pytest
from optuna.trial import TrialState

from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.tuning.winner import broken, choose, front, rule

MET = {"acc_val": -0.01, "acc_retain": 0.0}
BROKEN = {"acc_val": 0.02, "acc_retain": -0.01}


def study(*trials, fronts=False):
    """Of (values, constraints), None for a failed trial."""
    made = optuna.create_study(directions=["minimize", "maximize"] if fronts else ["minimize"])
    for one in trials:
        trial = made.ask()
        if one is None:
            trial.set_user_attr("error", "the loss became nan")
            made.tell(trial, state=TrialState.FAIL)
            continue
        values, constraints = one
        for name, value in constraints.items():
            trial.set_constraint(name, value)
        made.tell(trial, values)
    return made


def test_the_smallest_feasible_value_wins():
    made = study(([0.3], MET), None, ([0.1], BROKEN), ([0.2], MET), ([0.2], MET))
    assert choose(made).number == 3
    assert broken(made.trials[2]) == ["acc_val"]


def test_of_the_front_the_one_nearest_to_the_best_of_both():
    """(0, 0.5), (0.1, 0.9), (1, 1) on the front: scaled distances 1, 0.22 and 1."""
    made = study(
        ([0.0, 0.5], MET), ([0.1, 0.9], MET), ([1.0, 1.0], MET), ([0.2, 0.8], MET), ([0.0, 1.0], BROKEN), fronts=True
    )
    assert [trial.number for trial in front(made.trials[:4])] == [0, 1, 2]
    assert choose(made).number == 1


def test_one_point_alone_is_the_front():
    made = study(([0.2, 0.9], MET), ([0.2, 0.9], MET), fronts=True)
    assert [trial.number for trial in front(made.trials)] == [0, 1]
    assert choose(made).number == 0


def test_none_feasible():
    made = study(([0.3], BROKEN), ([0.1], {"acc_val": 0.5, "over_forgetting": 0.1}), None)
    with pytest.raises(NothingToUnlearn) as error:
        choose(made)
    assert "none of 2 complete trials met the constraints" in str(error.value)
    assert "acc_val was broken by 2, over_forgetting was broken by 1" in str(error.value)
    assert "trial 0 came nearest (acc_val by 0.0200)" in str(error.value)


def test_all_failed():
    with pytest.raises(UnlearnError, match="none of 2 trials was completed, 2 failed; the first one: the loss became"):
        choose(study(None, None))


def test_the_rule_is_told():
    assert "nearest to the best of both" in rule("rf_jsd_val", "pareto")
    assert rule("entropy_ks_val", "constrained").startswith("the smallest entropy_ks_val among")
