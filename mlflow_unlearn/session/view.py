"""How a version reads its data: source, input transform and label order."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.utils.data import Dataset

from mlflow_unlearn.config import ReadOptions, Request
from mlflow_unlearn.console import counted, note, track
from mlflow_unlearn.data.datasets import as_dataset
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.source import Source, Split
from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.data.transforms import build_transform
from mlflow_unlearn.engine.architectures import build_model, check_architecture
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.parsing import read_text
from mlflow_unlearn.registry.inputs import Inputs
from mlflow_unlearn.registry.versions import Version
from mlflow_unlearn.session.missing import require
from mlflow_unlearn.spelling import spelled

ASSUMED = "assumed: all of the source's training split"
RECORDED = "the version's own list"


@dataclass(frozen=True)
class InputSpec:
    """How a version reads samples and orders its outputs.

    Attributes:
        source: the data.
        transform: spec of the input transform.
        classes: names in the order of the outputs.
        shape: ``(C, H, W)`` where the version records it.
    """

    source: Source
    transform: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int] | None

    def dataset(self, split: Split, module: nn.Module | None, description: str, progress: bool) -> Dataset[Any]:
        """A split as the model reads it.

        Args:
            split: of the source.
            module: the model, which a transform may depend on.
            description: of the bar.
            progress: whether it is shown.
        """
        relabel = np.array([self.classes.index(name) for name in self.source.classes])
        if self.source.ready:
            return as_dataset(split, None, ready=True, relabel=relabel)
        transform = build_transform(self.transform, channels=self.shape[0] if self.shape else None, model=module)
        dataset = as_dataset(
            split,
            transform,
            relabel=relabel,
            progress=lambda numbers: track(numbers, f"reading {description}", enabled=progress),
        )
        # A transform of the user's own may be random: then the teacher's cache has to watch it.
        dataset.deterministic = not self.transform.startswith("python:")  # type: ignore[attr-defined]
        return dataset


def open_input_spec(version: Version, options: ReadOptions, *, trains: bool = True) -> InputSpec:
    """Data source, transform and label order: from the command, else as the version is known to be read, or from timm.

    Args:
        version: from `loading.admitted`.
        options: of the command.
        trains: the version is to be trained again.

    Raises:
        UnlearnError: something is not recorded and not given, or does not fit.
    """
    require(version, options, trains=trains)
    if options.architecture is not None:
        check_architecture(options.architecture)
    used = version.kept.model_dump(exclude_none=True, exclude={"classes"})
    if told := [spelled(name, value) for name, value in used.items() if getattr(options, name) is None]:
        note(f"Note: {version.uri} is read as a request was told: {', '.join(told)}.")
    source = load_source(data_spec(version, options.data, options.split))
    classes = _classes(version, source, options)
    shape = version.record.image_shape if version.record is not None else version.input_shape
    return InputSpec(source, _transform(version, source, options), classes, shape)


def data_spec(version: Version, given: str | None, split: str | None = None) -> str:
    """The spec of the data source: as given, else as it is known; with ``split=`` behind where given.

    Raises:
        UnlearnError: neither.
    """
    data = given or version.reads.data
    if data is None:
        raise UnlearnError(f"{version.uri} does not record its data source: give {spelled('data')}")
    return data if split is None else f"{data},split={split}"


def given_inputs(version: Version, source: Source, options: Request, *, lenient: bool) -> Inputs:
    """What a request is given of how a version is read, checked as far as that needs no model.

    Args:
        version: from `loading.admitted`.
        source: of its data.
        options: of the command.
        lenient: the request is about several versions, some of which may know themselves what is given.

    Raises:
        UnlearnError: it does not fit, or the version records it itself.
    """
    data = source.spec if options.data is not None or options.split is not None else None
    if version.record is not None:
        for name in ("architecture", "transform", "classes"):
            if getattr(options, name) is not None:
                sentence = f"{version.uri} records its {name} itself"
                if not lenient:
                    raise UnlearnError(f"{sentence}: leave {spelled(name)} out")
                note(f"Note: {sentence}: {spelled(name)} is not kept.")
        return Inputs()
    read = ReadOptions.model_validate({name: getattr(options, name) for name in ("data", "split", "classes")})
    classes = _classes(version, source, read) if options.classes is not None else None
    shape = version.input_shape
    if options.transform not in (None, "timm"):
        build_transform(str(options.transform), channels=shape[0] if shape is not None else None)
    if options.architecture is not None and version.format == "pt2" and shape is not None:
        build_model(options.architecture, len(source.classes), shape)
    return Inputs(data=data, architecture=options.architecture, transform=options.transform, classes=classes)


def _classes(version: Version, source: Source, options: ReadOptions) -> tuple[str, ...]:
    """The names of the classes in the order of the version's outputs.

    Raises:
        UnlearnError: the names that are given or recorded are not the source's.
    """
    known, classes = version.reads.classes, source.classes
    if options.classes is not None:
        classes = _class_names(options.classes)
    elif known is None:
        note(
            f"Note: {version.uri} does not record its classes; the source's order is assumed: "
            f"{', '.join(classes[:10])}."
        )
    elif set(known) == set(source.classes):
        classes = known
    else:
        raise UnlearnError(
            f"{version.uri} was trained on the classes {', '.join(known[:10])} and "
            f"{data_spec(version, options.data)!r} has {', '.join(source.classes[:10])}: give the data that it was "
            f"trained on, or {spelled('classes')}"
        )
    if sorted(classes) != sorted(source.classes):
        lost = sorted(set(source.classes) ^ set(classes), key=lambda name: (name in source.classes, name))
        lost = lost or [name for name in dict.fromkeys(classes) if classes.count(name) > 1]
        raise UnlearnError(
            f"{spelled('classes')} and the data do not name the same {len(source.classes)} classes (differs: "
            f"{', '.join(lost[:5])}): the data has {', '.join(source.classes[:10])}; give these in the order of the "
            "outputs, or a file with one a line"
        )
    return classes


def _transform(version: Version, source: Source, options: ReadOptions) -> str:
    """The spec of the input transform; ``none`` where the source is transformed already and nothing else is given."""
    transform = options.transform or version.reads.transform
    if transform is not None:
        return transform
    architecture = options.architecture or version.reads.architecture or ""
    return "none" if source.ready and not architecture.startswith("timm:") else "timm"  # or it would be missing


def _class_names(text: str) -> tuple[str, ...]:
    """From a list with commas or a file with one name a line.

    Raises:
        UnlearnError: the file cannot be read, or is not UTF-8 text.
    """
    names = text.split(",")
    # os.path and not pathlib: a thousand names are too long for a path, which pathlib raises.
    if os.path.isfile(text):
        try:
            names = read_text(text).splitlines()
        except (OSError, ValueError) as error:
            raise UnlearnError(f"the classes file {text!r} cannot be read ({error}): save it as UTF-8 text") from error
    return tuple(name.strip() for name in names if name.strip())


def salt_of(version: Version, source: Source) -> str:
    """Under which the ids of a version's samples are hashed: that of its own list, or else its source's."""
    manifest = version.training_manifest
    if manifest is not None and manifest.salt is not None:
        return manifest.salt
    return Manifest.salt_of(source.samples_digest)


def training_mask(version: Version, source: Source) -> npt.NDArray[np.bool_]:
    """What of ``source.train`` the version was trained on and has not forgotten: ``[N]``, all of it where unknown.

    Raises:
        UnlearnError: the recorded manifest and the source have nothing in common, or neither of them tells.
    """
    manifest = version.training_manifest
    if manifest is None:
        if version.record is None and source.drawn:
            raise UnlearnError(
                f"{version.uri} has no list of what it was trained on, and {source.spec!r} does not tell either, since "
                f"its training split is drawn by this tool: write ,split=FILE behind it, a file of the training "
                "ids, or ,split=drawn if it was trained on what is drawn"
            )
        size = counted(len(source.train), "sample")
        note(f"Note: {version.uri} has no list of what it was trained on: {ASSUMED} ({size}).")
        return np.ones(len(source.train), dtype=np.bool_)
    mask = manifest.mask(source.train.ids)
    if not mask.any():
        raise UnlearnError(
            f"none of the {len(manifest.ids)} samples that {version.uri} was trained on is in {source.spec!r}: "
            "give the data that it was trained on"
        )
    if (lost := len(manifest.ids) - int(mask.sum())) > 0:
        moved = int(manifest.mask((*source.val.ids, *source.test.ids)).sum())
        note(
            f"Note: {lost} of {len(manifest.ids)} recorded training samples are no longer in the source."
            if not moved
            else f"Note: {lost} of {len(manifest.ids)} recorded training samples are no longer in the training split "
            f"of the source, and {moved} of them are in its validation and test split, which count as unseen: give "
            f"the data as they were split when the version was trained, or ,split=FILE behind the source with a "
            "list of its training ids."
        )
    return mask


def make_splits(
    view: InputSpec, module: nn.Module, forget: npt.NDArray[np.int64], retain: npt.NDArray[np.int64], progress: bool
) -> Splits:
    """The four sets as the model reads them.

    Args:
        view: how it reads them.
        module: the model.
        forget: indices into ``view.source.train`` ``[F]``.
        retain: likewise ``[R]``.
        progress: whether bars are shown.
    """
    source = view.source
    parts = {
        "forget": source.train.subset(forget),
        "retain": source.train.subset(retain),
        "val": source.val,
        "test": source.test,
    }
    return Splits(**{name: view.dataset(split, module, f"the {name} set", progress) for name, split in parts.items()})
