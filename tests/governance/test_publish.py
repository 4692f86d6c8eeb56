"""What is logged of an unlearning, and under which names."""

import mlflow
import pytest
import torch

from mlflow_unlearn.api import Result
from mlflow_unlearn.governance.publish import log_history, log_metrics, nothing_to_unlearn
from mlflow_unlearn.methods import BUILTIN
from mlflow_unlearn.metrics.suite import Metrics

EPOCHS = [{"epoch": epoch, "acc_forget": 1 - epoch / 4, "acc_val": 0.5, "loss": 2.0} for epoch in range(3)]


def result(final, history=(), warnings=()) -> Result:
    return Result(torch.nn.Identity(), list(history), final, tuple(warnings), 1.5, {}, trained=0)


@pytest.fixture
def logged(empty_store):
    """Metrics (with every step) and tags of a run in which something was logged."""

    def run(log, *arguments):
        with mlflow.start_run() as active:
            log(*arguments)
        client = empty_store.client
        found = client.get_run(active.info.run_id).data
        steps = {key: client.get_metric_history(active.info.run_id, key) for key in found.metrics}
        return {key: [(one.step, one.value) for one in values] for key, values in steps.items()}, found.tags

    return run


@pytest.mark.slow
def test_epochs_are_steps_and_the_constant_of_lotus_is_a_u(logged):
    final = {"acc_forget": 0.25, "acc_val": 0.5, "delta": -0.25, "alpha": 2.0}
    metrics, _ = logged(log_history, BUILTIN["lotus"], result(final, EPOCHS))
    assert metrics["acc_forget"] == [(0, 1.0), (1, 0.75), (2, 0.5), (3, 0.25)]
    assert metrics["a_u"] == [(0, 0.5), (1, 0.5), (2, 0.5)] and "acc_val" not in metrics
    assert metrics["alpha"] == [(3, 2.0)] and metrics["delta"] == [(3, -0.25)]
    assert metrics["unlearn_seconds"] == [(0, 1.5)] and "epoch" not in metrics


def test_shard_and_stage_of_an_epoch_are_no_metrics(logged):
    epochs = [{"epoch": n, "loss": 2.0 - n, "shard": n, "stage": 1} for n in range(2)]
    metrics, _ = logged(log_history, BUILTIN["exact"], result({}, epochs))
    assert metrics == {"loss": [(0, 2.0), (1, 1.0)], "unlearn_seconds": [(0, 1.5)]}


def test_metrics_carry_their_model_and_what_is_missing_its_reason(logged):
    columns = {"original": Metrics(), "unlearned": Metrics()}
    for name, value in (("original", 1.0), ("unlearned", 0.5)):
        columns[name].update(acc_forget=value)
        columns[name].missing.update(jsd="no gold", acc_test_forgotten="no class is wholly forgotten")
        columns[name].counts.update(n_forget=20, wholly_forgotten_classes=0)
    metrics, tags = logged(log_metrics, columns, {})
    assert metrics["original.acc_forget"] == [(0, 1.0)] and metrics["unlearned.acc_forget"] == [(0, 0.5)]
    assert metrics["count.n_forget"] == [(0, 20.0)]
    assert tags["unlearn.missing.unlearned.jsd"] == "no gold"
    # Without a wholly forgotten class no one misses it.
    assert "unlearn.missing.unlearned.acc_test_forgotten" not in tags


def test_why_a_run_that_moved_nothing_is_not_an_unlearning():
    known = nothing_to_unlearn(BUILTIN["lotus"], result({"acc_forget": 0.5, "acc_val": 0.75}))
    assert known.startswith("nothing to unlearn: the model knows these samples no better than unseen ones (acc_forget")
    unmoved = nothing_to_unlearn(BUILTIN["ssd"], result({}, warnings=["alpha is too large"]))
    assert unmoved == "nothing was unlearned: ssd left every weight as it was (alpha is too large)"
