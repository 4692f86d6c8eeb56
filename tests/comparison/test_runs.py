"""Runs that a comparison makes once and finds again."""

import copy
import sys
from dataclasses import replace
from importlib import import_module

import mlflow
import pytest
import torch
from torch.utils.data import TensorDataset

from mlflow_unlearn import methods
from mlflow_unlearn.comparison.runs import ComparisonRunner
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.errors import BrokenMethod, UnlearnError
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


@pytest.mark.nightly
def test_audited_by_two_golds_and_no_fewer(runner, gold):
    """What was measured without the audit is measured again, once."""
    with pytest.raises(
        UnlearnError,
        match="by=audit needs two gold standards with different weights, .*: give another gold_uri=, or leave it out",
    ):
        runner.audit_by([gold])
    audited = copy.copy(runner)
    audited.audit_by([gold, runner.gold(1001)])
    plain = runner.trial("finetune", PARAMS, 4, gold)
    before = number_of_runs()
    trial = audited.trial("finetune", PARAMS, 4, gold)
    assert number_of_runs() == before + 1 and trial.digest == plain.digest
    assert trial.metrics["audit_gap"] >= 0 and "audit_gap" not in plain.metrics
    assert {key: value for key, value in trial.metrics.items() if key in plain.metrics} == plain.metrics
    assert audited.trial("finetune", PARAMS, 4, gold).metrics == trial.metrics
    assert number_of_runs() == before + 1


def test_a_collapsed_model_is_not_audited(runner, gold, monkeypatch):
    """It would be among the best: who knows nothing remembers nobody."""
    audited = copy.copy(runner)
    audited.audit_by([gold, runner.gold(1001)])

    def collapsed(method, params, seed):
        result = runner._result(method, params, seed)
        with torch.no_grad():
            for parameter in result.model.parameters():
                parameter.zero_()
        return result

    monkeypatch.setattr(audited, "_result", collapsed)
    trial = audited.trial("finetune", PARAMS, 5, gold)
    assert trial.metrics.collapsed is not None and "audit_gap" not in trial.metrics


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


PLUGIN = """
import torch

from mlflow_unlearn.methods import Method, OptimizerSpec, Params, Phase, all_indices


class Going(Method):
    name = "going"
    Params = Params

    def plan(self, workspace):
        def loss(batch):
            return {sign} * torch.nn.functional.cross_entropy(batch.logits, batch.labels)

        yield Phase(loss, OptimizerSpec("sgd", 0.01), 64, forget=all_indices(workspace.labels("forget")))
        return {{}}
"""


def test_a_plugin_s_bug_is_no_row(runner, gold, tmp_path, monkeypatch):
    """A method that refuses its input or diverges is one; a broken one ends the comparison, with its place."""
    (tmp_path / "broken_plugin.py").write_text(PLUGIN.format(sign="batch.nothing * 1"))
    monkeypatch.syspath_prepend(tmp_path)
    method = import_module("broken_plugin").Going
    monkeypatch.setattr(methods, "loaded_plugins", lambda: ({"going": method}, {}))
    with pytest.raises(BrokenMethod, match=r"the method going failed in .*broken_plugin.py, line 13 \(AttributeError"):
        runner.trial("going", {}, 0, gold)
    sys.modules.pop("broken_plugin")


class TestWhatIsTakenOver:
    """Only what has all of it: also what no setting names."""

    @staticmethod
    def again(runner, **changes):
        """A comparison of a later command in the same experiment."""
        return ComparisonRunner(replace(runner.session, **changes), runner.recipe, runner._experiment, force=True)

    def test_of_a_later_command_with_the_same_of_everything(self, runner, gold):
        before = number_of_runs()
        assert self.again(runner).gold(1000).digest == gold.digest
        assert number_of_runs() == before

    @pytest.mark.parametrize("split", ["retain", "val"])
    def test_not_with_other_pixels_under_the_same_ids(self, runner, gold, split):
        splits = runner.session.splits
        images, labels = getattr(splits, split).tensors
        images = images.clone()
        images[0, 0, 0, 0] += 0.5
        later = self.again(runner, splits=replace(splits, **{split: TensorDataset(images, labels)}))
        before = number_of_runs()
        later.gold(1000)
        assert number_of_runs() == before + 1

    @pytest.mark.slow
    def test_not_with_other_threads(self, runner, gold):
        threads, before = torch.get_num_threads(), number_of_runs()
        torch.set_num_threads(threads + 1)
        try:
            self.again(runner).gold(1000)
        finally:
            torch.set_num_threads(threads)
        assert number_of_runs() == before + 1

    def test_not_with_another_torch(self, runner, gold, monkeypatch):
        before = number_of_runs()
        monkeypatch.setattr(torch, "__version__", "2.0.0")
        self.again(runner).gold(1000)
        assert number_of_runs() == before + 1

    def test_not_with_another_attribute_of_the_model(self, runner, gold):
        module = runner.session.module
        before = number_of_runs()
        module.temperature = 2.0
        try:
            self.again(runner).gold(1000)
        finally:
            del module.temperature
        assert number_of_runs() == before + 1

    @pytest.mark.slow
    def test_not_with_other_code_of_a_plugin(self, runner, gold, tmp_path, monkeypatch):
        """The loss goes up in place of down; nothing else has changed."""
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        digests = []
        for sign in (1, 1, -1):
            (tmp_path / "going_plugin.py").write_text(PLUGIN.format(sign=sign))
            sys.modules.pop("going_plugin", None)
            method = import_module("going_plugin").Going
            monkeypatch.setattr(methods, "loaded_plugins", lambda method=method: ({"going": method}, {}))
            before = number_of_runs()
            trial = self.again(runner).trial("going", {}, 0, gold)
            digests.append((trial.digest, number_of_runs() - before))
        sys.modules.pop("going_plugin")
        (first, made), (second, reused), (third, anew) = digests
        assert first == second != third and (made, reused, anew) == (1, 0, 1)

    def test_nothing_where_a_part_cannot_be_told(self, runner, gold, capsys):
        module = runner.session.module
        module.state = torch.Generator()
        try:
            later = self.again(runner)
            before = number_of_runs()
            for _ in range(2):
                later.gold(1000)
        finally:
            del module.state
        assert number_of_runs() == before + 2
        told = [line for line in capsys.readouterr().err.splitlines() if "not reused" in line]
        assert len(told) == 1 and "model_code_sha256 cannot be identified" in told[0]
