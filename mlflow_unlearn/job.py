"""What `unlearn`, `tune` and `evaluate` share: a version opened for work, with its data and its forget set."""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import mlflow
import numpy as np
import numpy.typing as npt
import torch
import yaml
from mlflow.tracking import MlflowClient
from torch import nn
from torch.utils.data import Dataset

from mlflow_unlearn import forget_requests, tracking
from mlflow_unlearn.compute import isolated_rng
from mlflow_unlearn.config import Evaluate, Reads
from mlflow_unlearn.config import Hardware as HardwareConfig
from mlflow_unlearn.data.datasets import Augmented
from mlflow_unlearn.data.forget import resolve_forget, retained
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evaluation import Readings, read_splits
from mlflow_unlearn.flavor import example_images, input_example, load_module
from mlflow_unlearn.forget_requests import ForgetRequest
from mlflow_unlearn.forward import Hardware
from mlflow_unlearn.governance.chain import Earlier, earlier_requests
from mlflow_unlearn.loop import resolve_hardware
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.models import builder_like
from mlflow_unlearn.prefix import resolve
from mlflow_unlearn.progress import note
from mlflow_unlearn.registry import Record, Version, open_version
from mlflow_unlearn.teacher import Teacher
from mlflow_unlearn.unlearning import Result, unlearn_on
from mlflow_unlearn.view import View, check_alike, check_outputs, make_splits, open_view, training_mask


@dataclass(frozen=True)
class Job:
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
    view: View
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

    def filed(self, config: Any) -> "Job":
        """The job with its forget set filed as a request, if it is none yet; the version is tagged when it is done."""
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
        self, method: str, params: Mapping[str, Any], seed: int, *, splits: Splits | None = None, **options: Any
    ) -> Result:
        """Carry a method out on the version; ``options`` as of `mlflow_unlearn.loop.run`."""
        return unlearn_on(self.hardware, self.module, splits or self.splits, method, params, seed, **options)

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
        tracking.log_manifests(source.spec, {role: manifest.digest for role, manifest in sets.items()}, counts)


def open_job(client: MlflowClient, run_id: str, config: Any, folder: Path, *, progress: bool) -> Job:
    """Open ``config.model_uri`` for unlearning: resolve, load, find the forget set, check that everything fits."""
    version = open_version(client, config.model_uri, folder)
    tracking.log_source_model(client, run_id, version.model_id)
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
    view = View(view.source, view.transform, view.classes, shape)
    return Job(client, version, module, view, splits, forget, retain, requests, hardware, folder, salt, earlier)


Chosen = tuple[View, npt.NDArray[np.int64], npt.NDArray[np.int64], str | None]
"""The view of what is measured, the forget and retain sets as indices, and the salt of a hashed request."""


def open_measured(
    client: MlflowClient,
    config: Evaluate,
    folder: Path,
    *,
    progress: bool,
    choose: Callable[[Version, Version, View], Chosen] | None = None,
) -> tuple[Job, Version]:
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
    return Job(client, version, module, view, splits, forget, retain, (), hardware, folder, salt), original


def read_measured(job: Job, original: Version, config: Evaluate) -> tuple[dict[str, Readings], str]:
    """One pass of each model over the four sets, and the name under which the job's own version goes.

    A version that came from no other goes as ``original``.
    """
    own = job.read_original(force=config.force)
    name = "original" if original is job.version else "unlearned"
    readings = {name: own}
    if original is not job.version:
        module = load_module(original, config.architecture, len(job.view.classes), trainable=False)
        before = read_splits(module, job.splits, job.hardware, name="original", kept=True)
        readings = {"original": before, "unlearned": own}
    gold = open_gold(job.client, config.gold_uri, job.view, job.retain, job.splits.test, job.folder, config)
    if gold is not None:
        readings["gold"] = read_splits(gold, job.splits, job.hardware, name="gold", kept=True)
    return readings, name


def evaluated_forget_set(
    client: MlflowClient, version: Version, view: View, mask: npt.NDArray[np.bool_], config: Evaluate
) -> tuple[npt.NDArray[np.int64], str | None]:
    """The spec's samples, else those that the version was made to forget, else those of its pending requests.

    The second value is the salt of a hashed request, under which the set's digest is to be recorded.
    """
    salts: list[str | None] = [None]

    def read_request(request_id: str) -> Manifest:
        manifest = forget_requests.read_manifest(client, request_id)
        salts.append(manifest.salt)
        return manifest

    ids: tuple[str, ...] = version.record.request_ids if version.record is not None else ()
    if not ids:
        own, _ = forget_requests.of_version(version)
        ids = tuple(filed.id for filed in own if filed.pending)
    specs = [config.forget] if config.forget is not None else [f"request:{request_id}" for request_id in ids]
    if not specs:
        raise UnlearnError(f"{version.uri} carried out no forget request and none is pending: give forget=")
    forget = np.unique(np.concatenate([resolve_forget(spec, view.source, mask, read_request) for spec in specs]))
    return forget, salts[-1]


def find_requests(
    client: MlflowClient, version: Version, view: View, mask: npt.NDArray[np.bool_], config: Any
) -> tuple[tuple[ForgetRequest, ...], npt.NDArray[np.int64], str | None]:
    """The requests and what they forget: those of the spec (none where it is new), or all pending ones together.

    The third value is the salt under which the forgotten ids may be recorded, None where they may be told.

    Raises:
        UnlearnError: no request is pending and no spec is given, or the spec is bad.
    """
    own, copied = forget_requests.of_version(version)
    for request in copied:
        note(f"Note: request {request.id} came with a copy of {request.of}, it is not about {version.uri}.")
    pending = [request for request in own if request.pending]

    salts: list[str] = []

    def read(request_id: str) -> Manifest:
        manifest = forget_requests.read_manifest(client, request_id)
        salts.extend([manifest.salt] if manifest.salt is not None else [])
        return manifest

    def salt() -> str | None:
        """That of a request, so that its digest is the same everywhere; a new one where its ids are plain."""
        return next(iter(salts), secrets.token_hex(16) if config.hash_ids else None)

    if config.forget is None:
        if not pending:
            raise UnlearnError(
                f"{version.uri} has no pending forget request: file one with `request`, or give forget="
                if version.name is not None
                else f"{version.uri} is no registered version and carries no request: give forget="
            )
        earlier = [request for request in own if not request.pending and not request.ad_hoc]
        for request in earlier:
            note(
                f"Note: request {request.id} was carried out by {', '.join(request.done_by)}; it is carried out "
                "again here, since this version still knows its samples."
            )
        found = [resolve_forget(f"request:{request.id}", view.source, mask, read) for request in pending]
        # What was carried out before may have left the data source by now.
        again = [np.flatnonzero(read(request.id).mask(view.source.train.ids) & mask) for request in earlier]
        together = np.unique(np.concatenate([*found, *again]))
        for request, indices in zip([*pending, *earlier], [*found, *again], strict=True):
            note(f"Request {request.id}: {len(indices)} samples to forget.")
        if len(together) == mask.sum():
            raise UnlearnError("the requests together name every training sample: keep some of them")
        return (*pending, *earlier), together, salt()
    forget = resolve_forget(config.forget, view.source, mask, read)
    scheme, _, request_id = config.forget.partition(":")
    known = [request for request in own if scheme == "request" and request.id == request_id]
    if not known:
        request_id = forget_requests.request_id(version, Manifest(tuple(view.source.train.ids[i] for i in forget)))
        known = [request for request in own if request.id == request_id]
    for request in own:
        if request not in known:
            state = "stays pending" if request.pending else "is not carried out again"
            note(f"Note: request {request.id} {state}: only the given forget set is carried out.")
    return tuple(known), forget, salt()


@dataclass(frozen=True)
class Recipe:
    """How a version was trained before anything was unlearned, as far as its record tells.

    Attributes:
        params: hyperparameters of `retrain`; empty where nothing is recorded.
        augment: random augmentation of the training images.
        seed: of the recorded training.
        architecture: what ``fresh`` builds, None where it draws each module's weights anew.
        fresh: builds a randomly initialised model of the version's architecture.
    """

    params: Mapping[str, Any]
    augment: str
    seed: int | None
    architecture: str | None
    fresh: Callable[[], nn.Module]

    def splits(self, splits: Splits) -> Splits:
        """The splits with the retain set as it was trained on."""
        return splits if self.augment == "none" else replace(splits, retain=Augmented(splits.retain, self.augment))


def training_recipe(job: Job, config: Reads) -> Recipe:
    """The recipe of the version, or of the one that it was unlearned from."""
    version, record = job.version, job.version.record
    while record is not None and record.method not in ("train", "retrain") and record.source_uri is not None:
        try:
            version = open_version(job.client, record.source_uri, job.folder)
        except UnlearnError as error:
            # A version that still knows what was forgotten may have been deleted since, as it should.
            note(f"Note: {record.source_uri}, from which {version.uri} was made, cannot be opened ({error}).")
            break
        record = version.record
    recorded = record.recipe if record is not None and record.method in ("train", "retrain") else None
    if recorded is None:
        note(f"Note: {version.uri} does not record how it was trained; retraining takes the defaults of `retrain`.")
    known = get_method("retrain").Params.model_fields
    own = job.version.record
    shape = job.view.shape
    if shape is None:
        raise ValueError("open_job sets the shape")
    architecture = config.architecture or (own.architecture if own is not None else None)
    with isolated_rng(0):
        fresh = builder_like(job.module, architecture, len(job.view.classes), (shape[0], shape[1], shape[2]))
    recipe = recorded or {}
    params = {key: value for key, value in recipe.items() if key in known}
    return Recipe(params, recipe.get("augment", "none"), recipe.get("seed"), architecture, fresh)


def open_gold(
    client: MlflowClient,
    uri: str | None,
    view: View,
    retain: npt.NDArray[np.int64],
    dataset: Dataset[Any],
    folder: Path,
    config: Reads,
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


def pick_hardware(module: nn.Module, dataset: Dataset[Any], config: HardwareConfig, progress: bool) -> Hardware:
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


def parse_params(text: str | None, where: str = "params") -> dict[str, Any]:
    """Names and values from JSON or a YAML file, as the option ``where`` has them.

    Raises:
        UnlearnError: neither.
    """
    if text is None:
        return {}
    file = not text.lstrip().startswith("{")
    told = f"{where} file {text!r}" if file else where
    try:
        # YAML reads 1e-4 as a string; pydantic makes a number of it again.
        values = yaml.safe_load(Path(text).read_text(encoding="utf-8")) if file else json.loads(text)
    except OSError as error:
        raise UnlearnError(f"{where} = {text!r} is neither a JSON object nor a YAML file ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UnlearnError(f"{told} cannot be parsed: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise UnlearnError(f"{told} holds {found}, not names with values such as alpha: 2")
    return values


def new_record(job: Job, config: Any, method: str, recipe: dict[str, Any]) -> Record:
    """What the new version records of itself."""
    old = job.version.record
    architecture = None
    if job.version.format == "pt2":
        architecture = config.architecture or (old.architecture if old is not None else None)
    elif old is not None:
        architecture = old.architecture
    shape = job.view.shape
    if shape is None or len(shape) != 3:
        raise ValueError("open_job sets the shape")
    return Record(
        architecture=architecture,
        num_classes=len(job.view.classes),
        image_shape=(shape[0], shape[1], shape[2]),
        transform=job.view.transform,
        classes=job.view.classes,
        data=job.view.source.spec,
        source_uri=job.version.uri,
        request_ids=tuple(request.id for request in job.requests),
        method=method,
        recipe=recipe,
    )
