"""Unlearn a registered MLflow model version with LoTUS, measure it, and register the result as a new version.

Example::

    from mlflow_unlearn import Splits, evaluate, unlearn

    splits = Splits(forget=forget, retain=retain, val=val, test=test)
    result = unlearn(model, splits, method="lotus", params={"alpha": 2.0}, seed=0)
    metrics = evaluate(result.model, splits, original=model)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_unlearn.api import AuditResult, Result, audit, evaluate, unlearn
    from mlflow_unlearn.data.splits import Splits
    from mlflow_unlearn.metrics.suite import Metrics

__all__ = ["AuditResult", "Metrics", "Result", "Splits", "audit", "evaluate", "unlearn"]
__version__ = "0.2.0"

# Loaded on first use: `mlflow-unlearn --help` must not wait for torch.
_HOME = {
    "AuditResult": "mlflow_unlearn.api",
    "audit": "mlflow_unlearn.api",
    "Metrics": "mlflow_unlearn.metrics.suite",
    "Result": "mlflow_unlearn.api",
    "Splits": "mlflow_unlearn.data.splits",
    "evaluate": "mlflow_unlearn.api",
    "unlearn": "mlflow_unlearn.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mlflow_unlearn' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
