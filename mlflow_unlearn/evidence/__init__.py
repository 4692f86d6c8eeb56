"""What is recorded of an unlearning and how it is judged: no model, no registry."""
