"""Checks that all metrics share: what comes out has the right shape, dtype and range, or a ``ValueError`` says why."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Rows of a softmax in half precision miss 1 by a few thousandths; logits or counts passed by mistake miss it by more.
ROW_SUM_TOLERANCE = 1e-2


def distributions(values: npt.ArrayLike, name: str) -> Floats:
    """Return ``values`` as float64 ``[N, K]``, N and K at least 1, rows non-negative with sum 1.

    Raises:
        ValueError: ``values`` is anything else.
    """
    array = non_negative(values, name)
    worst = float(np.abs(array.sum(axis=1) - 1.0).max())
    if worst > ROW_SUM_TOLERANCE:
        raise ValueError(f"{name}: each row must be a probability distribution, a sum is off 1 by {worst:.3g}.")
    return array


def non_negative(values: npt.ArrayLike, name: str) -> Floats:
    """Return ``values`` as float64 ``[N, K]``, N and K at least 1, finite and non-negative.

    Raises:
        ValueError: ``values`` is anything else.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name}: expected a non-empty array of shape [N, K], got shape {list(array.shape)}.")
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(f"{name}: values must be finite and not negative.")
    return array


def two_distributions(p: npt.ArrayLike, q: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return ``p`` and ``q`` as :func:`distributions` of one shape ``[N, K]``.

    Raises:
        ValueError: one of them is anything else, or the shapes differ.
    """
    rows_p, rows_q = distributions(p, "p"), distributions(q, "q")
    if rows_p.shape != rows_q.shape:
        raise ValueError(f"p and q must have the same shape, got {list(rows_p.shape)} and {list(rows_q.shape)}.")
    return rows_p, rows_q


def vector(values: npt.ArrayLike, name: str) -> Floats:
    """Return ``values`` as float64 ``[N]``, N at least 1, finite.

    Raises:
        ValueError: ``values`` is anything else.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected a non-empty array of shape [N], got shape {list(array.shape)}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: values must be finite.")
    return array


def integers(values: npt.ArrayLike, name: str) -> Ints:
    """Return ``values`` as int64 ``[N]``, N at least 1.

    Raises:
        ValueError: ``values`` is anything else.
    """
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        found = f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"{name}: expected a non-empty integer array of shape [N], got {found}.")
    return array.astype(np.int64)


def indices(values: npt.ArrayLike, name: str, size: int, length: int | None = None) -> Ints:
    """Return ``values`` as int64 ``[N]``, N at least 1, each in ``[0, size)``.

    Args:
        values: integers ``[N]``.
        name: of the argument, for the message.
        size: one more than the largest index.
        length: N, where it has to be a given one.

    Raises:
        ValueError: ``values`` is anything else.
    """
    array = integers(values, name)
    if length is not None and array.size != length:
        raise ValueError(f"{name}: expected {length} values, got {array.size}.")
    if array.min() < 0 or array.max() >= size:
        raise ValueError(f"{name}: values must be in [0, {size}), got {array.min()} to {array.max()}.")
    return array


def mask(values: npt.ArrayLike, name: str, length: int) -> Bools:
    """Return ``values`` as bool ``[length]``.

    Raises:
        ValueError: ``values`` is anything else.
    """
    array = np.asarray(values)
    if array.dtype != np.bool_ or array.shape != (length,):
        raise ValueError(f"{name}: expected a bool array of shape [{length}], got {array.dtype} {list(array.shape)}.")
    return array


def log_likelihoods(values: npt.ArrayLike, name: str) -> Floats:
    """Return ``values`` as float64 ``[N]``, finite and at most 0.

    Raises:
        ValueError: ``values`` is anything else.
    """
    array = vector(values, name)
    if (array > 0).any():
        raise ValueError(f"{name}: a log-likelihood is at most 0, got {array.max():.3g}.")
    return array


def matrix(values: npt.ArrayLike, name: str, columns: int) -> Floats:
    """Return ``values`` as float64 ``[K, columns]``, K at least 1, finite.

    Raises:
        ValueError: ``values`` is anything else.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0 or array.shape[1] != columns or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite values of shape [K, {columns}], got shape {list(array.shape)}.")
    return array


def references(values: npt.ArrayLike, name: str, columns: int) -> tuple[Floats, Ints]:
    """Return ``values`` as float64 ``[K, columns]``, and how many of each column are there ``[columns]``, at least 1.

    A value is NaN where the reference was trained on the sample, and so says nothing of it.

    Raises:
        ValueError: ``values`` is anything else, or infinite, or a sample has no reference that left it out.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0 or array.shape[1] != columns or np.isinf(array).any():
        raise ValueError(f"{name}: expected values of shape [K, {columns}], got shape {list(array.shape)}.")
    counts = (~np.isnan(array)).sum(axis=0)
    if not counts.all():
        raise ValueError(
            f"{name}: every sample needs a reference that left it out, and {(counts == 0).sum()} have none."
        )
    return array, counts
