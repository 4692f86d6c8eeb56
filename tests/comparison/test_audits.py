"""Audits in a comparison, of models whose log odds are made by hand."""

import numpy as np
import pytest

from mlflow_unlearn.comparison.audits import ComparisonAudit
from mlflow_unlearn.metrics.attacks.suite import Target
from mlflow_unlearn.metrics.outputs import SplitOutputs

N = 300


def target(seed: int, forget: float) -> Target:
    """Log odds of ``hardness + noise``, those of the forget set shifted by so much."""
    hardness, rng = np.random.default_rng(0).normal(size=(2, N)), np.random.default_rng(seed)
    odds = dict(zip(("forget", "test"), hardness + rng.normal(0.0, 0.3, (2, N)), strict=True))
    odds["forget"] = odds["forget"] + forget
    labels, zeros = np.arange(N) % 2, np.zeros(N)
    outputs = {s: SplitOutputs(labels, labels, zeros, zeros, o, o, np.eye(2), None) for s, o in odds.items()}
    return Target(outputs, None)


@pytest.fixture(scope="module")
def audit() -> ComparisonAudit:
    return ComparisonAudit(target(1, 2.0), [target(seed, 0.0) for seed in (2, 3, 4)])


def test_nothing_done_and_retraining_again(audit):
    nothing, again = audit.of_original(), audit.of_model(target(5, 0.0), seed=0)
    assert nothing["share_remembered"] == 1.0 and nothing["told_apart"] == 1.0 and nothing["audit_gap"] > 0.3
    assert abs(again["share_remembered"]) < 0.15 and again["told_apart"] == 0.0 and again["audit_gap"] < 0.08
    assert set(audit.of_gold(0)) == {"audit_gap", "share_remembered"} and audit.of_gold(0)["audit_gap"] < 0.08


def test_the_other_way_is_as_far(audit):
    over = audit.of_model(target(5, -2.0), seed=0)
    assert over["share_remembered"] < -0.2 and over["told_apart"] == 1.0 and over["audit_gap"] > 0.3


def test_the_original_that_remembers_nothing_decides_nothing():
    audit = ComparisonAudit(target(1, 0.0), [target(seed, 0.0) for seed in (2, 3)])
    assert set(audit.of_model(target(5, 0.0), seed=0)) == {"audit_gap"}
