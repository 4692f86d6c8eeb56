"""`train`: an ordinary classifier, the original of a story, or its gold standard."""

import sys
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.tracking import MlflowClient
from pydantic import Field
from torch import nn
from torch.utils.data import Dataset

from mlflow_unlearn import config
from mlflow_unlearn.console import counted, say
from mlflow_unlearn.data.canaries import Canaries, draw_canaries
from mlflow_unlearn.data.datasets import Augmented
from mlflow_unlearn.data.forget import resolve_forget, retained
from mlflow_unlearn.data.functions import users_code
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.placement import Placement
from mlflow_unlearn.data.source import Source
from mlflow_unlearn.data.spec import without_options
from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.engine.architectures import build_model, check_architecture, weights_digest
from mlflow_unlearn.engine.checkpoint import Checkpoint
from mlflow_unlearn.engine.hardware import Hardware, as_recorded, machine_of
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.engine.past import Keep
from mlflow_unlearn.engine.predictions import evaluate_split
from mlflow_unlearn.engine.shards import ShardTrainer
from mlflow_unlearn.evidence.checkpoints import Kept, Shards, trained_as
from mlflow_unlearn.evidence.provenance import Provenance
from mlflow_unlearn.evidence.record import Measured, metric_tags
from mlflow_unlearn.evidence.registered import Registered, Registering
from mlflow_unlearn.governance.checkpoints import remove_of_dead
from mlflow_unlearn.governance.publish import log_epoch
from mlflow_unlearn.methods.retrain import Training
from mlflow_unlearn.metrics.accuracy import accuracy
from mlflow_unlearn.registry import forget_requests, tracking
from mlflow_unlearn.registry.checkpoints import keeper, mark_training
from mlflow_unlearn.registry.dataset_inputs import log_manifests
from mlflow_unlearn.registry.flavor import NewModel, example_images, log_model
from mlflow_unlearn.registry.registration import complete, register
from mlflow_unlearn.registry.versions import (
    Commitment,
    Record,
    TrainedOn,
    check_name,
    open_version,
    retired,
    version_there,
)
from mlflow_unlearn.rng import isolated_rng
from mlflow_unlearn.session.canaries import FILE as CANARIES
from mlflow_unlearn.session.canaries import canaries_of
from mlflow_unlearn.session.checks import check_outputs
from mlflow_unlearn.session.ensemble import (
    StageCheckpoints,
    check_ensemble_options,
    keep_on,
    plan_ensemble,
    train_ensemble,
)
from mlflow_unlearn.session.going_on import Before, check_going_on, open_before
from mlflow_unlearn.session.hardware import pick_hardware, tag_hardware
from mlflow_unlearn.session.view import InputSpec
from mlflow_unlearn.spelling import command_line


class TrainResult(Registering):
    """The classifier that was registered."""

    samples: int | None = Field(None, description="It was trained on so many; null if it was done before a kill.")
    excluded: str | None = Field(None, description="What it was not trained on; null: nothing was left out.")

    def next_step(self, options: Any) -> str | None:
        """To file a request; of a gold standard, to measure by it."""
        if self.registered is None:
            return None
        if self.excluded is not None:
            remark = "the version that is to be compared with it"
            gold = ("--gold-uri", self.registered.uri)
            return command_line("evaluate", "--model-uri", "models:/NAME/VERSION", *gold, remark=remark)
        remark = "a file of ids, class:NAME, group:COLUMN=VALUE or random:10%"
        return command_line("request", "--model-uri", self.registered.uri, "--forget", "ids.csv", remark=remark)


@dataclass(frozen=True)
class _Prepared:
    """What is trained, on what, and where.

    Attributes:
        view: how images are read, with their shape.
        kept: indices into ``view.source.train`` of what the new version will know ``[N]``.
        dataset: these samples.
        unseen: validation and test set.
        module: with the weights that the training begins with.
        hardware: decided once.
        before: the version that the training goes on from.
        canaries: that were drawn for it.
    """

    view: InputSpec
    kept: npt.NDArray[np.int64]
    dataset: Dataset[Any]
    unseen: dict[str, Dataset[Any]]
    module: nn.Module
    hardware: Hardware
    before: Before | None
    canaries: Canaries | None

    @property
    def manifest(self) -> Manifest:
        """The plain ids of what the new version will know."""
        ids = self.view.source.train.ids
        return Manifest(tuple(ids[i] for i in self.kept))

    @cached_property
    def stored(self) -> Manifest:
        """These ids as the new version stores them."""
        return self.manifest.hashed(Manifest.salt_of(self.view.source.samples_digest))

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""
        return cast(tuple[int, int, int], self.view.shape)


@dataclass(frozen=True)
class _Trained:
    """What came of it.

    Attributes:
        model: on the CPU or where it was trained.
        architecture: that rebuilds it.
        kept: checkpoints.
        shards: how an ensemble was trained.
        placed: where its samples lie ``[N]``.
        checkpoint: on disk, to be removed once the version is there.
    """

    model: nn.Module
    architecture: str | None
    kept: tuple[Kept, ...]
    shards: Shards | None
    placed: Placement | None
    checkpoint: Checkpoint | StageCheckpoints


def train(options: config.Train) -> TrainResult:
    """Train a classifier on the source's training part, less what is excluded, and register it."""
    progress = sys.stderr.isatty()
    with tracking.prepared("train", options) as run, tracking.scratch() as folder:
        client = tracking.client()
        check_name(options.name)
        check_ensemble_options(options)
        check_going_on(options)
        prepared = _prepare(client, options, folder, progress=progress)
        run_id = run.begin(options.name)
        tag_hardware(prepared.hardware)
        if prepared.canaries is not None:
            mlflow.set_tag("unlearn.canaries_sha256", prepared.canaries.digest)
            mlflow.log_text(prepared.canaries.model_dump_json(indent=1), CANARIES)
        trained = _fit(client, options, prepared, run_id, folder)
        metrics = _accuracies(prepared, trained.model)
        return _register(client, options, prepared, trained, metrics, run_id, folder)


def _prepare(client: MlflowClient, options: config.Train, folder: Path, *, progress: bool) -> _Prepared:
    """Read the data, and build or open what is trained."""
    if options.from_ is None:
        check_architecture(options.architecture)
    before = None if options.from_ is None else open_before(client, options, folder)
    source = load_source(options.data) if before is None else before.view.source
    kept = _not_excluded(client, source, options.exclude)
    if before is not None:
        kept = before.allowed(kept)
    canaries = None
    if options.canaries:
        canaries = draw_canaries(source.train.ids, source.train.labels, kept, options.canaries)
        kept = kept[~canaries.ghosts_among(source.train.ids)[kept]]
    view = InputSpec(source, options.transform, source.classes, None) if before is None else before.view
    module_for_transform = None if before is None else before.module
    if before is None and options.transform == "timm":
        # The configuration is the architecture's: it does not depend on the images.
        module_for_transform = build_model(options.architecture, len(source.classes), (3, 224, 224))
    dataset = view.dataset(source.train.subset(kept), module_for_transform, "the training set", progress)
    with users_code("reading the data", "correct the data source"):
        channels, height, width = dataset[0][0].shape
    shape = channels, height, width
    view = replace(view, shape=shape)
    if before is None:
        with isolated_rng(options.seed):
            module = build_model(options.architecture, len(source.classes), shape)
    else:
        module = before.module
    check_outputs(module, dataset, view.classes, options.architecture if before is None else before.version.uri)
    unseen = {
        name: view.dataset(split, module, f"the {name} set", progress)
        for name, split in (("val", source.val), ("test", source.test))
    }
    hardware = pick_hardware(module, dataset, options, progress=progress)
    if options.keep_checkpoints or options.ensemble or before is not None:
        hardware = as_recorded(hardware, None, augment=options.augment)  # it may be run again
    return _Prepared(view, kept, dataset, unseen, module, hardware, before, canaries)


def _fit(client: MlflowClient, options: config.Train, prepared: _Prepared, run_id: str, folder: Path) -> _Trained:
    """Train one model, or the sub-models of an ensemble."""
    before, kept, hardware = prepared.before, prepared.kept, prepared.hardware
    source, dataset = prepared.view.source, prepared.dataset
    training = dataset if options.augment == "none" else Augmented(dataset, options.augment)
    if before is not None and options.train_on == "new":
        training = before.new_alone(training, kept)
    read_as = {"data": source.digest, "transform": prepared.view.transform, "augment": options.augment}
    identity = {**read_as, "samples": prepared.manifest.digest}
    on_epoch = partial(log_epoch, Training)
    if options.ensemble:
        plan = plan_ensemble(client, options, source, kept, prepared.module, folder)
        mark = trained_as(plan.architecture, prepared.stored.digest, _recipe(options), options.seed)
        mark_training(run_id, mark)
        stages = StageCheckpoints("train", run_id, identity, mark)
        trainer = ShardTrainer(plan.shards, Training, hardware, keep_on(run_id), stages.at, on_epoch)
        placed, classes = plan.placed.subset(kept), len(source.classes)
        model, shards = train_ensemble(plan, training, placed, prepared.shape, classes, hardware, trainer)
        return _Trained(model, plan.architecture, tuple(trainer.kept), shards, placed, stages)
    architecture = options.architecture if before is None else before.architecture
    mark = trained_as(architecture, prepared.stored.digest, _recipe(options), options.seed)
    checkpoint = Checkpoint("train", run_id, identity, mark)
    keep = None
    if options.keep_checkpoints:
        mark_training(run_id, mark)
        keep = Keep(options.keep_checkpoints, options.epochs, keeper(run_id, lambda: checkpoint.resume_key))
    run_options = RunOptions(options.seed, on_epoch=on_epoch, checkpoint=checkpoint, keep=keep)
    outcome = run(prepared.module, Training(_recipe(options)), {"retain": training}, hardware, run_options)
    return _Trained(outcome.model, architecture, outcome.kept, None, None, checkpoint)


def _recipe(options: config.Train) -> dict[str, Any]:
    return {key: getattr(options, key) for key in ("epochs", "lr", "batch_size", "weight_decay")}


def _accuracies(prepared: _Prepared, model: nn.Module) -> dict[str, float]:
    """On what was trained on, and on both unseen sets."""
    metrics = {}
    placed = model.to(prepared.hardware.device)
    for split, data in {"retain": prepared.dataset, **prepared.unseen}.items():
        outputs = evaluate_split(placed, data, prepared.hardware, description=f"evaluating {split}")
        # Not the classes that are excluded wholly.
        trained_on = np.isin(outputs.labels, labels_of(prepared.dataset))
        if trained_on.any():
            metrics[f"acc_{split}"] = accuracy(outputs.predictions, outputs.labels, trained_on)
    return metrics


def _register(
    client: MlflowClient,
    options: config.Train,
    prepared: _Prepared,
    trained: _Trained,
    metrics: dict[str, float],
    run_id: str,
    folder: Path,
) -> TrainResult:
    """Log the model with its record, and register it.

    Args:
        client: of the registry.
        options: of the command.
        prepared: what was trained on.
        trained: what came of it.
        metrics: its accuracies.
        run_id: of the active run.
        folder: for temporary files.
    """
    view, kept, before, model = prepared.view, prepared.kept, prepared.before, trained.model
    source, canaries, stored, shards = view.source, prepared.canaries, prepared.stored, trained.shards
    log_manifests(source.spec, {"retain": prepared.manifest})
    planted = canaries and Commitment(run_id=run_id, sha256=canaries.digest, pairs=len(canaries.pairs))
    recipe = _recipe(options)
    record = Record(
        architecture=trained.architecture,
        num_classes=len(view.classes),
        image_shape=prepared.shape,
        transform=view.transform,
        classes=view.classes,
        data=source.spec,
        provenance=Provenance(method="train", params=recipe, seed=options.seed, augment=options.augment),
        exclude=options.exclude,
        trained_on=TrainedOn.of(stored, without_options(source.spec), source.samples_digest),
        checkpoints=trained.kept,
        shards=shards if before is None else before.shards,
        origin=None if before is None else before.origin(kept, str(stored.salt), options.train_on),
        machine=machine_of(prepared.hardware) if trained.kept or before is not None or shards is not None else None,
        canaries=planted if before is None else before.canaries,
    )
    # Never of a training image: the example travels with every later version.
    test = prepared.unseen["test"]
    example = example_images([test[i % len(source.test)][0] for i in range(2)])
    new = NewModel(
        model,
        record,
        stored,
        folder,
        example=example,
        source=None if before is None else before.version,
        serialization=options.serialization,
        placed=None if trained.placed is None else ([source.train.ids[i] for i in kept], trained.placed),
    )
    without = f", without `{options.exclude}` (a gold standard)" if options.exclude else ""
    parts = "" if shards is None else f" as {shards.shards} shards of {shards.slices} slices"
    gone_on = "" if record.origin is None else f" from `{record.origin.uri}`, {record.origin.samples} of them new"
    what = options.architecture if before is None else before.architecture
    tags = {
        "unlearn.method": "train",
        "unlearn.run_id": run_id,
        "unlearn.weights_sha256": weights_digest(model),
        **metric_tags(metrics),
        **record.tags(),
    }
    info = log_model(client, new, run_id)
    mlflow.log_metrics(metrics, model_id=info.model_id)
    description = f"`{what}`{parts} trained on {counted(len(kept), 'sample')} of `{source.spec}`{gone_on}{without}."
    remove_of_dead(client, trained.kept)
    version = register(client, info, options.name, tags=tags, description=description)
    complete(client, version)
    trained.checkpoint.remove()
    shown = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
    also = f", {counted(options.canaries, 'pair')} of canaries" if canaries is not None else ""
    also += f" ({record.origin.samples} of them new)" if record.origin is not None else ""
    also += f", {counted(len(trained.kept), 'checkpoint')}" if trained.kept else ""
    say(f"Registered {options.name} version {version.version}: {counted(len(kept), 'training sample')}{also}, {shown}.")
    registered = Registered(
        name=options.name,
        version=str(version.version),
        uri=f"models:/{options.name}/{version.version}",
        model_id=info.model_id,
        weights_sha256=tags["unlearn.weights_sha256"],
        provenance=record.provenance,
        metrics={"trained": Measured(values=metrics, not_computed={}, counts={})},
    )
    return TrainResult(run_id=run_id, registered=registered, samples=len(kept), excluded=options.exclude)


def _not_excluded(client: MlflowClient, source: Source, exclude: str | None) -> npt.NDArray[np.int64]:
    """Indices into ``source.train`` of what is trained on."""
    if exclude is None:
        return np.arange(len(source.train))
    exclude = forget_requests.excluded(exclude)
    everything = ~_ghosts(client, source, exclude)
    read = partial(forget_requests.read_manifest, client)
    return retained(everything, resolve_forget(exclude, source, everything, read).indices)


def _ghosts(client: MlflowClient, source: Source, exclude: str) -> npt.NDArray[np.bool_]:
    """What the version that a request is about left out as ghosts ``[N]``: its gold standard does so as well."""
    none = np.zeros(len(source.train), dtype=np.bool_)
    if not exclude.startswith("request:"):
        return none
    _, request = forget_requests.read_request(client, exclude.removeprefix("request:"))
    registered = version_there(client, request["of"])
    if registered is None or retired(registered) is not None:
        return none  # nothing is left that says which they are
    with tracking.scratch() as folder:
        canaries = canaries_of(open_version(client, request["of"], folder))
    return none if canaries is None else canaries.ghosts_among(source.train.ids)
