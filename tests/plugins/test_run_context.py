"""The plugin that tags runs inside an unlearning command, and what our plugins add to `import mlflow`."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "plugins" / "mlflow_unlearn_plugins"
BAR_MS = 20

START_RUNS = """
import json
import mlflow

with mlflow.start_run() as outer, mlflow.start_run(nested=True) as inner:
    pass
runs = [mlflow.get_run(run.info.run_id) for run in (outer, inner)]
print(json.dumps([{key: value for key, value in run.data.tags.items() if key.startswith("unlearn.")} for run in runs]))
"""
LOADED = """
import json
import sys
import mlflow
ours = ("torch", "mlflow_unlearn", "mlflow_unlearn_plugins")
print(json.dumps([name for name in sys.modules if name.partition(".")[0] in ours]))
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> Path:
    """Our modules without what makes MLflow find them."""
    folder = tmp_path_factory.mktemp("modules")
    return shutil.copytree(
        PLUGINS / "src", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )


@pytest.fixture(scope="module")
def entry_points(tmp_path_factory) -> Path:
    """What pip would write from `pyproject.toml`; tests/registry has it done by pip."""
    folder = tmp_path_factory.mktemp("entry_points")
    project = tomllib.loads((PLUGINS / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def python(modules, entry_points, tmp_path):
    """Run code in a process that has the plugins, or just their modules, with a store of its own."""

    def run(code: str, *flags: str, installed: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        return subprocess.run(
            [sys.executable, *flags, "-c", code],
            cwd=tmp_path,
            env=environment
            | {
                "PYTHONPATH": os.pathsep.join(map(str, [modules, *([entry_points] if installed else []), ROOT])),
                "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
            }
            | variables,
            capture_output=True,
            text=True,
            check=True,
        )

    return run


def test_runs_of_the_user_s_code_name_the_command_s_run(python):
    told = python(START_RUNS, MLFLOW_UNLEARN_RUN_ID="0123abc", MLFLOW_UNLEARN_COMMAND="tune")
    tags = {"unlearn.parent_run_id": "0123abc", "unlearn.parent_command": "tune"}
    assert json.loads(told.stdout) == [tags, tags]
    assert "WARNING" not in told.stderr


@pytest.mark.parametrize(
    ("variables", "tags"),
    [
        ({}, {}),
        ({"MLFLOW_UNLEARN_RUN_ID": "", "MLFLOW_UNLEARN_COMMAND": "tune"}, {}),
        ({"MLFLOW_UNLEARN_RUN_ID": "7"}, {"unlearn.parent_run_id": "7"}),
    ],
)
def test_off_where_nobody_asks(python, variables, tags):
    # Without a store: what MLflow itself would set on a run.
    code = """
import json
from mlflow.tracking.context import registry
tags = registry.resolve_tags()
print(json.dumps({key: value for key, value in tags.items() if key.startswith("unlearn.")}))
print([type(one).__name__ for one in registry._run_context_provider_registry].count("UnlearnRunContext"))
"""
    found, count = python(code, **variables).stdout.splitlines()
    assert json.loads(found) == tags
    assert count == "1"


def test_import_mlflow_stays_as_fast_as_it_was(python):
    ours = ["mlflow_unlearn_plugins", "mlflow_unlearn_plugins.run_context"]
    assert json.loads(python(LOADED).stdout) == ours
    # `-X importtime` leaves out what entry points load, so here the same modules are imported by a statement.
    done = python("import mlflow, mlflow_unlearn_plugins.run_context", "-X", "importtime", installed=False)
    lines = re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(mlflow_unlearn_plugins\S*)$", done.stderr, re.MULTILINE)
    assert [name for _, name in lines] == ours
    spent = sum(int(micros) for micros, _ in lines) / 1000
    print(f"import mlflow: {spent:.2f} ms in our modules")
    assert spent <= BAR_MS
