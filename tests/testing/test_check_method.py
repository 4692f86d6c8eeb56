"""The suite as third parties call it."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from unlearners import ascend, dampen, leaks, numpy_seed, trains_in_place

import mlflow_unlearn.testing
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods.finetune import Finetune, FinetuneParams
from mlflow_unlearn.testing import MODELS, PROPERTIES, Finding, cases, check_method, original


class TestCheckMethod:
    def test_an_exception_is_a_finding(self):
        def fails(model, splits, seed):
            raise ZeroDivisionError("no such luck")

        found = check_method(fails, models=["cnn"], properties=["moves", "eval_mode"])
        sentence = "raised ZeroDivisionError: no such luck"
        assert found == [Finding("moves", "cnn", sentence), Finding("eval_mode", "cnn", sentence)]

    def test_a_method_must_return_a_module(self):
        (finding,) = check_method(lambda model, splits, seed: None, models=["vit"], properties=["moves"])
        assert finding.sentence == "raised TypeError: the method returned a NoneType, not a torch.nn.Module"

    def test_exceptions_that_end_the_program_are_none(self):
        def interrupted(model, splits, seed):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            check_method(interrupted, models=["cnn"])

    def test_a_leak_ends_with_the_check(self):
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), torch.is_grad_enabled()
        for effect in (torch.manual_seed, numpy_seed, random.seed, lambda seed: torch.set_grad_enabled(False)):
            check_method(leaks(effect), models=["cnn"], properties=["moves", "deterministic"])
        assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])
        assert (random.getstate(), torch.is_grad_enabled()) == before[2:]

    def test_the_originals_survive_what_is_done_to_their_copies(self):
        before = weights_digest(original("cnn"))
        check_method(trains_in_place, models=["cnn"])
        assert weights_digest(original("cnn")) == before
        assert not any(module.training for module in original("cnn").modules())
        assert all(p.requires_grad and p.grad is None for p in original("cnn").parameters())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"models": ["resnet"]},
                "unknown model 'resnet' of the conformance suite: valid values: cnn, vit, res",
            ),
            (
                {"properties": ["movez"]},
                "unknown property 'movez' of the conformance suite: valid values: moves, input_unt",
            ),
            (
                {"promises": {"moves": {}}},
                "unknown promise 'moves' .*: valid values: forget_loss_rises, masked, b",
            ),
            ({"params": {"learning_rate": 1}}, "unknown hyperparameter 'learning_rate' of finetune"),
        ],
    )
    def test_misspelt_arguments_are_refused(self, options, message):
        with pytest.raises(UnlearnError, match=message):
            check_method("finetune", **{"models": ["cnn"], **options})

    def test_an_unknown_method_is_refused(self):
        with pytest.raises(UnlearnError, match="unknown method 'finetuning'"):
            check_method("finetuning")

    def test_a_mask_needs_a_share(self):
        (finding,) = check_method(ascend, models=["cnn"], properties=["masked"])
        assert "promises={'masked': {'share': 0.1}}" in finding.sentence

    def test_what_a_plugin_runs_with(self):
        """Its defaults, cut to what is cheap; what it is given is left alone."""
        seen = []

        class Mine(Finetune):
            name = "mine"

            def plan(self, workspace):
                seen.append(self.params)
                return (yield from super().plan(workspace))

        assert check_method(Mine, models=["cnn"], properties=["moves"]) == []
        assert check_method(Mine, models=["cnn"], properties=["moves"], params={"epochs": 3, "batch_size": 16}) == []
        assert seen == [FinetuneParams(epochs=2, batch_size=8), FinetuneParams(epochs=3, batch_size=16)]


def test_cases_are_the_checks_that_are_made():
    assert cases("salun") == [(name, model) for model in MODELS for name in [*general(), "masked"]]
    assert cases(ascend) == [(name, model) for model in MODELS for name in general()]
    assert ("batch_invariant", "vit") in cases(dampen, promises={"batch_invariant": {}})


def general():
    return [name for name in PROPERTIES if name not in ("forget_loss_rises", "masked", "batch_invariant")]


@pytest.mark.nightly
def test_the_example_is_a_test_file(tmp_path):
    """What the module's docstring tells third parties to paste passes for a good method and fails for a bad one.

    Importing the suite has loaded neither pytest nor MLflow: it is imported first, in the same process.
    """
    example = mlflow_unlearn.testing.__doc__.split("\n\n", 2)[2].split("\n\n`PROPERTIES`")[0]
    (tmp_path / "test_mine.py").write_text("\n".join(line[4:] for line in example.splitlines()))
    (tmp_path / "my_package.py").write_text(
        "from mlflow_unlearn.methods.finetune import Finetune\n"
        "class MyMethod(Finetune):\n"
        "    name = 'mine'\n"
        "    stochastic = False\n"
    )
    code = (
        "import sys, mlflow_unlearn.testing\n"
        "print('loaded', {'pytest', 'mlflow', 'timm'} & set(sys.modules))\n"
        "import pytest\n"
        "pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'cnn', '.'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("loaded set()\n"), done.stdout + done.stderr
    assert "FAILED test_mine.py::test_my_method_conforms[seeded-cnn]" in done.stdout, done.stdout + done.stderr
    assert f"1 failed, {len(general()) - 1} passed, {2 * len(general())} deselected" in done.stdout
