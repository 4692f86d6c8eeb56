import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, TensorDataset
from toy import CPU, Net, accuracy, class_splits, digits, global_state, net, original, same, splits, state, take

from mlflow_unlearn import Splits, audit, unlearn
from mlflow_unlearn.api import unlearn_on
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.loop import RunOptions
from mlflow_unlearn.errors import UnlearnError, UnlearnWarning

FAST = {"epochs": 2, "lr": 1e-3, "batch_size": 32}


def forget(model=None, sets=None, seed=0, **options):
    params = FAST | options.pop("params", {})
    return unlearn(model or original(), sets or splits(), params=params, seed=seed, **options)


class TestTheCallersWorld:
    @pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
    def test_nothing_but_the_result_is_new(self, mode):
        model = original().train()
        model[1].eval()
        model[0].weight.requires_grad_(False)
        model[6].bias.grad = torch.ones(10)
        before = state(model)
        facts = (
            [module.training for module in model.modules()],
            [p.requires_grad for p in model.parameters()],
            [p.grad is None for p in model.parameters()],
            [id(p) for p in model.parameters()],
        )
        context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]
        with context():
            world = global_state()
            result = forget(model)
            assert global_state() == world
        assert same(state(model), before) and torch.equal(model[6].bias.grad, torch.ones(10))
        assert facts == (
            [module.training for module in model.modules()],
            [p.requires_grad for p in model.parameters()],
            [p.grad is None for p in model.parameters()],
            [id(p) for p in model.parameters()],
        )
        assert len(result.history) == 2
        assert not any(module.training for module in result.model.modules())
        assert all(p.grad is None and not p.is_inference() for p in result.model.parameters())
        assert [p.requires_grad for p in result.model.parameters()] == facts[1]
        assert weights_digest(result.model) == weights_digest(forget(model).model)

    def test_an_error_leaves_it_as_well(self):
        world = global_state()
        with pytest.raises(KeyError), torch.no_grad():
            forget(on_epoch=lambda epoch: {}["no"])
        assert global_state() == world

    def test_all_of_it_within_inference_mode(self):
        """Data and model made there are inference tensors, of which none may reach a backward pass."""
        with torch.inference_mode():
            sets = Splits(*(TensorDataset(*(t + 0 for t in part.tensors)) for part in vars(splits()).values()))
            result = forget(original(), sets)
        assert weights_digest(result.model) == weights_digest(forget().model)

    def test_the_trainable_parameters_and_the_statistics_move(self):
        before, after = state(original()), state(forget().model)
        assert {name for name in before if not torch.equal(before[name], after[name])} == set(before)


class TestSeeds:
    @pytest.mark.slow
    def test_another_process_gives_the_same_bits(self):
        """With other hash values, by which sets would be ordered."""
        here = Path(__file__).parent
        code = (
            "from toy import original, splits\n"
            "from mlflow_unlearn import unlearn\n"
            "from mlflow_unlearn.engine.architectures import weights_digest\n"
            f"print(weights_digest(unlearn(original(), splits(), params={FAST!r}, seed=7).model))"
        )
        path = os.pathsep.join([str(here), str(here.parent)])
        env = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == weights_digest(forget(seed=7).model)

    def test_workers_do_not_change_the_weights(self):
        assert weights_digest(forget(num_workers=2, params={"epochs": 1}).model) == weights_digest(
            forget(params={"epochs": 1}).model
        )

    @pytest.mark.parametrize("seed", [-1, 2**64, 0.5, "1", None])
    def test_seeds_that_no_generator_takes(self, seed):
        with pytest.raises(UnlearnError, match="seed=.* is not usable: it must be a whole number"):
            forget(seed=seed)


class TestModels:
    @pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential()])
    def test_without_any_parameter(self, model):
        with pytest.raises(UnlearnError, match="the model has no parameters"):
            unlearn(model, splits())

    def test_what_is_no_module(self):
        with pytest.raises(UnlearnError, match="the model is a function, not a torch.nn.Module"):
            unlearn(lambda images: images, splits())

    def test_without_batchnorm_and_with_dropout(self):
        """An untrained network knows the forgotten samples by chance alone, so the validation set must be unknown."""
        sets = splits()
        images, labels = sets.val.tensors
        sets = Splits(sets.forget, sets.retain, TensorDataset(images, (labels + 1) % 10), sets.test)
        model = net(norm=False)
        model.load_state_dict(state(original()), strict=False)
        result = forget(model, sets)
        assert len(result.history) == 2 and weights_digest(result.model) != weights_digest(model)

    @pytest.mark.parametrize(
        ("wrap", "message"),
        [
            (lambda z: (z, z), "the model returns a tuple"),
            (lambda z: z[:, None], r"shape \[\d+, 1, 10\]"),
        ],
    )
    @pytest.mark.parametrize("precision", ["fp32", "auto"])
    def test_outputs_that_are_no_logits(self, wrap, message, precision):
        class Wrapped(Net):
            def forward(self, images):
                return wrap(super().forward(images))

        with pytest.raises(UnlearnError, match=message):
            forget(Wrapped(), precision=precision)


class TestData:
    @pytest.mark.parametrize("role", ["forget", "retain", "val"])
    def test_a_label_without_an_output(self, role):
        parts = dict(vars(splits()))
        images, labels = parts[role].tensors
        parts[role] = TensorDataset(images, labels.where(torch.arange(len(labels)) > 0, torch.tensor(10)))
        with pytest.raises(UnlearnError, match=r"the data has label 10, and the model has 10 outputs \(0 to K − 1\)"):
            forget(sets=Splits(**parts), params={"retain_fraction": 1})

    def test_no_batch_of_one(self):
        """3 + 30 % of 100 = 33 samples in batches of at most 32; BatchNorm refuses to normalise a single one.

        The model always predicts 0: right for one of three forgotten samples, and never for the validation set.
        """
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
        sets = splits(3, 100)
        sets = Splits(sets.forget, sets.retain, TensorDataset(torch.zeros(1, 1, 8, 8), torch.tensor([9])), sets.test)
        with torch.no_grad():
            model[3].bias[0] = 100.0
        assert len(forget(model, sets, params={"epochs": 1, "a_u": "published"}).history) == 1


class TestOptions:
    @pytest.mark.machine("bfloat16")
    def test_bf16(self):
        half, full = forget(precision="bf16"), forget()
        assert weights_digest(half.model) != weights_digest(full.model)
        assert accuracy(half.model, splits().retain) > 0.9
        assert {p.dtype for p in half.model.parameters()} == {torch.float32}

    def test_auto_is_one_of_what_it_times(self):
        candidates = [Hardware(CPU.device, p, layout) for p in ("fp32", "bf16") for layout in (False, True)]
        done = [unlearn_on(hardware, original(), splits(), "lotus", FAST, RunOptions(0)) for hardware in candidates]
        digests = [weights_digest(result.model) for result in done]
        assert digests[0] == weights_digest(forget(device="cpu").model)
        assert weights_digest(forget(device="cpu", precision="auto").model) in digests

    def test_unknown_precision_and_device(self):
        with pytest.raises(UnlearnError, match="unknown precision 'fp8'"):
            forget(precision="fp8")
        with pytest.raises(UnlearnError, match="device 'gpu' cannot be used here"):
            forget(device="gpu")

    def test_unknown_method(self):
        with pytest.raises(UnlearnError, match="unknown method 'lotos': known methods, nearest first, are lotus, "):
            forget(method="lotos")

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            (
                {"alfa": 1},
                "unknown hyperparameter 'alfa' of lotus: did you mean 'alpha'. valid values: "
                r"a_u \(class-matched \| published\), "
                r"accuracy \(eval \| training\), alpha \(> 0, ≤ 64 \| auto\), batch_size \(≥ 2, ≤ 65536\), "
                r".*keep \(last \| closest\), .*weight_decay",
            ),
            ({"lr": 2}, "hyperparameter lr = 2 of lotus is not usable: input should be less than or equal to 1"),
            ({"lr": float("nan")}, "hyperparameter lr = nan of lotus is not usable"),
        ],
    )
    def test_hyperparameters(self, params, message):
        with pytest.raises(UnlearnError, match=message):
            forget(params=params)

    def test_a_model_that_blows_up(self):
        class Blowing(Net):
            def forward(self, images):
                return super().forward(images) * (float("nan") if self.training else 1)

        model = Blowing()
        model.load_state_dict(state(original()))
        with pytest.raises(UnlearnError, match="loss became nan in epoch 1, step 1, with lr 0.001: try a smaller lr"):
            forget(model)

    def test_the_result(self, capsys):
        heard = []
        result = forget(params={"alpha": 4}, on_epoch=heard.append, progress=True)
        assert heard == result.history
        assert result.params == {
            "a_u": "class-matched",
            "accuracy": "eval",
            "alpha": 4.0,
            "batch_size": 32,
            "epochs": 2,
            "keep": "last",
            "lr": 1e-3,
            "mask_forgotten_classes": True,
            "retain_fraction": 0.3,
            "weight_decay": 5e-4,
        }
        assert result.seconds >= sum(epoch["seconds"] for epoch in result.history) > 0
        captured = capsys.readouterr()
        assert captured.out == captured.err == ""

    def test_what_may_spoil_the_result_is_a_warning_where_it_was_called_and_part_of_the_result(self):
        with pytest.warns(UnlearnWarning, match="SSD cannot select a weight") as caught:
            result = unlearn(original(), splits(), "ssd")
        (warning,) = caught
        assert warning.filename == __file__ and result.warnings == (str(warning.message),)

    def test_no_warnings_where_there_is_nothing_to_warn_of(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnlearnWarning)
            assert forget().warnings == ()

    def test_who_builds_the_fresh_model(self):
        """At this rate training moves no weight by more than 10⁻⁶ of what the builder gave it."""
        crawl = {"epochs": 1, "lr": 1e-9}
        result = unlearn(original(), splits(), "retrain", crawl, fresh=lambda: net(5))
        torch.testing.assert_close(dict(result.model.named_parameters()), dict(net(5).named_parameters()))

    def test_class_unlearning_ends_at_the_forgotten_class_unknown(self):
        """The whole of it: the class is gone, the others are not."""
        sets = class_splits(3)
        assert accuracy(original(), sets.forget) == 1
        result = forget(sets=sets, params={"epochs": 20, "lr": 3e-3, "retain_fraction": 1})
        assert accuracy(result.model, sets.forget) <= 0.05
        assert accuracy(result.model, sets.retain) > 0.95


class TestAudit:
    @pytest.fixture(scope="class")
    def drawn(self):
        """Splits drawn at random, a model that knows the forget set by heart, and two that never saw it."""
        order = torch.randperm(900, generator=torch.Generator().manual_seed(0))
        parts = order.split([100, 200, 200, 400])
        sets = Splits(*(take(digits(0, 900), part) for part in parts))
        known = Splits(sets.forget, ConcatDataset([sets.forget, sets.retain]), sets.val, sets.test)
        recipe = {"epochs": 60, "batch_size": 32, "weight_decay": 0.0}
        make = [unlearn(net(), which, "retrain", recipe, seed).model for seed, which in enumerate((known, sets, sets))]
        return sets, make[0], make[1:]

    @pytest.mark.nightly
    def test_the_original_is_told_apart_and_left_as_it_was(self, drawn):
        sets, model, golds = drawn
        before, random = state(model), global_state()
        found = audit(model, sets, model, golds, device="cpu")
        assert found.decision == "told apart", found.why
        assert list(found.attacks) == ["audited", "original", "gold 1", "gold 2"]
        assert found.share_remembered.value == 1.0
        assert same(state(model), before) and global_state() == random

    @pytest.mark.slow
    def test_a_retrained_model_is_not(self, drawn):
        sets, model, golds = drawn
        found = audit(golds[0], sets, model, golds[1:], device="cpu")
        assert found.decision != "told apart", found.why
        assert set(found.not_measured) == {"posterior"}
        assert set(found.attacks["gold 1"]) == {"margin", "quantile", "probe"}, "what needs no other gold"

    def test_without_a_retrained_model(self):
        found = audit(original(), splits(), original(), device="cpu")
        assert set(found.attacks["audited"]) == {"margin", "quantile"}
        assert "needs a gold standard" in found.share_remembered and "probe" in found.not_measured
