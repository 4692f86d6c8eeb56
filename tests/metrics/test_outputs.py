"""Outputs of a split: parts of them, several as one, and what is computed from them once."""

import numpy as np
import pytest

from mlflow_unlearn.metrics.outputs import (
    MetricInputs,
    SplitOutputs,
    concatenate_outputs,
    select_samples,
    without_classes,
)


def outputs(seed, count, probabilities=True):
    """Of a model with three outputs on ``count`` samples."""
    rng = np.random.default_rng(seed)
    p, labels = rng.dirichlet(np.ones(3), count), rng.integers(3, size=count)
    sums = np.eye(3)[labels].T @ p
    return SplitOutputs(
        labels,
        p.argmax(1),
        rng.random(count),
        p.max(1),
        *rng.normal(size=(2, count)),
        sums,
        p if probabilities else None,
    )


def same(a, b):
    assert vars(a).keys() == vars(b).keys()
    for name, value in vars(a).items():
        np.testing.assert_allclose(value, vars(b)[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("samples", [np.array([3, 0]), np.arange(6) % 2 == 0, np.array([], int)])
def test_a_part_is_what_its_samples_give(samples):
    whole = outputs(0, 6)
    part = select_samples(whole, samples)
    assert part.labels.tolist() == whole.labels[samples].tolist()
    assert part.entropies.tolist() == whole.entropies[samples].tolist()
    np.testing.assert_allclose(part.class_sums, np.eye(3)[part.labels].T @ whole.probabilities[samples], atol=1e-15)


def test_the_parts_together_are_the_whole():
    whole = outputs(0, 7)
    parts = [select_samples(whole, np.arange(3)), select_samples(whole, np.arange(3, 7))]
    same(concatenate_outputs(parts), whole)
    same(concatenate_outputs(parts, np.array([6, 0])), select_samples(whole, np.array([6, 0])))


def test_without_probabilities_there_are_no_sums_of_a_part():
    with pytest.raises(ValueError, match="evaluate with keep_probabilities=True"):
        concatenate_outputs([outputs(0, 3), outputs(1, 3, probabilities=False)])


def test_wholly_forgotten_classes_are_those_that_nothing_of_stays():
    forget, retain = outputs(0, 30), outputs(1, 30)
    stays = select_samples(retain, retain.labels != 1)
    assert MetricInputs({"forget": forget, "retain": stays}).forgotten.tolist() == [1]
    assert MetricInputs({"forget": forget, "retain": retain}).forgotten.tolist() == []


def test_removed_classes_are_those_that_are_neither_retained_nor_forgotten():
    forget, retain, test = (outputs(seed, 30) for seed in range(3))
    kept = {"forget": select_samples(forget, forget.labels == 0), "retain": select_samples(retain, retain.labels == 2)}
    inputs = MetricInputs(kept | {"test": test, "val": select_samples(test, test.labels == 2)}, {"test": test})
    assert inputs.removed.tolist() == [1]
    left = inputs.without_removed_classes()
    same(left.model["test"], select_samples(test, test.labels != 1))
    same(left.original["test"], left.model["test"])
    same(left.model["val"], inputs.model["val"])
    assert left.model["forget"] is kept["forget"] and left.removed.tolist() == []
    assert MetricInputs({"forget": forget, "retain": retain, "test": test}).removed.tolist() == []


def test_without_classes_where_no_probabilities_were_kept():
    whole = outputs(0, 9, probabilities=False)
    left = without_classes({"test": whole, "retain": whole}, np.array([0, 2]))
    assert left["retain"] is whole and left["test"].probabilities is None
    assert left["test"].labels.tolist() == [1] * int((whole.labels == 1).sum())
    assert left["test"].class_sums.tolist() == [[0, 0, 0], whole.class_sums[1].tolist(), [0, 0, 0]]


def test_what_metrics_share_is_computed_once():
    calls = []

    def compute(inputs):
        calls.append(inputs)
        return {"n": 1.0}

    first, second = MetricInputs({}), MetricInputs({})
    assert first.once(compute) is first.once(compute) and second.once(compute) == {"n": 1.0}
    assert calls == [first, second]
