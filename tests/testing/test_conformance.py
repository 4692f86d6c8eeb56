"""The conformance suite finds nothing wrong with our methods, and each property catches the method broken for it."""

import copy
import os
import random
import subprocess
import sys
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from pydantic import ConfigDict
from torch import nn

import mlflow_unlearn.testing
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import BUILTIN, override_phases
from mlflow_unlearn.methods.finetune import Finetune, FinetuneParams
from mlflow_unlearn.methods.neggrad_plus import NegGradPlus
from mlflow_unlearn.methods.retrain import cross_entropy
from mlflow_unlearn.methods.scrub import Scrub
from mlflow_unlearn.methods.ssd import Ssd, dampened, squared_gradients
from mlflow_unlearn.rng import isolated_rng
from mlflow_unlearn.testing import MODELS, PROPERTIES, SETTINGS, Finding, cases, check_method, original
from mlflow_unlearn.testing.models import digits

SLOW = [("ssd", "resnet18"), ("unsir", "resnet18"), ("salun", "resnet18")]


@pytest.mark.parametrize(
    ("method", "model"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case in SLOW)) for case in product(BUILTIN, MODELS)],
)
def test_builtin_methods_conform(method, model):
    assert check_method(method, models=[model]) == []


def test_every_builtin_method_has_its_settings():
    assert list(SETTINGS) == list(BUILTIN)


# ---- Callables that do it right. Those further down are made from them, with one thing wrong. ----


def train(
    student,
    splits,
    seed,
    *,
    weights=(-0.5, 0.5),
    batches=lambda count: torch.randperm(count).split(8),
    before_backward=lambda student: None,
    before_step=lambda student: None,
    after_step=lambda student: None,
    lr=0.02,
    **options,
):
    """Train ``student`` itself: each step goes up on some forget samples and down on some retain samples."""
    rule = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=lr, **options)
    (images, labels), (kept_images, kept_labels) = splits.forget.tensors, splits.retain.tensors
    with isolated_rng(seed):
        for _ in range(6):
            for chosen in batches(len(labels)):
                kept = torch.randperm(len(kept_labels))[:8]
                logits = student(torch.cat([images[chosen], kept_images[kept]]))
                targets = torch.cat([labels[chosen], kept_labels[kept]])
                losses = nn.functional.cross_entropy(logits, targets, reduction="none")
                parts = losses[: len(chosen)], losses[len(chosen) :]
                rule.zero_grad()
                before_backward(student)
                sum(weight * part.mean() for weight, part in zip(weights, parts, strict=True) if len(part)).backward()
                before_step(student)
                rule.step()
                with torch.no_grad():
                    after_step(student)
    rule.zero_grad()
    return student.eval()


def ascend(model, splits, seed, **options):
    """NegGrad+."""
    return train(copy.deepcopy(model).train(), splits, seed, **options)


def mask_of(model, splits, share=0.1):
    """The coordinates with the largest gradients of the forget loss, by parameter."""
    student = copy.deepcopy(model).eval()
    images, labels = splits.forget.tensors
    nn.functional.cross_entropy(student(images), labels).backward()
    gradients = {name: p.grad.abs() for name, p in student.named_parameters() if p.requires_grad}
    sizes = torch.cat([gradient.flatten() for gradient in gradients.values()])
    least = sizes.topk(int(share * len(sizes))).values[-1]
    return {name: gradient >= least for name, gradient in gradients.items()}


def ascend_masked(model, splits, seed, *, training=False):
    """Momentum and weight decay move every weight, and those outside the mask are put back after each step."""
    mask, before = mask_of(model, splits), dict(model.named_parameters())

    def put_back(student):
        for name, parameter in student.named_parameters():
            if name in mask:
                parameter.copy_(torch.where(mask[name], parameter, before[name]))

    student = copy.deepcopy(model).train(training)
    return train(student, splits, seed, after_step=put_back, momentum=0.9, weight_decay=0.01)


def dampen(model, splits, seed, importance=squared_gradients):
    """SSD, with importances from batches of four."""
    student = copy.deepcopy(model).eval()
    sums = []
    for data in (splits.forget, splits.retain):
        sums.append(importance(student, zip(*(part.split(4) for part in data.tensors), strict=True)))
    (forget, n_forget), (retain, n_retain) = sums
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name in forget:
                everything = (forget[name] + retain[name]) / (n_forget + n_retain)
                parameter.copy_(dampened(parameter, forget[name] / n_forget, everything, alpha=1.0, lam=1.0))
    return student


RISES = {"promises": {"forget_loss_rises": {}}}
MASKED = {"promises": {"masked": {"share": 0.1}}}
INVARIANT = {"promises": {"batch_invariant": {}}, "stochastic": False}


@pytest.mark.parametrize("model", MODELS)
def test_an_honest_callable_conforms(model):
    assert check_method(ascend, models=[model], **RISES) == []


@pytest.mark.parametrize("model", ["cnn", "vit"])
@pytest.mark.parametrize(("method", "options"), [(ascend_masked, MASKED), (dampen, INVARIANT)])
def test_so_do_those_with_a_promise(method, options, model):
    assert check_method(method, models=[model], **options) == []


# ---- Each broken in one way. ----


def returns_the_original(model, splits, seed):
    ascend(model, splits, seed)
    return model


def returns_another_copy(model, splits, seed):
    ascend(model, splits, seed)
    return copy.deepcopy(model).eval()


def trains_in_place(model, splits, seed):
    return copy.deepcopy(train(model, splits, seed))


def leaves_eval_mode(model, splits, seed):
    student = ascend(model, splits, seed)
    model.eval()
    return student


def freezes_the_input(model, splits, seed):
    student = ascend(model, splits, seed)
    model.requires_grad_(False)
    return student


def leaves_gradients(model, splits, seed):
    mask_of(model, splits)
    with isolated_rng(seed):
        model(splits.forget.tensors[0]).sum().backward()
    return ascend(model, splits, seed)


def drifts_statistics(model, splits, seed):
    with torch.no_grad():
        model(splits.retain.tensors[0])
    return ascend(model, splits, seed)


def shares_a_bias(model, splits, seed):
    student = ascend(model, splits, seed)
    student[-1].bias = model[-1].bias
    return student


def leaks(effect):
    def leaky(model, splits, seed):
        student = ascend(model, splits, seed)
        effect(seed)
        return student

    return leaky


def draws_from_the_caller(model, splits, seed):
    torch.rand(1)
    return ascend(model, splits, seed)


def returns_train_mode(model, splits, seed):
    return ascend(model, splits, seed).train()


def makes_a_nan(model, splits, seed):
    student = ascend(model, splits, seed)
    student[-1].bias.data[3] = torch.nan
    return student


def drops_a_class(model, splits, seed):
    student = ascend(model, splits, seed)
    student[-1].weight.data, student[-1].bias.data = student[-1].weight.data[:9], student[-1].bias.data[:9]
    return student


def seeds_itself(model, splits, seed):
    return ascend(model, splits, int.from_bytes(os.urandom(4)))


def ignores_its_seed(model, splits, seed):
    return ascend(model, splits, 0)


class OneEpoch(Finetune):
    def plan(self, workspace):
        return (yield from Finetune({**self.params.model_dump(), "epochs": 1}).plan(workspace))


class Lenient(Finetune):
    class Params(FinetuneParams):
        model_config = ConfigDict(extra="ignore")

        @classmethod
        def parse(cls, values, *, method):
            return cls(**values)


class Terse(Finetune):
    class Params(FinetuneParams):
        @classmethod
        def parse(cls, values, *, method):
            if unknown := set(values) - set(cls.model_fields):
                raise UnlearnError(f"unknown hyperparameters: {unknown}")
            return cls(**values)


def thaws(model, splits, seed):
    return train(copy.deepcopy(model).train().requires_grad_(), splits, seed)


def divides_by_n_minus_one(model, splits, seed):
    n = len(splits.forget)
    return ascend(model, splits, seed, weights=(-0.5 * n / (n - 1), 0.5))


NOTHING = [torch.empty(0, dtype=torch.long)]


def leaves_out_a_single_sample(model, splits, seed):
    return ascend(model, splits, seed, batches=lambda count: torch.randperm(count).split(8) if count > 1 else NOTHING)


def normalises_the_forget_set_alone(model, splits, seed):
    student = copy.deepcopy(model).train()
    with torch.no_grad(), isolated_rng(seed):
        student(splits.forget.tensors[0])
    return train(student, splits, seed)


def skips_partial_batches(model, splits, seed):
    """Without one batch of eight it trains on the retain set alone, so that weights do move."""
    return ascend(model, splits, seed, batches=lambda count: torch.randperm(count).split(8)[: count // 8] or NOTHING)


def does_nothing_without_a_full_batch(model, splits, seed):
    return ascend(model, splits, seed, batches=lambda count: torch.randperm(count).split(8)[: count // 8])


def weighs_by_class_frequency(model, splits, seed):
    """The weight of a class without a forget sample is infinite."""
    balance = (1 / splits.forget.tensors[1].bincount(minlength=10)).mean().item()
    return ascend(model, splits, seed, weights=(-0.5 * balance, 0.5))


def looks_up_each_class_in_the_retain_set(model, splits, seed):
    for label in splits.forget.tensors[1]:
        (splits.retain.tensors[1] == label).nonzero()[0]
    return ascend(model, splits, seed)


def negate_gradients(student):
    for parameter in student.parameters():
        if parameter.grad is not None:
            parameter.grad.neg_()


def flips_a_sign_to_no_effect(model, splits, seed):
    """The gradients are negated before there are any."""
    return ascend(model, splits, seed, weights=(0.5, 0.5), before_backward=negate_gradients)


def flips_a_sign_twice(model, splits, seed):
    return ascend(model, splits, seed, weights=(-0.5, -0.5), before_step=negate_gradients)


class Descent(NegGradPlus):
    def plan(self, workspace):
        return (yield from override_phases(super().plan(workspace), loss=cross_entropy))


class WithoutMaxPasses(Scrub):
    def plan(self, workspace):
        return (yield from Scrub({**self.params.model_dump(), "msteps": 0}).plan(workspace))


def masks_gradients_alone(model, splits, seed):
    """Weight decay moves what has no gradient."""
    mask = mask_of(model, splits)

    def zero(student):
        for name, parameter in student.named_parameters():
            if name in mask:
                parameter.grad.mul_(mask[name])

    return train(copy.deepcopy(model).eval(), splits, seed, before_step=zero, weight_decay=0.01)


def squared_mean_gradients(model, batches):
    """What goes by the name of Fisher information in much public code: a batch's mean gradient, squared."""
    total, count = {}, 0
    for images, labels in batches:
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        loss = nn.functional.cross_entropy(model(images), labels)
        for name, gradient in zip(trainable, torch.autograd.grad(loss, list(trainable.values())), strict=True):
            total[name] = total.get(name, 0) + gradient.double().square() * len(labels)
        count += len(labels)
    return total, count


class BatchSsd(Ssd):
    """Takes both sets in one batch each, so that their order makes no difference."""

    def plan(self, workspace):
        workspace.model.eval()
        forget, n_forget = squared_mean_gradients(workspace.model, workspace.batches("forget", 128))
        retain, n_retain = squared_mean_gradients(workspace.model, workspace.batches("retain", 128))
        state = workspace.snapshot()
        for name in forget:
            everything = (forget[name] + retain[name]) / (n_forget + n_retain)
            state[name] = dampened(state[name], forget[name] / n_forget, everything, alpha=1.0, lam=1.0)
        workspace.restore(state)
        return {}
        yield


def numpy_seed(seed):
    np.random.seed(seed)


# (property, method broken for it, model, what else finds it, options)
BROKEN = [
    ("moves", returns_the_original, "cnn", {"no_shared_storage", "eval_mode"}, {}),
    ("moves", returns_another_copy, "cnn", set(), {}),
    ("input_untouched", trains_in_place, "cnn", set(), {}),
    ("input_untouched", leaves_eval_mode, "cnn", set(), {}),
    ("input_untouched", freezes_the_input, "cnn", set(), {}),
    ("input_untouched", leaves_gradients, "cnn", set(), {}),
    ("input_untouched", drifts_statistics, "resnet18", set(), {}),
    ("no_shared_storage", shares_a_bias, "cnn", set(), {}),
    ("globals_restored", leaks(random.seed), "cnn", set(), {}),
    ("globals_restored", leaks(numpy_seed), "cnn", set(), {}),
    ("globals_restored", leaks(torch.manual_seed), "cnn", set(), {}),
    ("globals_restored", leaks(lambda seed: torch.set_grad_enabled(False)), "cnn", set(), {}),
    ("globals_restored", draws_from_the_caller, "cnn", set(), {}),
    ("eval_mode", returns_train_mode, "cnn", set(), {}),
    ("finite", makes_a_nan, "cnn", set(), {}),
    ("finite", drops_a_class, "cnn", set(), {}),
    ("deterministic", seeds_itself, "cnn", set(), {}),
    ("seeded", ignores_its_seed, "cnn", set(), {}),
    ("seeded", ascend, "cnn", set(), {"stochastic": False}),
    ("epochs", OneEpoch, "cnn", set(), {}),
    ("unknown_hyperparameter", Lenient, "cnn", set(), {}),
    ("unknown_hyperparameter", Terse, "cnn", set(), {}),
    ("frozen_parameters", thaws, "cnn", set(), {}),
    ("one_sample", divides_by_n_minus_one, "cnn", set(), {}),
    ("one_sample", leaves_out_a_single_sample, "cnn", set(), {}),
    ("one_sample", normalises_the_forget_set_alone, "resnet18", set(), {}),
    # One sample is less than a batch as well, and so are the three of the class that is forgotten as a whole.
    ("small_forget_set", skips_partial_batches, "cnn", {"one_sample"}, {}),
    ("small_forget_set", does_nothing_without_a_full_batch, "cnn", {"one_sample", "whole_class"}, {}),
    # Few samples are of few classes.
    ("missing_class", weighs_by_class_frequency, "cnn", {"one_sample", "small_forget_set", "whole_class"}, {}),
    ("whole_class", looks_up_each_class_in_the_retain_set, "cnn", set(), {}),
    ("forget_loss_rises", flips_a_sign_to_no_effect, "cnn", set(), RISES),
    ("forget_loss_rises", flips_a_sign_twice, "cnn", set(), RISES),
    ("forget_loss_rises", Descent, "cnn", set(), {}),
    ("forget_loss_rises", WithoutMaxPasses, "cnn", set(), {}),
    ("masked", masks_gradients_alone, "cnn", set(), MASKED),
    ("masked", partial(ascend_masked, training=True), "resnet18", set(), MASKED),
    ("batch_invariant", partial(dampen, importance=squared_mean_gradients), "cnn", set(), INVARIANT),
    ("batch_invariant", BatchSsd, "cnn", set(), {}),
]


@pytest.mark.parametrize(
    ("name", "method", "model", "also", "options"),
    [pytest.param(*case, id=f"{case[0]}-{getattr(case[1], '__name__', 'partial')}") for case in BROKEN],
)
def test_a_broken_method_is_caught_by_the_property_meant_for_it(name, method, model, also, options):
    # What needs BatchNorm needs the large model: no time to see that nothing else finds it.
    properties = ["moves", name] if model == "resnet18" else None
    found = check_method(method, models=[model], properties=properties, **options)
    assert {finding.property for finding in found} == {name} | also, found
    assert all(finding.model == model and finding.sentence for finding in found)


def test_every_property_is_tripped_by_a_method_broken_for_it():
    assert {name for name, *_ in BROKEN} == set(PROPERTIES)


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


@pytest.mark.parametrize("model", MODELS)
def test_the_originals_have_something_to_forget(model):
    """All of the training set is known by heart, and not all that was never seen."""
    images, labels = digits()
    with torch.no_grad():
        right = original(model)(images).argmax(dim=1) == labels
    assert right[:30].all() and not right[30:].all()


def test_cases_are_the_checks_that_are_made():
    assert cases("salun") == [(name, model) for model in MODELS for name in [*general(), "masked"]]
    assert cases(ascend) == [(name, model) for model in MODELS for name in general()]
    assert ("batch_invariant", "vit") in cases(dampen, promises={"batch_invariant": {}})


def general():
    return [name for name in PROPERTIES if name not in ("forget_loss_rises", "masked", "batch_invariant")]


def test_every_property_names_its_defect():
    assert all(prop.__doc__.startswith("Catches ") for prop in PROPERTIES.values())


def test_the_example_is_a_test_file(tmp_path):
    """What the module's docstring tells third parties to paste passes for a good method and fails for a bad one."""
    example = mlflow_unlearn.testing.__doc__.split("\n\n", 2)[2].split("\n\n`PROPERTIES`")[0]
    (tmp_path / "test_mine.py").write_text("\n".join(line[4:] for line in example.splitlines()))
    (tmp_path / "my_package.py").write_text(
        "from mlflow_unlearn.methods.finetune import Finetune\n"
        "class MyMethod(Finetune):\n"
        "    name = 'mine'\n"
        "    stochastic = False\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cnn", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "FAILED test_mine.py::test_my_method_conforms[seeded-cnn]" in done.stdout, done.stdout + done.stderr
    assert f"1 failed, {len(general()) - 1} passed, {2 * len(general())} deselected" in done.stdout


def test_importing_the_suite_loads_neither_pytest_nor_mlflow():
    code = "import sys, mlflow_unlearn.testing; print({'pytest', 'mlflow', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
