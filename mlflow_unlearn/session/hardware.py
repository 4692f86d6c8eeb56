"""The hardware that a command computes on."""

from typing import Any

import mlflow
from torch import nn
from torch.utils.data import Dataset

from mlflow_unlearn.config import HardwareOptions
from mlflow_unlearn.engine.hardware import Hardware, resolve_hardware


def pick_hardware(module: nn.Module, dataset: Dataset[Any], options: HardwareOptions, *, progress: bool) -> Hardware:
    """The command's device and precision, resolved.

    Args:
        module: of the version.
        dataset: whose first samples ``precision=auto`` times.
        options: of the command.
        progress: whether bars are shown.
    """
    return resolve_hardware(
        module,
        dataset,
        device=options.device,
        precision=options.precision,
        num_workers=options.num_workers,
        compile=options.compile,
        progress=progress,
    )


def tag_hardware(hardware: Hardware) -> None:
    """Note it on the active run."""
    mlflow.set_tags({"unlearn.system.device": str(hardware.device), "unlearn.system.precision": hardware.precision})
