"""What MLflow loads by its own entry points: one thin module each."""
