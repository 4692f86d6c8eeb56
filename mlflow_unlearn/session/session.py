"""A version opened for work, with its data and its forget set: what the commands that load a model share."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.tracking import MlflowClient
from torch import nn

from mlflow_unlearn.api import Result, unlearn_on
from mlflow_unlearn.config import ReadOptions, Unlearning
from mlflow_unlearn.console import note
from mlflow_unlearn.data.forget import retained
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.spec import without_options
from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.engine.frozen_prefix import resolve, split_at
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.loop import RunOptions
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.record import Exactness, Matched
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.metrics.outputs import Outputs
from mlflow_unlearn.registry import forget_requests, tracking
from mlflow_unlearn.registry.dataset_inputs import log_manifests, log_source_model
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.forget_requests import ForgetRequest
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.tracking import CommandRun
from mlflow_unlearn.registry.versions import Version, check_name, open_version
from mlflow_unlearn.session.checks import check_outputs
from mlflow_unlearn.session.forget_set import requested_forget_set
from mlflow_unlearn.session.hardware import pick_hardware, tag_hardware
from mlflow_unlearn.session.lineage import Earlier, earlier_requests
from mlflow_unlearn.session.past import CHECKPOINTS, OwnTraining, check_prefix, own_training
from mlflow_unlearn.session.view import InputSpec, make_splits, open_input_spec, salt_of, training_mask
from mlflow_unlearn.spelling import spelled


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
        requests: what is fulfilled; none yet for a spec that is still to be filed, see `filed`.
        hardware: decided once.
        folder: for temporary files.
        salt: of the forgotten ids, where they are to be recorded hashed.
        earlier: what the version has forgotten before, which is neither forgotten now nor retained.
        matched: where the samples lie that a forget spec names, for its request.
        code: what loading has run so far, in words; the gold standard's is added when that is loaded.
        told: warnings of methods that the terminal has had already.
        read: how the version, and one that it came from, is read.
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
    matched: Matched | None = None
    code: list[str] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    read: ReadOptions = field(default_factory=ReadOptions)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of the module's inputs.

        Raises:
            ValueError: the session was opened to measure, which does not need the shape.
        """
        if self.view.shape is None:
            raise ValueError("open_session sets the shape")
        return self.view.shape

    def manifest(self, indices: npt.NDArray[np.int64]) -> Manifest:
        """The plain ids of training samples."""
        return Manifest(tuple(self.view.source.train.ids[i] for i in indices))

    def stored_manifest(self, indices: npt.NDArray[np.int64]) -> Manifest:
        """Their ids as a new version stores them: hashed as those of the version that it came from."""
        return self.manifest(indices).hashed(salt_of(self.version, self.view.source))

    def known_after(self, exactness: Exactness | None) -> Manifest:
        """The ids of what a new version knows, as it stores them: the retain set.

        Besides, what the data source does not train on any more, where the weights come from those that know it.
        """
        retain, own = self.stored_manifest(self.retain), self.version.training_manifest
        if own is None or (exactness is not None and exactness.trained_without):
            return retain
        there = set(map(retain.key, self.view.source.train.ids))
        known = own if own.salt is not None else own.hashed(retain.salt)
        return Manifest(tuple(sorted({*retain.ids, *(key for key in known.ids if key not in there)})), retain.salt)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its data and sets from all others, as JSON."""
        return {
            "data": self.view.source.digest,
            "transform": self.view.transform,
            "classes": list(self.view.classes),
            "sets": [self.manifest(split).digest for split in (self.forget, self.retain)],
        }

    @property
    def forget_manifest(self) -> Manifest:
        """What to forget, hashed if the request is."""
        plain = self.manifest(self.forget)
        return plain if self.salt is None else plain.hashed(self.salt)

    @property
    def forgotten_before(self) -> npt.NDArray[np.int64]:
        """Indices of all that earlier steps forgot, as far as the data source still has it."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *(one.indices for one in self.earlier)]))

    @cached_property
    def own_training(self) -> OwnTraining:
        """What the version keeps of its training.

        Raises:
            UnlearnError: nothing, or it is lost.
        """
        return own_training(self)

    def samples_of_requests(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Which of the forget set each request names: id → mask ``[N]``."""
        ids = self.manifest(self.forget).ids
        return {r.id: forget_requests.read_manifest_of(r.run_id).mask(ids) for r in self.requests}

    def begin(self, run: CommandRun, *, plan: bool = False, prefix: str = "none") -> str:
        """Begin the run of the command, now that all that its user has named is there and fits: its id.

        Its inputs are the version and the sets.

        Raises:
            UnlearnError: the model cannot be cut before ``prefix``.
        """
        if prefix not in ("none", "auto"):
            split_at(self.module, prefix)
        run_id = run.begin(self.version, plan=plan)
        log_source_model(self.client, run_id, self.version.model_id)
        tag_hardware(self.hardware)
        source = self.view.source
        held_out = {"val": Manifest(source.val.ids), "test": Manifest(source.test.ids)}
        trained_on = {"forget": self.forget_manifest, "retain": self.manifest(self.retain)}
        log_manifests(source.spec, trained_on | held_out)
        return run_id

    def filed(self, options: Unlearning) -> "Session":
        """The session with its forget set filed as a request, if need be; only `mark_done` tags the version."""
        if self.requests:
            return self
        request, _ = forget_requests.file_request(
            self.client,
            self.version,
            self.manifest(self.forget),
            {
                **tracking.recorded_options(options, "forget", "hash_ids"),
                "data": self.view.source.spec,
                "source": without_options(self.view.source.spec),
                "source_sha256": self.view.source.samples_digest,
                **({} if self.matched is None else {"matched": self.matched.model_dump()}),
            },
            folder=self.folder,
            salt=self.salt,
            ad_hoc=True,
        )
        return replace(self, requests=(request,))

    def teacher(self, prefix: str = "none") -> Teacher:
        """The version as the teacher of methods, its layers before ``prefix`` frozen, which the active run records."""
        model = self.hardware.place(self.module)
        split_point = resolve(model, prefix, vars(self.splits))
        teacher = Teacher(model, vars(self.splits), self.hardware, prefix=split_point)
        if split_point is not None:
            mlflow.set_tag("unlearn.prefix", split_point)
            note(f"Note: the layers before {split_point} stay frozen and cannot forget what they encode.")
        elif prefix == "auto":
            note(f"Note: {spelled('prefix', 'auto')} freezes nothing where a class is forgotten wholly.")
        return teacher

    def evaluate_original(self, *, force: bool, teacher: Teacher | None = None) -> Outputs:
        """The outputs of the version on the four sets; the same pass fills its ``teacher``.

        Raises:
            UnlearnError: its accuracy on its own training data is so low that data and model cannot belong together.
        """
        outputs = evaluate_splits(
            self.module, self.splits, self.hardware, name="original", teacher=teacher, cached=True
        )
        accuracy = float((outputs["retain"].predictions == outputs["retain"].labels).mean())
        bound = min(2 / len(self.view.classes), 0.6)
        if accuracy < bound and not force:
            raise UnlearnError(
                f"{self.version.uri} has an accuracy of {accuracy:.3f} on its own retain set, below {bound:.3f}: the "
                f"input transform ({self.view.transform}) or the order of the classes is probably wrong; give "
                f"{spelled('transform')} or {spelled('classes')}, or {spelled('force', True)} to continue"
            )
        return outputs

    def unlearn(
        self, method: str, params: Mapping[str, Any], options: RunOptions, *, splits: Splits | None = None
    ) -> Result:
        """Run a method on the version.

        Args:
            method: a registered name.
            params: hyperparameters; what is missing takes the published setting of the model's family.
            options: seed, teacher, callbacks.
            splits: in place of the session's own.

        Raises:
            UnlearnError: the method does not take these hyperparameters, or fails.
        """
        splits, hardware = splits or self.splits, self.hardware
        own = self.own_training if get_method(method).needs == CHECKPOINTS else None
        check_prefix(method, None if options.teacher is None else options.teacher.prefix)
        if own is not None:
            # The teacher is of the plain splits, and the method has none.
            splits, options = own.splits(splits), replace(options, teacher=None, past=own.past)
            hardware = own.hardware
        with nullcontext() if own is None else own.computing():
            result = unlearn_on(hardware, self.module, splits, method, params, options)
        # Not by Python's warnings, which a library's thread that catches its own can take from the terminal.
        for sentence in dict.fromkeys(result.warnings):
            if sentence not in self.told:
                self.told.add(sentence)
                note(f"Warning: {sentence}")
        return result if own is None else replace(result, exactness=own.claimed(result))


def _check_own_name(version: Version, options: Unlearning) -> None:
    """Before any work: the new version gets the name of its source, unless another one is given.

    Raises:
        UnlearnError: another tool has registered the source by a name that we could not register by.
    """
    registers = getattr(options, "register_", "best") == "best"  # `unlearn` always does
    if version.name is not None and options.register_as is None and registers:
        try:
            check_name(version.name)
        except UnlearnError as error:
            raise UnlearnError(f"{error}; or give another name with {spelled('register_as')}") from error


def open_session(client: MlflowClient, options: Unlearning, folder: Path, *, progress: bool) -> Session:
    """Open ``options.model_uri`` for unlearning: resolve, load, find the forget set, check that everything fits.

    Args:
        client: of the registry.
        options: of the command.
        folder: for temporary files.
        progress: whether bars are shown.

    Raises:
        UnlearnError: something is missing, or does not fit.
    """
    version = admitted(open_version(client, options.model_uri, folder), options)
    _check_own_name(version, options)
    view = open_input_spec(version, options)
    source = view.source
    module = load_module(version, options.architecture, len(view.classes))
    mask = training_mask(version, source)
    chosen = requested_forget_set(client, version, source, mask, options)
    retain = retained(mask, chosen.indices)
    earlier = earlier_requests(client, version, source, mask)
    splits = make_splits(view, module, chosen.indices, retain, progress)
    shape = check_outputs(module, splits.retain, view.classes, version.uri)
    if version.input_shape not in (None, shape):
        raise UnlearnError(
            f"{version.uri} takes images {list(version.input_shape or ())} by its signature and the transform "
            f"({view.transform}) makes {list(shape)}: give another {spelled('transform')}"
        )
    return Session(
        client,
        version,
        module,
        replace(view, shape=shape),
        splits,
        chosen.indices,
        retain,
        chosen.requests,
        pick_hardware(module, splits.retain, options, progress=progress),
        folder,
        chosen.salt,
        earlier,
        chosen.matched,
        list(version.code or ()),
        read=options,
    )
