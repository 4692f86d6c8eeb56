"""Which method a comparison registers."""

from mlflow_unlearn.comparison.runs import Trial
from mlflow_unlearn.comparison.winner import best_method
from mlflow_unlearn.metrics.suite import Metrics


def trial(method: str, seed: int = 0, **selection: float) -> Trial:
    values = Metrics()
    values.update({"acc_val": 0.9, "acc_retain": 0.99, "mia_advantage_val": 0.05, "mia_advantage_null_val": 0.08})
    values.update({"avg_gap_advantage_val": 0.1} | selection)
    return Trial(method, {}, seed, Metrics(), values, 1.0, "", method != "unmoved", (), 0.1)


def test_the_rule():
    """Lowest mean gap of the methods that meet every constraint with every seed; then that method's best seed."""
    before = Metrics()
    before.update({"acc_val": 0.9, "acc_retain": 0.99})
    good = [trial("good", 0, avg_gap_advantage_val=0.06), trial("good", 1, avg_gap_advantage_val=0.04)]
    others = {
        "farther": [trial("farther", seed, avg_gap_advantage_val=0.07) for seed in (0, 1)],
        "useless": [
            trial("useless", 0, avg_gap_advantage_val=0.0),
            trial("useless", 1, acc_val=0.88, avg_gap_advantage_val=0),
        ],
        "told apart": [trial("apart", seed, mia_advantage_val=0.09, avg_gap_advantage_val=0.0) for seed in (0, 1)],
        "unmoved": [trial("unmoved", seed, avg_gap_advantage_val=0.0) for seed in (0, 1)],
        "failed once": [trial("failed", 0, avg_gap_advantage_val=0.0)],
    }
    assert best_method({**others, "good": good}, before, 2) is good[1]
    assert best_method({"useless": others["useless"]}, before, 2) is None
