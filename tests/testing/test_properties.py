"""Each property catches the method broken for it, and no other property does."""

import random
from functools import partial

import pytest
import torch
from unlearners import (
    BatchSsd,
    Descent,
    Lenient,
    OneEpoch,
    Terse,
    WithoutMaxPasses,
    ascend,
    ascend_masked,
    dampen,
    divides_by_n_minus_one,
    does_nothing_without_a_full_batch,
    draws_from_the_caller,
    drifts_statistics,
    drops_a_class,
    flips_a_sign_to_no_effect,
    flips_a_sign_twice,
    freezes_the_input,
    ignores_its_seed,
    leaks,
    leaves_eval_mode,
    leaves_gradients,
    leaves_out_a_single_sample,
    looks_up_each_class_in_the_retain_set,
    makes_a_nan,
    masks_gradients_alone,
    normalises_the_forget_set_alone,
    numpy_seed,
    returns_another_copy,
    returns_the_original,
    returns_train_mode,
    seeds_itself,
    shares_a_bias,
    skips_partial_batches,
    squared_mean_gradients,
    thaws,
    trains_in_place,
    weighs_by_class_frequency,
)

from mlflow_unlearn.testing import MODELS, PROPERTIES, check_method

RISES = {"promises": {"forget_loss_rises": {}}}
MASKED = {"promises": {"masked": {"share": 0.1}}}
INVARIANT = {"promises": {"batch_invariant": {}}, "stochastic": False}


LARGE = [pytest.param(name, marks=[pytest.mark.nightly] * (name == "resnet18")) for name in MODELS]


@pytest.mark.parametrize("model", LARGE)
def test_an_honest_callable_conforms(model):
    assert check_method(ascend, models=[model], **RISES) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "vit"])
@pytest.mark.parametrize(("method", "options"), [(ascend_masked, MASKED), (dampen, INVARIANT)])
def test_so_do_those_with_a_promise(method, options, model):
    assert check_method(method, models=[model], **options) == []


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


@pytest.mark.nightly
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


def test_every_property_names_its_defect():
    assert all(prop.__doc__.startswith("Catches ") for prop in PROPERTIES.values())
