"""House rules that a machine can check; see CONTRIBUTING."""

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlflow_unlearn
import mlflow_unlearn.methods
import mlflow_unlearn.metrics

MATHS = ["compute", "forward", "teacher", "loop", "unlearning", "evaluation", "models", "progress", "data.splits"]
MODULES = MATHS + [
    f"{package.__name__.partition('.')[2]}.{module.name}"
    for package in (mlflow_unlearn.methods, mlflow_unlearn.metrics)
    for module in pkgutil.iter_modules(package.__path__)
]

USE = """
import sys
from mlflow_unlearn import Splits, evaluate, unlearn
from toy import original, splits
result = unlearn(original(), splits(), params={"epochs": 1})
evaluate(result.model, splits(), original(), original())
import importlib
for name in sys.argv[1:]:
    importlib.import_module("mlflow_unlearn." + name)
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("mlflow", "optuna", "click")))
"""


def python(code, *arguments):
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_maths_does_without_mlflow():
    """Neither importing nor using it loads the registry, the tuner or the command line."""
    assert python(USE, *MODULES) == "[]"


def test_importing_the_package_does_not_wait_for_torch():
    assert python("import sys, mlflow_unlearn; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_is_documented(name):
    module = importlib.import_module(f"mlflow_unlearn.{name}")
    assert module.__doc__
    public = [
        value
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    for value in public:
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        assert (value.__doc__ or "").strip(), f"{value.__qualname__} has no docstring"
        if inspect.isclass(value):
            for key, member in vars(value).items():
                if not key.startswith("_") and inspect.isfunction(member):
                    assert inspect.getdoc(member), f"{value.__qualname__}.{key} has no docstring"


def test_the_public_api_is_what_it_says():
    assert {"Splits", "evaluate", "unlearn"} <= set(mlflow_unlearn.__all__)
    for name in mlflow_unlearn.__all__:
        assert getattr(mlflow_unlearn, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Splitz'"):
        mlflow_unlearn.Splitz  # noqa: B018
