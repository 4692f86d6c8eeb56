"""Whether a model and its data fit each other, and two models the same data."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from torch import nn
from torch.utils.data import Dataset

from mlflow_unlearn.console import first_line
from mlflow_unlearn.data.functions import users_code
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.hardware import checked_logits
from mlflow_unlearn.engine.modes import evaluating
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.network import persistently
from mlflow_unlearn.registry.versions import TRAINING_TAG, WEIGHTS_TAG, Version, trained_on
from mlflow_unlearn.session.view import InputSpec
from mlflow_unlearn.spelling import spelled


def check_outputs(module: nn.Module, dataset: Dataset[Any], classes: Sequence[str], uri: str) -> tuple[int, int, int]:
    """Try the model on a few samples; returns the shape ``(C, H, W)`` of its inputs.

    Args:
        module: to be tried.
        dataset: images ``[C, H, W]`` with labels.
        classes: K names.
        uri: of the version, for messages.

    Raises:
        UnlearnError: it cannot read them, or its outputs are not logits ``[N, K]`` for these classes.
    """
    with users_code("reading the data", "correct the data source"):
        few = [dataset[i] for i in range(min(8, len(dataset)))]  # type: ignore[arg-type]
    shapes = {tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__ for image, _ in few}
    if len(shapes) > 1 or not all(isinstance(shape, tuple) and len(shape) == 3 for shape in shapes):
        raise UnlearnError(
            f"the data yields images of {', '.join(map(str, shapes))}: give tensors [C, H, W] of one shape"
        )
    images, labels = torch.stack([image for image, _ in few]), torch.tensor([int(label) for _, label in few])
    channels, height, width = images.shape[1:]
    device = next(module.parameters()).device
    try:
        with evaluating(module), users_code(uri):
            output = module(images.to(device))
    except UnlearnError:
        raise
    except Exception as error:  # Whatever a forward pass raises on an input that does not fit.
        raise UnlearnError(
            f"{uri} cannot read images [{channels}, {height}, {width}] ({type(error).__name__}: {first_line(error)}): "
            f"give another {spelled('transform')} (with none, grey images have one channel)"
        ) from error
    if isinstance(output, torch.Tensor) and output.ndim == 2 and output.shape[1] != len(classes):
        raise UnlearnError(
            f"{uri} has {output.shape[1]} outputs and the data has {len(classes)} classes: they must be the same"
        )
    logits = checked_logits(output, labels)
    if (logits >= 0).all() and torch.allclose(logits.sum(dim=1), torch.ones(len(logits)), atol=1e-3):
        raise UnlearnError(
            f"{uri} returns probabilities (each row sums to 1), not logits: register the model without its softmax"
        )
    return channels, height, width


def check_alike(version: Version, view: InputSpec) -> None:
    """Two models can be compared only on the same inputs and outputs.

    Raises:
        UnlearnError: the version's record names another transform or another order of classes.
    """
    record = version.record
    if record is None:
        return
    if record.transform != view.transform and not view.source.ready:
        raise UnlearnError(
            f"{version.uri} reads with transform {record.transform!r}, the other with {view.transform!r}"
        )
    if record.classes != view.classes:
        raise UnlearnError(f"{version.uri} has its classes in another order than the model that it is compared with")


def check_training(client: MlflowClient, version: Version, module: nn.Module) -> None:
    """Hold what a version records of its training, and its weights, against tags, before its training is gone back on.

    Whoever can write its files alone could otherwise name other checkpoints, another recipe, or other shards.

    Args:
        client: of the registry.
        version: with a record.
        module: its module.

    Raises:
        UnlearnError: they do not agree, or no tag says anything.
    """
    if version.record is not None and not any(TRAINING_TAG in tags for tags in _tags(client, version)):
        raise UnlearnError(
            f"{version.uri} has no tag {TRAINING_TAG}: restore it, or train anew with the method retrain"
        )
    check_as_registered(client, version, module)


def check_as_registered(client: MlflowClient, version: Version, module: nn.Module) -> None:
    """Hold record, list and weights of a version against its tags and those of its LoggedModel.

    Args:
        client: of the registry.
        version: opened.
        module: its module.

    Raises:
        UnlearnError: they do not agree.
    """
    record, manifest = version.record, version.training_manifest
    found = {WEIGHTS_TAG: weights_digest(module), TRAINING_TAG: None if record is None else record.training_sha256}
    stated = [] if record is None or record.trained_on is None else [record.trained_on.manifest_sha256]
    changed = False
    for tags in _tags(client, version):
        changed |= any(tags.get(name, digest) != digest for name, digest in found.items())
        stated += [] if (listed := trained_on(tags)) is None else [listed.manifest_sha256]
    # What `manifest` has recorded is held against its tag where it is read, and came after the version.
    if version.recorded is None:
        changed |= any(manifest is None or digest != manifest.digest for digest in stated)
    if changed:
        raise UnlearnError(
            f"what {version.uri} records of its training, or its weights, is not what its tags say: files or tags were "
            f"changed since it was registered; restore them, or train anew with the method retrain"
        )


def _tags(client: MlflowClient, version: Version) -> list[Mapping[str, str]]:
    """Of a version and of its LoggedModel, if it has one: by the registry, since its files may name any other."""
    model_id = version.model_id
    if version.name is not None:
        name, number = version.name, str(version.version)
        source = str(persistently(lambda: client.get_model_version(name, number)).source)
        model_id = source.removeprefix("models:/") if source.startswith("models:/m-") else None
    try:
        model = [] if model_id is None else [persistently(lambda: client.get_logged_model(model_id)).tags]
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        model = []
    return [version.tags, *model]
