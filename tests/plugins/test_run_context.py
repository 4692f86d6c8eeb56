"""The plugin that tags runs inside an unlearning command, and what our plugins add to `import mlflow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "plugins" / "mlflow_unlearn_plugins"

START_RUNS = """
import json
import sys
import mlflow

ours = ("torch", "mlflow_unlearn", "mlflow_unlearn_plugins")
print(json.dumps([name for name in sys.modules if name.partition(".")[0] in ours]))
with mlflow.start_run() as outer, mlflow.start_run(nested=True) as inner:
    pass
runs = [mlflow.get_run(run.info.run_id) for run in (outer, inner)]
print(json.dumps([{key: value for key, value in run.data.tags.items() if key.startswith("unlearn.")} for run in runs]))
import mlflow_unlearn_plugins.backend
print(json.dumps("torch" in sys.modules))
"""


@pytest.mark.slow
def test_runs_of_the_user_s_code_name_the_command_s_run(installed, empty_store, tmp_path):
    """In a process that has the plugins, of which `import mlflow` has loaded this one and nothing else of ours.

    Nor does the backend, when MLflow loads it, wait for torch.
    """
    tags = {"unlearn.parent_run_id": "0123abc", "unlearn.parent_command": "tune"}
    done = subprocess.run(
        [sys.executable, "-c", START_RUNS],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        | {
            "PYTHONPATH": os.pathsep.join(map(str, [installed, ROOT])),
            "MLFLOW_TRACKING_URI": empty_store.uri,
            "MLFLOW_UNLEARN_RUN_ID": "0123abc",
            "MLFLOW_UNLEARN_COMMAND": "tune",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, found, torch_is_loaded = map(json.loads, done.stdout.splitlines())
    assert loaded == ["mlflow_unlearn_plugins", "mlflow_unlearn_plugins.run_context"]
    assert found == [tags, tags]
    assert "WARNING" not in done.stderr and not torch_is_loaded


@pytest.mark.parametrize(
    ("variables", "tags"),
    [
        ({}, None),
        ({"MLFLOW_UNLEARN_RUN_ID": "", "MLFLOW_UNLEARN_COMMAND": "tune"}, None),
        ({"MLFLOW_UNLEARN_RUN_ID": "7"}, {"unlearn.parent_run_id": "7"}),
    ],
)
def test_off_outside_a_command(monkeypatch, variables, tags):
    monkeypatch.syspath_prepend(str(PLUGINS / "src"))
    from mlflow_unlearn_plugins.run_context import UnlearnRunContext

    for name in ("MLFLOW_UNLEARN_RUN_ID", "MLFLOW_UNLEARN_COMMAND"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    context = UnlearnRunContext()
    assert context.in_context() == (tags is not None)
    assert tags is None or context.tags() == tags
