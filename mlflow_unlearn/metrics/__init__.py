"""Metrics: pure functions on NumPy arrays, in float64, without state, without rounding."""
