"""What several tests of the registry read."""

import shutil
from pathlib import Path

import mlflow
import pytest


@pytest.fixture(scope="module")
def program(template, tmp_path_factory) -> Path:
    """The exported program of a version that `train` has registered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", template.uri)
        version = template.client.get_model_version("clf", "1")
        path = mlflow.artifacts.download_artifacts(version.source, tracking_uri=template.uri)
    return Path(shutil.copy(Path(path) / "data" / "model.pt2", tmp_path_factory.mktemp("program")))
