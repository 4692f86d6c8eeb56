"""`audit`: attacks that decide, and controls that keep them honest."""
