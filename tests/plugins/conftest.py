"""The distribution of plugins, installed once for all tests of a process."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins" / "mlflow_unlearn_plugins"


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Path:
    """The folder that pip has put it into, as a user's would."""
    folder = tmp_path_factory.mktemp("plugins")
    # A copy, since setuptools builds beside the sources.
    source = shutil.copytree(
        PLUGINS, folder / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    )
    flags = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, "--target", folder / "site", source], check=True)
    return folder / "site"
