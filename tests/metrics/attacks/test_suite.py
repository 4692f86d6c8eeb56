"""Which attacks are possible with which models, and what they see."""

import numpy as np
import pytest

from mlflow_unlearn.metrics.attacks.held_back import spread_of_golds
from mlflow_unlearn.metrics.attacks.suite import (
    ATTACKS,
    NO_GOLD,
    References,
    Target,
    attack_all,
    attack_with_controls,
    log_likelihood,
    share_between,
    within_golds,
)
from mlflow_unlearn.metrics.outputs import SplitOutputs

CLASSES = 3


class Task:
    """Samples of different hardness, models that know some of them, and features that follow the hardness."""

    def __init__(self, seed=0, forget=120, unseen=300):
        self.rng = np.random.default_rng(seed)
        self.labels = {
            "forget": self.rng.integers(CLASSES, size=forget),
            "test": self.rng.integers(CLASSES, size=unseen),
        }
        self.hard = {split: 2 * self.rng.normal(size=len(part)) for split, part in self.labels.items()}

    def odds(self, memory=0.0):
        return {
            split: hard + 0.5 * self.rng.normal(size=len(hard)) + (memory if split == "forget" else 0)
            for split, hard in self.hard.items()
        }

    def target(self, memory=0.0, features=True):
        outputs = {split: outputs_of(self.labels[split], odds) for split, odds in self.odds(memory).items()}
        seen = {
            split: (hard[:, None] + self.rng.normal(size=(len(hard), 4))).astype(np.float32)
            for split, hard in self.hard.items()
        }
        return Target(outputs, seen if features else None)

    def references(self, count):
        if not count:
            return None
        drawn = [self.odds() for _ in range(count)]
        return References(
            *(
                np.array([each[split] for each in drawn]).reshape(count, len(self.labels[split]))
                for split in ("forget", "test")
            )
        )


def outputs_of(labels, odds):
    zeros = np.zeros(len(labels))
    return SplitOutputs(labels, labels, zeros, zeros, odds, odds, np.zeros((CLASSES, CLASSES)))


@pytest.mark.parametrize(("count", "measured"), [(0, ATTACKS[:3]), (1, ATTACKS[:5]), (2, ATTACKS), (4, ATTACKS)])
def test_more_references_allow_more(count, measured):
    task = Task()
    found, missing = attack_all(task.target(), task.references(count), seed=0)
    assert tuple(found) == measured
    assert set(missing) == set(ATTACKS) - set(measured)
    assert all("trained without the samples" in why for why in missing.values())


def test_references_see_what_one_threshold_does_not():
    task = Task()
    found, _ = attack_all(task.target(memory=0.8), task.references(2), seed=0)
    for name in ("rmia", "iam", "posterior"):
        assert found[name].auc > found["margin"].auc + 0.08, name
        assert found[name].p_value < 0.01


def test_what_forgot_too_much_is_on_the_other_side():
    task = Task()
    found, _ = attack_all(task.target(memory=-0.8), task.references(2), seed=0)
    for name in ("rmia", "posterior"):
        assert found[name].auc_high < 0.5 and found[name].p_value < 0.01


@pytest.mark.parametrize("count", [1, 3])
def test_a_model_that_never_saw_them_is_seldom_told_apart(count):
    alarms = dict.fromkeys(ATTACKS, 0)
    for seed in range(20):
        task = Task(seed, forget=60, unseen=120)
        found, _ = attack_all(task.target(features=False), task.references(count), seed=seed)
        for name, one in found.items():
            alarms[name] += one.p_value <= 0.05
    assert max(alarms.values()) <= 4, alarms  # 99.7 % of Binomial(20, 0.05)


def test_a_reference_that_saw_a_sample_does_not_count_for_it():
    task = Task()
    references = task.references(2)
    references.forget[0, :50] = np.nan
    assert references.least == 1
    found, missing = attack_all(task.target(), references, seed=0)
    assert "posterior" in missing and found["rmia"].n_forget == 120
    references.forget[1, :50] = np.nan
    assert references.usable[0].sum() == 70 and references.usable[1].all()
    found, _ = attack_all(task.target(), references, seed=0)
    assert found["rmia"].n_forget == 70 and found["margin"].n_forget == 120


def test_a_model_whose_features_cannot_be_seen():
    task = Task()
    _, missing = attack_all(task.target(features=False), task.references(2), seed=0)
    assert set(missing) == {"quantile", "probe"} and "no linear last layer" in missing["probe"]


def test_few_forgotten_samples_leave_the_probe_out():
    task = Task(forget=40)
    _, missing = attack_all(task.target(), task.references(2), seed=0)
    assert missing == {"probe": "needs 50 forgotten and 50 unseen samples of the same classes"}


def test_too_few_to_say_anything():
    task = Task(forget=9)
    found, missing = attack_all(task.target(features=False), task.references(2), seed=0)
    assert found == {} and "fewer than 10" in missing["rmia"]


@pytest.mark.filterwarnings("error")
def test_log_odds_keep_what_a_probability_loses():
    odds = np.array([-800.0, -1.0, 0.0, 40.0, np.nan])
    found = log_likelihood(odds)
    assert found[0] == -800.0 and found[2] == pytest.approx(np.log(0.5))
    assert -1e-17 < found[3] < 0 and np.isnan(found[4])


@pytest.mark.parametrize("count", [1, 3])
def test_the_share_of_a_model_that_remembers_half(count):
    """Half of the samples as trained on, half as never seen; by golds alone, and calibrated by each other."""
    task = Task(forget=400)
    original, golds = task.target(memory=2.0), [task.target() for _ in range(count)]
    half = task.target()
    half.log_odds("forget")[::2] += 2.0
    found = share_between(half, original, golds, seed=0)
    assert found.low < 0.5 < found.high and found.golds == count
    assert share_between(original, original, golds, seed=0).value == 1.0
    assert share_between(task.target(), original, golds, seed=0).low < 0
    assert share_between(half, original, [], seed=0) == NO_GOLD


def test_models_that_are_surer_of_unseen_samples_widen_it():
    task = Task(forget=200)
    original, golds, own = task.target(memory=1.0), [task.target()], task.target(memory=0.5)
    narrow = share_between(own, original, golds, seed=0)
    own.log_odds("test")[:] += 0.5
    wide = share_between(own, original, golds, seed=0)
    assert wide.value == narrow.value and wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    own.outputs["test"].labels[:] = 0
    only = own.outputs["forget"].labels
    only[only == 0] = 1
    assert "no class of the forget set" in share_between(own, original, golds, seed=0)


@pytest.mark.slow
def test_within_what_golds_differ_by():
    """From four golds on; a model that remembers is outside, another gold seldom is."""
    outside = []
    for seed in range(8):
        task = Task(seed, forget=150, unseen=200)
        golds = [task.target(features=False) for _ in range(5)]
        for own in (task.target(features=False), task.target(memory=1.0, features=False)):
            found, _ = attack_with_controls(own, task.target(memory=1.0, features=False), golds, None, seed=seed)
            within = within_golds(found, own, golds)
            assert set(within) == {"margin_gap", "AUC by margin", "AUC by rmia", "AUC by iam", "AUC by posterior"}
            outside.append(sum(not interval.low <= value <= interval.high for value, interval in within.values()))
    assert min(outside[1::2]) >= 4, outside
    assert sum(outside[::2]) <= 8, outside  # of 40, which hang together
    assert within_golds(found, own, golds[:3]) == {}


def test_rates_and_further_metrics_within_what_golds_differ_by():
    """A thousand unseen samples resolve 1 % false alarms; what else was measured stands beside it."""
    task = Task(0, forget=100, unseen=1000)
    golds = [task.target(features=False) for _ in range(4)]
    own = task.target(features=False)
    found, _ = attack_with_controls(own, task.target(memory=2.0, features=False), golds, None, seed=0)
    within = within_golds(found, own, golds, {"another": (9.0, [1.0, 2.0, 3.0, 4.0])})
    value, interval = within["TPR at 1 % FPR by rmia"]
    assert value == found["audited"]["rmia"].tail.tpr
    assert interval == spread_of_golds([found[f"gold {k}"]["rmia"].tail.tpr for k in range(1, 5)])
    assert within["another"] == (9.0, spread_of_golds([1.0, 2.0, 3.0, 4.0]))


def test_a_class_that_the_unseen_set_does_not_have():
    """Half of the forgotten samples, then all of them."""
    task = Task(forget=200)
    target, references = task.target(), task.references(2)
    labels, unseen = target.outputs["forget"].labels, target.outputs["test"].labels
    unseen[unseen == 0] = 1
    labels[:] = np.arange(200) % 2
    found, missing = attack_all(target, references, seed=0)
    assert not missing and {one.n_forget for name, one in found.items() if name != "probe"} == {100}
    labels[40:] = 0
    found, missing = attack_all(target, references, seed=0)
    assert set(missing) == {"probe"} and {one.n_forget for one in found.values()} == {20}
    labels[:] = 0
    found, missing = attack_all(target, references, seed=0)
    assert found == {} and set(missing) == set(ATTACKS)


@pytest.mark.slow
def test_features_of_many_dimensions_that_tell_nothing():
    """Components of one set alone would lie nearer to its samples than to the others."""
    alarms = 0
    for seed in range(10):
        task = Task(seed, forget=150, unseen=300)
        target = task.target()
        for split, features in target.features.items():
            size = len(features)
            scale = np.exp(0.5 * task.rng.normal(size=(size, 1)))
            target.features[split] = (scale * task.rng.normal(size=(size, 300))).astype(np.float32)
            target.log_odds(split)[:] = np.log(scale[:, 0]) + 0.1 * task.rng.normal(size=size)
        alarms += attack_all(target, None, seed=seed)[0]["quantile"].p_value <= 0.05
    assert alarms <= 3  # 99.9 % of Binomial(10, 0.05)
