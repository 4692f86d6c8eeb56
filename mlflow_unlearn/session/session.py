"""What `unlearn`, `tune` and `evaluate` share: a version opened for work, with its data and its forget set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import mlflow
import numpy as np
import numpy.typing as npt
import torch
from mlflow.tracking import MlflowClient
from torch import nn
from torch.utils.data import Dataset

from mlflow_unlearn.api import Result, unlearn_on
from mlflow_unlearn.config import Evaluate, HardwareOptions
from mlflow_unlearn.console import note
from mlflow_unlearn.data.forget import retained
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.engine.frozen_prefix import resolve
from mlflow_unlearn.engine.hardware import Hardware, resolve_hardware
from mlflow_unlearn.engine.loop import RunOptions
from mlflow_unlearn.engine.predictions import read_splits
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.metrics.outputs import Readings
from mlflow_unlearn.registry import forget_requests, tracking
from mlflow_unlearn.registry.dataset_inputs import log_manifests, log_source_model
from mlflow_unlearn.registry.flavor import example_images, input_example, load_module
from mlflow_unlearn.registry.forget_requests import ForgetRequest
from mlflow_unlearn.registry.versions import Record, Version, open_version
from mlflow_unlearn.session.forget_set import evaluated_forget_set, find_requests
from mlflow_unlearn.session.gold import open_gold
from mlflow_unlearn.session.lineage import Earlier, earlier_requests
from mlflow_unlearn.session.view import InputSpec, check_alike, check_outputs, make_splits, open_view, training_mask


@dataclass(frozen=True)
class Session:
    """A version opened for work.

    Attributes:
        client: of the registry.
        version: what is unlearned, or was.
        module: its module, in eval mode on the CPU.
        view: how it reads data.
        splits: the four sets.
        forget: indices into ``view.source.train``.
        retain: likewise: trained on and not to be forgotten.
        requests: what is carried out; none yet for a spec that is still to be filed, see `filed`.
        hardware: decided once.
        folder: for temporary files.
        salt: of the forgotten ids, where they are to be recorded hashed.
        earlier: what the version was made to forget before, which is neither forgotten now nor retained.
    """

    client: MlflowClient
    version: Version
    module: nn.Module
    view: InputSpec
    splits: Splits
    forget: npt.NDArray[np.int64]
    retain: npt.NDArray[np.int64]
    requests: tuple[ForgetRequest, ...]
    hardware: Hardware
    folder: Path
    salt: str | None = None
    earlier: tuple[Earlier, ...] = ()

    def manifest(self, indices: npt.NDArray[np.int64]) -> Manifest:
        """The plain ids of training samples."""
        return Manifest(tuple(self.view.source.train.ids[i] for i in indices))

    def filed(self, config: Any) -> "Session":
        """The session with its forget set filed as a request, if it is none yet; only `mark_done` tags the version."""
        if self.requests:
            return self
        request, _ = forget_requests.file_request(
            self.client,
            self.version,
            self.manifest(self.forget),
            tracking.recorded_options(config, "forget", "hash_ids"),
            folder=self.folder,
            salt=self.salt,
            ad_hoc=True,
        )
        return replace(self, requests=(request,))

    def samples_of_requests(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Which of the forget set each request names: id → mask ``[N]``."""
        ids = self.manifest(self.forget).ids
        return {r.id: forget_requests.read_manifest(self.client, r.id).mask(ids) for r in self.requests}

    @property
    def forgotten_before(self) -> npt.NDArray[np.int64]:
        """Indices of all that earlier steps forgot, as far as the data source still has it."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *(one.indices for one in self.earlier)]))

    @property
    def forget_manifest(self) -> Manifest:
        """What to forget, hashed if the request is."""
        plain = self.manifest(self.forget)
        return plain if self.salt is None else plain.hashed(self.salt)

    def example_without_forgotten(self) -> np.ndarray[Any, Any] | None:
        """Test images as the new version's input example, if the source's shows a forgotten image; else None."""
        example = input_example(self.version)
        if example is None:
            return None
        shown = torch.from_numpy(example)
        for index in range(len(self.forget)):
            image = cast(Any, self.splits.forget)[index][0]
            if any(one.shape == image.shape and torch.allclose(one.to(image.dtype), image) for one in shown):
                note("Note: the source's input example shows a forgotten image; the new version's shows test images.")
                test = cast(Any, self.splits.test)
                return example_images([test[i % len(test)][0] for i in range(2)])
        return None

    def teacher(self, prefix: str = "none") -> Teacher:
        """The version as the teacher of methods, its layers before ``prefix`` frozen, which the active run records."""
        model = self.hardware.place(self.module)
        cut = resolve(model, prefix, vars(self.splits))
        teacher = Teacher(model, vars(self.splits), self.hardware, prefix=cut)
        if cut is not None:
            mlflow.set_tag("unlearn.prefix", cut)
            note(f"Note: the layers before {cut} stay frozen and cannot forget what they encode.")
        elif prefix == "auto":
            note("Note: prefix=auto freezes nothing where a class is forgotten wholly.")
        return teacher

    def read_original(self, *, force: bool, teacher: Teacher | None = None) -> Readings:
        """One pass of the version over the four sets, which serves its ``teacher`` as well.

        Raises:
            UnlearnError: it is so bad on its own training data that data and model cannot belong together.
        """
        readings = read_splits(self.module, self.splits, self.hardware, name="original", teacher=teacher, kept=True)
        accuracy = float((readings["retain"].predictions == readings["retain"].labels).mean())
        bound = min(2 / len(self.view.classes), 0.6)
        if accuracy < bound and not force:
            raise UnlearnError(
                f"{self.version.uri} has an accuracy of {accuracy:.3f} on its own retain set, below {bound:.3f}: the "
                f"input transform ({self.view.transform}) or the order of the classes is probably wrong; "
                "give transform= or classes=, or force=true to go on"
            )
        return readings

    def unlearn(
        self, method: str, params: Mapping[str, Any], options: RunOptions, *, splits: Splits | None = None
    ) -> Result:
        """Carry a method out on the version, on its own splits if no others are given."""
        return unlearn_on(self.hardware, self.module, splits or self.splits, method, params, options)

    def log_manifests(self) -> None:
        """The sets as dataset inputs of the active run."""
        source = self.view.source
        sets = {
            "forget": self.forget_manifest,
            "retain": self.manifest(self.retain),
            "val": Manifest(source.val.ids),
            "test": Manifest(source.test.ids),
        }
        counts = {role: len(manifest.ids) for role, manifest in sets.items()}
        log_manifests(source.spec, {role: manifest.digest for role, manifest in sets.items()}, counts)


def open_session(client: MlflowClient, run_id: str, config: Any, folder: Path, *, progress: bool) -> Session:
    """Open ``config.model_uri`` for unlearning: resolve, load, find the forget set, check that everything fits."""
    version = open_version(client, config.model_uri, folder)
    log_source_model(client, run_id, version.model_id)
    view = open_view(version, config)
    module = load_module(version, config.architecture, len(view.classes))
    mask = training_mask(version, view.source)
    requests, forget, salt = find_requests(client, version, view, mask, config)
    retain = retained(mask, forget)
    earlier = earlier_requests(client, version, view.source, mask)
    splits = make_splits(view, module, forget, retain, progress)
    shape = check_outputs(module, splits.retain, view.classes, version.uri)
    if version.input_shape not in (None, shape):
        raise UnlearnError(
            f"{version.uri} takes images {list(version.input_shape or ())} by its signature and the transform "
            f"({view.transform}) makes {list(shape)}: give another transform="
        )
    hardware = pick_hardware(module, splits.retain, config, progress)
    view = InputSpec(view.source, view.transform, view.classes, shape)
    return Session(client, version, module, view, splits, forget, retain, requests, hardware, folder, salt, earlier)


Chosen = tuple[InputSpec, npt.NDArray[np.int64], npt.NDArray[np.int64], str | None]
"""The view of what is measured, the forget and retain sets as indices, and the salt of a hashed request."""


def open_measured(
    client: MlflowClient,
    config: Evaluate,
    folder: Path,
    *,
    progress: bool,
    choose: Callable[[Version, Version, InputSpec], Chosen] | None = None,
) -> tuple[Session, Version]:
    """Open a version to be measured, with the version that it is measured against, which may be the same.

    ``choose`` says which samples, from the version, its original and the version's view; by default those of the
    option ``forget`` or of the version's requests.
    """
    version = open_version(client, config.model_uri, folder)
    recorded = version.record.source_uri if version.record is not None else None
    original_uri = config.original_uri or recorded
    original = version if original_uri is None else open_version(client, original_uri, folder)
    if original.uri == version.uri or (original.model_id is not None and original.model_id == version.model_id):
        original = version
    view = open_view(version, config)
    if original is not version:
        check_alike(original, view)
    if choose is not None:
        view, forget, retain, salt = choose(version, original, view)
    else:
        mask = training_mask(original, view.source)
        forget, salt = evaluated_forget_set(client, version, view, mask, config)
        # What the version has not been trained on, or forgot before, is no retain sample, whatever the original knows.
        retain = retained(mask & training_mask(version, view.source), forget)
    module = load_module(version, config.architecture, len(view.classes), trainable=False)
    splits = make_splits(view, module, forget, retain, progress)
    check_outputs(module, splits.test, view.classes, version.uri)
    hardware = pick_hardware(module, splits.test, config, progress)
    return Session(client, version, module, view, splits, forget, retain, (), hardware, folder, salt), original


def read_measured(session: Session, original: Version, config: Evaluate) -> tuple[dict[str, Readings], str]:
    """One pass of each model over the four sets, and the name under which the session's own version goes.

    A version that came from no other goes as ``original``.
    """
    own = session.read_original(force=config.force)
    name = "original" if original is session.version else "unlearned"
    readings = {name: own}
    if original is not session.version:
        module = load_module(original, config.architecture, len(session.view.classes), trainable=False)
        before = read_splits(module, session.splits, session.hardware, name="original", kept=True)
        readings = {"original": before, "unlearned": own}
    gold = open_gold(
        session.client, config.gold_uri, session.view, session.retain, session.splits.test, session.folder, config
    )
    if gold is not None:
        readings["gold"] = read_splits(gold, session.splits, session.hardware, name="gold", kept=True)
    return readings, name


def pick_hardware(module: nn.Module, dataset: Dataset[Any], config: HardwareOptions, progress: bool) -> Hardware:
    """The command's device and precision, resolved, and noted on its run, if it makes one."""
    hardware = resolve_hardware(
        module,
        dataset,
        device=config.device,
        precision=config.precision,
        num_workers=config.num_workers,
        compile=config.compile,
        progress=progress,
    )
    if mlflow.active_run() is not None:
        mlflow.set_tags({"unlearn.system.device": str(hardware.device), "unlearn.system.precision": hardware.precision})
    return hardware


def new_record(session: Session, config: Any, method: str, recipe: dict[str, Any]) -> Record:
    """What the new version records of itself."""
    old = session.version.record
    architecture = None
    if session.version.format == "pt2":
        architecture = config.architecture or (old.architecture if old is not None else None)
    elif old is not None:
        architecture = old.architecture
    shape = session.view.shape
    if shape is None or len(shape) != 3:
        raise ValueError("open_session sets the shape")
    return Record(
        architecture=architecture,
        num_classes=len(session.view.classes),
        image_shape=(shape[0], shape[1], shape[2]),
        transform=session.view.transform,
        classes=session.view.classes,
        data=session.view.source.spec,
        source_uri=session.version.uri,
        request_ids=tuple(request.id for request in session.requests),
        method=method,
        recipe=recipe,
    )
