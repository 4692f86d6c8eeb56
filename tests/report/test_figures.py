"""Numbers, texts and axes of the report's figures."""

import math

import pytest

from mlflow_unlearn.report import figures


@pytest.mark.parametrize(
    "values", [[0, 0], [1, 1], [-2, -2], [0.4, 0.6], [1e-20, 3e-20], [-1e12, 1e12], [0.1, 0.1 + 1e-9]]
)
def test_ticks_enclose_the_values_and_are_few(values):
    ticks = figures.axis_ticks(values)
    assert ticks[0] <= min(values) + 1e-9 * abs(min(values)) and ticks[-1] >= max(values) * (1 - 1e-9)
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0.0000"), (0.5, "0.5000"), (-0.25, "−0.2500"), (3.4841e-5, "3.48 × 10⁻⁵"), (2e6, "2.00 × 10⁶")]
    + [(None, "–"), (math.nan, "–"), (-math.inf, "–"), (-1e-7, "−1.00 × 10⁻⁷")],
)
def test_numbers(value, shown):
    assert figures.number(value) == shown


def test_a_line_of_a_figure_counts_wide_characters_twice():
    assert figures.fit("a\nb  c", 5) == "a b c"
    assert figures.fit("abcdef", 4) == "abc…"
    assert figures.fit("日本語", 4) == "日…"
