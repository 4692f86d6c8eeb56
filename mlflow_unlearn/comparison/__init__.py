"""Methods beside each other: finished runs and the table."""
