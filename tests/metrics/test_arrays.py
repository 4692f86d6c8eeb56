"""The checks that all metrics share: what passes, and the sentence that refuses the rest."""

import numpy as np
import pytest

from mlflow_unlearn.metrics.arrays import (
    distributions,
    indices,
    integers,
    mask,
    non_negative,
    two_distributions,
    vector,
)


def refusal(function, *args, **options) -> str:
    with pytest.raises(ValueError) as error:
        function(*args, **options)
    return str(error.value)


@pytest.mark.parametrize("function", [distributions, non_negative])
def test_matrices_come_out_as_float64(function):
    for values in ([[1, 0]], np.array([[0.25, 0.75], [1.0, 0.0]], dtype=np.float32)):
        array = function(values, "p")
        assert array.dtype == np.float64
        assert array.tolist() == np.asarray(values).tolist()


@pytest.mark.parametrize("function", [distributions, non_negative])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 0.5], "expected a non-empty array of shape [N, K], got shape [2]."),
        ([[[1.0]]], "expected a non-empty array of shape [N, K], got shape [1, 1, 1]."),
        ([[]], "expected a non-empty array of shape [N, K], got shape [1, 0]."),
        ([[1.0, 0.0], [np.nan, 1.0]], "values must be finite and not negative."),
        ([[1.0, 0.0], [np.inf, 1.0]], "values must be finite and not negative."),
        ([[1.0, 0.0], [1.25, -0.25]], "values must be finite and not negative."),
    ],
)
def test_what_is_not_a_matrix_of_weights(function, values, message):
    assert refusal(function, values, "sums") == f"sums: {message}"


def test_rows_sum_to_1_within_the_error_of_half_precision():
    """The row that is farthest off is named: 1 + 1/4 and 1 − 1/2 beside one that is a distribution."""
    for off in (0.0, 1 / 128, -1 / 128):
        assert distributions([[0.5, 0.5 + off]], "p").tolist() == [[0.5, 0.5 + off]]
    for off in (1 / 64, -1 / 64):
        assert refusal(distributions, [[0.5, 0.5], [0.5, 0.5 + off]], "p") == (
            "p: each row must be a probability distribution, a sum is off 1 by 0.0156."
        )
    assert refusal(distributions, [[0.5, 0.75], [0.5, 0.0], [0.5, 0.5]], "q") == (
        "q: each row must be a probability distribution, a sum is off 1 by 0.5."
    )


def test_weights_need_not_sum_to_1():
    assert non_negative([[0.0, 0.5], [3.0, 4.0]], "sums").tolist() == [[0.0, 0.5], [3.0, 4.0]]


def test_two_of_one_shape():
    p, q = two_distributions([[1, 0], [0, 1]], [[0.5, 0.5], [0.25, 0.75]])
    assert p.dtype == q.dtype == np.float64 and p.tolist() == [[1, 0], [0, 1]] and q[1].tolist() == [0.25, 0.75]
    halves, thirds = np.full((3, 2), 1 / 2), np.full((2, 3), 1 / 3)
    assert refusal(two_distributions, thirds, halves) == "p and q must have the same shape, got [2, 3] and [3, 2]."
    assert refusal(two_distributions, thirds, 2 * thirds).startswith("q: each row must be a probability distribution")


def test_vectors_come_out_as_float64():
    array = vector([-1, 2], "entropy_test")
    assert array.dtype == np.float64 and array.tolist() == [-1.0, 2.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0], [2.0]], "expected a non-empty array of shape [N], got shape [2, 1]."),
        ([], "expected a non-empty array of shape [N], got shape [0]."),
        (1.0, "expected a non-empty array of shape [N], got shape []."),
        ([1.0, np.nan], "values must be finite."),
        ([-np.inf, 1.0], "values must be finite."),
    ],
)
def test_what_is_not_a_vector(values, message):
    assert refusal(vector, values, "entropy_test") == f"entropy_test: {message}"


@pytest.mark.parametrize("function", [integers, lambda values, name: indices(values, name, 3)])
def test_integers_come_out_as_int64(function):
    array = function(np.array([2, 0], dtype=np.uint8), "labels")
    assert array.dtype == np.int64 and array.tolist() == [2, 0]


@pytest.mark.parametrize("function", [integers, lambda values, name: indices(values, name, 3)])
@pytest.mark.parametrize(
    ("values", "got"), [([0.0, 1.0], "float64 [2]"), ([[0, 1]], "int64 [1, 2]"), ([], "float64 [0]"), (1, "int64 []")]
)
def test_what_are_no_integers(function, values, got):
    assert refusal(function, values, "labels") == (
        f"labels: expected a non-empty integer array of shape [N], got {got}."
    )


def test_no_integers_at_all():
    assert refusal(integers, np.array([], dtype=np.int64), "labels") == (
        "labels: expected a non-empty integer array of shape [N], got int64 [0]."
    )


def test_integers_may_be_negative_and_indices_not():
    assert integers([-1, 7], "labels").tolist() == [-1, 7]
    assert refusal(indices, [1, -1], "labels", 2) == "labels: values must be in [0, 2), got -1 to 1."


def test_indices_end_before_the_size():
    assert indices([0, 1], "labels", 2).tolist() == [0, 1]
    assert refusal(indices, [2, 1], "labels", 2) == "labels: values must be in [0, 2), got 1 to 2."


def test_a_stated_number_of_indices():
    assert indices([0, 0], "labels", 1, length=2).tolist() == [0, 0]
    assert refusal(indices, [0, 0], "labels", 1, length=3) == "labels: expected 3 values, got 2."


@pytest.mark.parametrize(
    ("values", "got"), [([True], "bool [1]"), ([1, 0], "int64 [2]"), ([[True, False]], "bool [1, 2]")]
)
def test_what_is_not_a_mask(values, got):
    assert refusal(mask, values, "nonmembers", 2) == f"nonmembers: expected a bool array of shape [2], got {got}."


def test_a_mask():
    array = mask([True, False], "nonmembers", 2)
    assert array.dtype == np.bool_ and array.tolist() == [True, False]
