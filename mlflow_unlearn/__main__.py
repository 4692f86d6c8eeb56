"""`python -m mlflow_unlearn`, which MLproject runs: under conda the package itself is not installed."""

from mlflow_unlearn.cli import main

main()
