"""The example plugin in an environment of its own, installed as a third party would; and plugins that are broken."""

import os
import re
import shutil
from pathlib import Path

import pytest
from environments import Environment, run
from mlflow.tracking import MlflowClient

from mlflow_unlearn.methods import BUILTIN

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "plugins" / "example_method"

USE = """
import sys
from mlflow_unlearn import unlearn
from mlflow_unlearn.cli import main
from mlflow_unlearn.errors import UnlearnError
from toy import original, same, splits, state

try:
    main(["methods"])
except SystemExit as end:
    print("exit code", end.code)
for method in sys.argv[1:]:
    try:
        result = unlearn(original(), splits(), method=method, params={"epochs": 2})
        print(method, len(result.history), not same(state(original()), state(result.model)))
    except UnlearnError as error:
        print(error)
"""
"""Lists the methods, then unlearns with each of those that are named."""
CHECK = """
from mlflow_unlearn.testing import check_method

for finding in check_method("neggrad_early_stop"):
    print(finding)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin")
    built = Environment(folder / "venv")
    # A copy, since setuptools builds beside the sources.
    source = shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    flags = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    installed = built("-m", "pip", "install", *flags, source)
    assert installed.returncode == 0, installed.stderr
    return built


def distribution(folder: Path, name: str, method: str, code: str) -> Path:
    """What pip would install for a plugin of one module."""
    module = name.replace("-", "_")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mlflow_unlearn.methods]\n{method} = {module}:Method\n")
    (folder / f"{module}.py").write_text(code)
    return folder


def listed(out):
    """All words of a table."""
    return set(re.findall(r"\w+", out))


@pytest.mark.slow
def test_the_command_lists_it_beside_ours_and_it_unlearns(environment):
    done = environment("-c", USE, "neggrad_early_stop")
    assert done.returncode == 0, done.stderr
    assert {"neggrad_early_stop", *BUILTIN} <= listed(done.stdout)
    assert done.stdout.splitlines()[-2:] == ["exit code 0", "neggrad_early_stop 2 True"]


@pytest.mark.nightly
def test_it_is_a_method_of_the_project(environment, tmp_path):
    """`mlflow run . -e unlearn -P method=…`, with a version registered by it."""
    variables = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "PATH": os.pathsep.join([str(environment.python.parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT / "tests"),
        "OMP_NUM_THREADS": "1",
    }
    python = environment.python
    experiment = ("experiments", "create", "-n", "plugin", "-l", (tmp_path / "artifacts").as_uri())
    run(python, "-m", "mlflow", *experiment, **variables)
    variables["MLFLOW_EXPERIMENT_NAME"] = "plugin"
    train = ("--data", "digits,train=15%", "--name", "clf", "--architecture", "toy:trainable", "--epochs", "5")
    run(python, "-m", "mlflow_unlearn", "train", *train, **variables)
    given = {
        "model_uri": "models:/clf/1",
        "forget": "random:10%",
        "method": "neggrad_early_stop",
        "params": '{"lr": 0.1}',
    }
    pairs = [part for key, value in given.items() for part in ("-P", f"{key}={value}")]
    run(python, "-m", "mlflow", "run", ROOT, "-e", "unlearn", *pairs, "--env-manager", "local", **variables)
    [second] = [
        v
        for v in MlflowClient(variables["MLFLOW_TRACKING_URI"]).search_model_versions("name='clf'")
        if str(v.version) == "2"
    ]
    assert second.tags["unlearn.method"] == "neggrad_early_stop"


@pytest.mark.nightly
def test_it_passes_the_conformance_suite(environment):
    done = environment("-c", CHECK)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.mark.nightly
def test_a_plugin_that_cannot_be_imported_is_named_and_harms_no_other(environment, tmp_path):
    broken = distribution(tmp_path, "broken-plugin", "half_written", "raise RuntimeError('no such library')\n")
    done = environment("-c", USE, "lotus", "half_written", path=[broken])
    assert done.returncode == 0, done.stderr
    assert {"neggrad_early_stop", *BUILTIN} <= listed(done.stdout)
    for word in ("half_written", "broken-plugin", "no such library"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    code, lotus, refused = done.stdout.splitlines()[-3:]
    assert (code, lotus) == ("exit code 0", "lotus 2 True")
    assert "the method 'half_written' cannot be used" in refused and "no such library" in refused


@pytest.mark.slow
def test_a_name_that_is_taken_is_refused(environment, tmp_path):
    second = distribution(tmp_path, "second-scrub", "scrub", "from mlflow_unlearn.methods import Method\n")
    shown = environment("-m", "mlflow_unlearn", "methods", path=[second])
    assert shown.returncode == 2
    assert "'scrub'" in shown.stderr and "second-scrub" in shown.stderr
    assert "Traceback" not in shown.stderr
