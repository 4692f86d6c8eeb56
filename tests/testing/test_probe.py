import pytest
import torch
from torch import nn
from unlearners import ascend, draws_from_the_caller, leaves_eval_mode, trains_in_place

from mlflow_unlearn.methods.finetune import Finetune
from mlflow_unlearn.methods.ssd import Ssd
from mlflow_unlearn.testing.models import FORGET, digits
from mlflow_unlearn.testing.probe import MethodProbe, differing, recipe_of, tensors


def probe(method, promises=None, stochastic=None, **params):
    return MethodProbe(method, "cnn", params, promises or {}, stochastic)


def test_a_recipe_is_a_method():
    assert recipe_of(Ssd) is Ssd and recipe_of(ascend) is None and recipe_of(Finetune()) is None


class TestDiffering:
    def test_by_name_type_shape_and_bits(self):
        a = {"w": torch.tensor([1.0, float("nan")]), "n": torch.tensor(3), "gone": torch.zeros(1), "z": torch.zeros(2)}
        b = {"w": torch.tensor([1.0, float("nan")]), "n": torch.tensor(3.0), "z": torch.zeros(1, 2)}
        assert differing(a, b) == ["n", "gone", "z"]
        assert differing({"w": torch.tensor([0.0])}, {"w": torch.tensor([-0.0])}) == ["w"]

    def test_buffers_outside_the_state_dict_count(self):
        model = nn.Linear(1, 1)
        model.register_buffer("hidden", torch.zeros(1), persistent=False)
        before = tensors(model)
        model.hidden += 1
        assert differing(before, tensors(model)) == ["hidden"]


class TestRuns:
    def test_an_honest_run_touches_and_leaks_nothing(self):
        honest = probe(ascend)
        run = honest.plain
        assert run.touched == run.leaked == [] and honest.moved(run) and honest.worse(run) is None
        assert honest.plain is run and honest.reads_forget_set
        assert honest.outputs(run.returned).shape == (len(digits()[0]), 10)

    @pytest.mark.parametrize(
        ("method", "touched", "leaked"),
        [
            (trains_in_place, "0.weight", None),
            (leaves_eval_mode, "the mode of 0", None),
            (draws_from_the_caller, None, "torch's random state"),
        ],
    )
    def test_what_a_call_changes_is_recorded(self, method, touched, leaked):
        run = probe(method).plain
        assert (touched in run.touched) == (touched is not None) == bool(run.touched)
        assert run.leaked == [name for name in [leaked] if name]

    def test_a_method_is_made_cheap_and_given_hyperparameters_stay(self):
        assert probe(Finetune).params == {"epochs": 1, "batch_size": 8}
        assert probe(Finetune, epochs=5, lr=0.5).params == {"epochs": 5, "lr": 0.5, "batch_size": 8}

    def test_whether_it_is_stochastic(self):
        assert [probe(method).stochastic for method in (Ssd, Finetune, ascend)] == [False, True, True]
        assert probe(Ssd, stochastic=True).stochastic

    def test_frozen_parameters_and_the_promises_hyperparameters_reach_the_run(self):
        promising = probe(Finetune, {"masked": {"lr": 1e-6}}, lr=0.1)
        assert promising.promised("masked") == {"lr": 1e-6} and promising.promised("moves") == {}
        small, plain = promising.run_as_promised("masked"), promising.run_as_promised("moves")
        assert plain is promising.plain

        def distance(run):
            return sum((run.tensors[n] - p).abs().sum() for n, p in promising.original.named_parameters()).item()

        assert 0 < distance(small) < distance(plain) / 100
        assert "0.weight" not in differing(tensors(promising.original), promising.run(freeze=["0.weight"]).tensors)

    def test_batches_of_another_size_than_the_method_asks_for(self):
        """Finetuning asks for none; SSD asks for all samples and is served one at a time."""
        sizes = []

        class Watching(Ssd):
            def plan(self, workspace):
                sizes.append([len(labels) for _, labels in workspace.batches("forget", 64)])
                return (yield from super().plan(workspace))

        watching = probe(Watching, alpha=1.0)
        watching.run(), watching.run(batches_of=4)
        assert sizes == [[len(FORGET)], [4, 4, 2]]
