"""What computes: forward passes, the one training loop, the frozen teacher. No MLflow."""
