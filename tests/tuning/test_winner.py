"""Which trial wins: by the stated rule, always the same one, and never one that breaks a constraint."""

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.tuning.selection import CONSTRAINTS
from mlflow_unlearn.tuning.winner import STANDARD_ERROR, WEIGHT_CHANGE, broken, choose, front, rule

MET = {"acc_val": -0.01, "acc_retain": 0.0}
BROKEN = {"acc_val": 0.02, "acc_retain": -0.01}


def study(*trials, fronts=False):
    """Of (values, constraints); for a failed trial its error, or None where it left none."""
    made = optuna.create_study(directions=["minimize", "maximize"] if fronts else ["minimize"])
    for one in trials:
        trial = made.ask()
        if one is None or isinstance(one, str):
            if one is not None:
                trial.set_user_attr("error", one)
            made.tell(trial, state=TrialState.FAIL)
            continue
        values, constraints = one
        for name, value in constraints.items():
            trial.set_constraint(name, value)
        made.tell(trial, values)
    return made


def test_the_smallest_feasible_value_wins():
    made = study(([0.3], MET), "the loss became nan", ([0.1], BROKEN), ([0.2], MET), ([0.2], MET))
    assert choose(made).number == 3
    assert broken(made.trials[2]) == ["acc_val"]


class TestGentlest:
    """Of those within a standard error of the best the one that changed the weights least."""

    @staticmethod
    def study(*trials):
        made = optuna.create_study()
        for value, error, change in trials:
            trial = made.ask()
            for name, attribute in ((STANDARD_ERROR, error), (WEIGHT_CHANGE, change)):
                if attribute is not None:
                    trial.set_user_attr(name, attribute)
            for name, violation in MET.items():
                trial.set_constraint(name, violation)
            made.tell(trial, value)
        return made

    @pytest.mark.parametrize(
        ("trials", "winner"),
        [
            # 0.1 ± 0.02: the third one is beyond, however gentle; the error is that of the best.
            ([(0.1, 0.02, 0.9), (0.12, 0.5, 0.3), (0.121, 0.5, 0.1)], 1),
            ([(0.1, 0.02, 0.3), (0.12, 0.02, 0.3)], 0),
            ([(0.12, 0.02, 0.3), (0.1, 0.02, 0.3)], 0),
            ([(0.1, 0.02, 0.2), (0.11, 0.02, 0.3)], 0),
            # An objective without an error, and trials of an earlier release: the smallest one.
            ([(0.1, None, 0.9), (0.1001, None, 0.1)], 0),
            ([(0.1, None, None), (0.1, None, None)], 0),
            ([(0.2, None, None), (0.1, 0.2, 0.5)], 1),
        ],
    )
    def test_the_winner(self, trials, winner):
        assert choose(self.study(*trials)).number == winner

    def test_in_words(self):
        assert rule("rf_jsd_advantage_val", "constrained") == (
            "the smallest rf_jsd_advantage_val among the trials that meet the constraints, and of those within one "
            "standard error of it the one that changed the weights least; of equal ones the first"
        )


def test_of_the_front_the_one_nearest_to_the_best_of_both():
    """(0, 0.5), (0.1, 0.9), (1, 1) on the front: scaled distances 1, 0.22 and 1."""
    made = study(
        ([0.0, 0.5], MET), ([0.1, 0.9], MET), ([1.0, 1.0], MET), ([0.2, 0.8], MET), ([0.0, 1.0], BROKEN), fronts=True
    )
    assert [trial.number for trial in front(made.trials[:4])] == [0, 1, 2]
    assert choose(made).number == 1


def test_each_objective_is_scaled_to_its_range_on_the_front():
    """Values from 500 to 520 beside accuracies from 0.96 to 1, which unscaled would not count.

    Scaled (0, 1), (0.05, 0.5), (0.1, 0.2), (1, 0): distances 1, 0.5025, 0.2236, 1.
    """
    points = [500, 0.96], [501, 0.98], [502, 0.992], [520, 1.0]
    assert choose(study(*((point, MET) for point in points), fronts=True)).number == 2


def test_rounding_does_not_choose_between_equally_near_ones():
    """Scaled (0, 1), (⅔, ⅓), (⅓, ⅔), (1, 0): the two in the middle are √5 / 3 away, in floats the second one less."""
    points = [0.0, 0.7], [0.2, 0.9], [0.1, 0.8], [0.3, 1.0]
    assert choose(study(*((point, MET) for point in points), fronts=True)).number == 1


def test_as_good_in_one_and_worse_in_the_other_is_not_on_the_front():
    made = study(([0.1, 0.9], MET), ([0.1, 0.8], MET), ([0.2, 0.9], MET), fronts=True)
    assert [trial.number for trial in front(made.trials)] == [0]
    assert choose(made).number == 0


@np.errstate(all="raise")
def test_equal_points_are_the_front_and_the_first_wins():
    made = study(([0.2, 0.9], MET), ([0.2, 0.9], MET), fronts=True)
    assert [trial.number for trial in front(made.trials)] == [0, 1]
    assert choose(made).number == 0


def test_none_feasible():
    """Trial 1 is over by 0.02 and 0.01 (0.03 together, what is met does not help), trial 0 by 0.5 and 0.1."""
    made = study(
        ([0.1], {"acc_val": 0.5, "over_forgetting": 0.1}),
        ([0.3], {"acc_val": 0.02, "acc_retain": 0.01, "over_forgetting": -1.0}),
        ([0.2], {"acc_val": 0.04}),
        ([0.3], {"acc_val": 0.03}),
        None,
    )
    with pytest.raises(NothingToUnlearn) as error:
        choose(made)
    assert str(error.value) == (
        f"none of 4 complete trials met the constraints ({CONSTRAINTS}): acc_val was broken by 4, over_forgetting was "
        "broken by 1, acc_retain was broken by 1; trial 1 came nearest (acc_val by 0.0200, acc_retain by 0.0100)"
    )


def test_of_equally_near_ones_the_first_is_named():
    with pytest.raises(NothingToUnlearn, match=r"trial 1 came nearest \(acc_val by 0\.0200\)"):
        choose(study(([0.3], {"acc_val": 0.03}), ([0.2], {"acc_val": 0.02}), ([0.1], {"acc_val": 0.02})))


@pytest.mark.parametrize(
    ("failures", "why"),
    [
        (("the loss became nan", "no memory"), "the loss became nan"),
        ((None, "no memory"), "no memory"),
        ((None, None), "see their runs"),
    ],
)
def test_all_failed(failures, why):
    with pytest.raises(UnlearnError) as error:
        choose(study(*failures))
    assert str(error.value) == f"none of 2 trials was completed, 2 failed; the first one: {why}"


def test_the_rule_in_words():
    assert rule("rf_jsd_val", "pareto") == (
        "of the front of rf_jsd_val and acc_val among the trials that meet the constraints, the one nearest to the "
        "best of both, each scaled to its range on the front; of equal ones the first"
    )
    assert rule("entropy_ks_val", "constrained") == (
        "the smallest entropy_ks_val among the trials that meet the constraints; of equal ones the first"
    )
