"""The gold standard that a command is given."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.tracking import MlflowClient
from torch import nn
from torch.utils.data import Dataset

from mlflow_unlearn.config import ReadOptions
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.versions import open_version
from mlflow_unlearn.session.view import InputSpec, check_alike, check_outputs


def open_gold(
    client: MlflowClient,
    uri: str | None,
    view: InputSpec,
    retain: npt.NDArray[np.int64],
    dataset: Dataset[Any],
    folder: Path,
    config: ReadOptions,
) -> nn.Module | None:
    """The gold standard's module, if one is named.

    Raises:
        UnlearnError: it reads its inputs otherwise, or was trained on samples that are forgotten, now or earlier.
    """
    if uri is None:
        return None
    version = open_version(client, uri, folder)
    check_alike(version, view)
    manifest = version.training_manifest
    if manifest is not None:
        seen = manifest.mask(view.source.train.ids)
        seen[retain] = False
        if seen.any():
            raise UnlearnError(
                f"{version.uri} was trained on {seen.sum()} samples that are to be forgotten or were forgotten before: "
                "it is no gold standard; train one with exclude="
            )
    module = load_module(version, config.architecture, len(view.classes), trainable=False)
    check_outputs(module, dataset, view.classes, version.uri)
    return module
