"""Several processes as one: the ranks, and how they are started."""
