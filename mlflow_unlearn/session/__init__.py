"""A version opened for work."""
