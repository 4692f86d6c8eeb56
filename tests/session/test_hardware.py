"""The hardware of a command, and what its run says of it."""

import mlflow
import pytest

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.session.hardware import pick_hardware, tag_hardware


def test_it_is_noted_on_the_run(opened, options, empty_store):
    hardware = pick_hardware(opened.module, opened.splits.retain, options, progress=False)
    assert (hardware.device.type, hardware.precision) == ("cpu", "fp32")
    assert empty_store.runs() == [], "which may begin later"
    with mlflow.start_run():
        tag_hardware(hardware)
    tags = empty_store.runs()[0].data.tags
    assert (tags["unlearn.system.device"], tags["unlearn.system.precision"]) == ("cpu", "fp32")


def test_a_device_that_is_not_there(opened, options):
    with pytest.raises(UnlearnError, match="device 'gpu' cannot be used here"):
        pick_hardware(opened.module, opened.splits.retain, options.model_copy(update={"device": "gpu"}), progress=False)
