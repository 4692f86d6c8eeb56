"""An ensemble's first training, and what its version keeps for the next: where its samples lie, and checkpoints."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from mlflow_unlearn import config
from mlflow_unlearn.console import first_line, note
from mlflow_unlearn.data.placement import Placement, check_placement, keys_of, placements, read_placement
from mlflow_unlearn.data.source import Source
from mlflow_unlearn.data.spec import without_options
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.checkpoint import Checkpoint
from mlflow_unlearn.engine.ensemble import Ensemble, EnsembleSpec, assembled
from mlflow_unlearn.engine.frozen_prefix import split_points
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.shards import ShardedPast, ShardTrainer, State, frozen_features, initial_model
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import CHECKPOINTS_TAG, OF_SHARDS, Kept, Shards
from mlflow_unlearn.registry.checkpoints import read_checkpoint, store_checkpoint
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.versions import PLACEMENT_FILE, below, open_version
from mlflow_unlearn.session.checks import check_training
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.spelling import spelled


class StageCheckpoints:
    """Where the stages of one command's training stand, on disk, to be removed together."""

    def __init__(self, command: str, run_id: str, identity: Mapping[str, Any], of: str | None = None) -> None:
        """Read and write nothing yet.

        Args:
            command: whose training it is.
            run_id: of its run.
            identity: of all samples, as JSON.
            of: as of a `Checkpoint`.
        """
        self._of = partial(Checkpoint, command, run_id, of=of)
        self._identity, self._made = identity, list[Checkpoint]()

    def at(self, shard: int, stage: int) -> Checkpoint:
        """Of one stage."""
        self._made.append(self._of({**self._identity, "shard": shard, "stage": stage}))
        return self._made[-1]

    def remove(self) -> None:
        """The training is done with."""
        for checkpoint in self._made:
            checkpoint.remove()


@dataclass(frozen=True)
class EnsembleTraining:
    """What `train` makes of its options before anything is trained.

    Attributes:
        shards: how.
        architecture: an `EnsembleSpec`.
        placed: of all training samples of the source ``[Ntrain]``.
        weights: to begin with; None at random.
    """

    shards: Shards
    architecture: str
    placed: Placement
    weights: State | None


def check_ensemble_options(options: config.Train) -> None:
    """Refuse options that say nothing without an ensemble, or contradict it.

    Raises:
        UnlearnError: either.
    """
    if not options.ensemble:
        for name in ("slices", "group", "prefix", "weights"):
            if getattr(options, name) != type(options).model_fields[name].default:
                raise UnlearnError(
                    f"{spelled(name, getattr(options, name))} has no effect on one model: give "
                    f"{spelled('ensemble')} too"
                )
        return
    if options.slices >= 2 * options.epochs:
        raise UnlearnError(
            f"{spelled('slices', options.slices)} needs more than {spelled('epochs', options.epochs)}, since each "
            f"stage takes one at least: give at most {2 * options.epochs - 1} slices, or more epochs"
        )
    for name in ("keep_checkpoints", "from_"):
        if getattr(options, name):
            both = f"{spelled(name.rstrip('_'))} and {spelled('ensemble')}"
            raise UnlearnError(f"{both} contradict each other: an ensemble keeps its own checkpoints")
    if (options.prefix != "none" or options.weights is not None) and options.augment != "none":
        raise UnlearnError(
            f"{spelled('augment', options.augment)} contradicts frozen layers, which read each image once: leave out "
            "one of them"
        )


def plan_ensemble(
    client: MlflowClient,
    options: config.Train,
    source: Source,
    kept: npt.NDArray[np.int64],
    module: nn.Module,
    folder: Path,
) -> EnsembleTraining:
    """How the ensemble is to be trained.

    Args:
        client: of the registry.
        options: of the command.
        source: of the data.
        kept: indices into ``source.train`` of what is trained on.
        module: one model of the architecture.
        folder: for temporary files.

    Raises:
        UnlearnError: the samples cannot be spread like that, or the weights cannot be read.
    """
    by = options.group or "id"
    keys = keys_of(source.train, by)
    if (there := len({keys[i] for i in kept})) < options.ensemble:
        what = "samples" if by == "id" else f"values in the column {by!r}"
        raise UnlearnError(
            f"{spelled('ensemble', options.ensemble)} is more than there are {what} ({there}): give fewer shards"
        )
    placed = placements(keys, options.ensemble, options.slices)
    way_out = f"give fewer shards than {spelled('ensemble', options.ensemble)}, or more data"
    check_placement(placed.subset(kept), source.train.labels[kept], source.classes, options.ensemble, way_out)
    prefix = None if options.prefix == "none" else options.prefix
    weights = None
    if options.weights is not None:
        weights = _weights(client, options.weights, source, kept, folder)
        prefix = prefix or split_points(module)[-1]
    if prefix == "auto":
        prefix = split_points(module)[-1]
    return EnsembleTraining(
        Shards(
            shards=options.ensemble,
            slices=options.slices,
            by=by,
            params={key: getattr(options, key) for key in ("epochs", "lr", "batch_size", "weight_decay")},
            seed=options.seed,
            augment=options.augment,
            prefix=prefix,
            backbone=options.weights,
        ),
        str(EnsembleSpec(options.ensemble, prefix, options.architecture)),
        placed,
        weights,
    )


def train_ensemble(
    plan: EnsembleTraining,
    training: Dataset[Any],
    placed: Placement,
    image_shape: tuple[int, int, int],
    num_classes: int,
    hardware: Hardware,
    trainer: ShardTrainer,
) -> tuple[Ensemble, Shards]:
    """Train every shard through all its slices.

    Args:
        plan: how.
        training: what is trained on ``[N]``.
        placed: where it lies ``[N]``.
        image_shape: ``(C, H, W)``.
        num_classes: K.
        hardware: where and in which precision the frozen layers run.
        trainer: keeps count, and the checkpoints.

    Returns:
        The ensemble, on the CPU, and how it was trained.

    Raises:
        ValueError: the plan is of one model.
    """
    spec, shards = EnsembleSpec.parse(plan.architecture), plan.shards
    if spec is None:
        raise ValueError("the plan is of an ensemble")
    begin = partial(initial_model, spec.architecture, num_classes, image_shape, shards.seed)
    ensemble = assembled([begin(shard) for shard in range(shards.shards)], shards.prefix)
    if plan.weights is not None and ensemble.frozen is not None:
        # Nothing else of them: the heads begin at random, and are trained here alone.
        ensemble.frozen.load_state_dict(_of_frozen_layers(plan, ensemble.frozen, image_shape))
    if ensemble.frozen is not None:
        shards = shards.model_copy(update={"backbone_sha256": weights_digest(ensemble.frozen)})
        training = frozen_features(hardware.place(ensemble.frozen), training, hardware)
    for shard, member in enumerate(ensemble.members):
        ensemble.members[shard] = trainer.train(shard, member, training, placed)
    return ensemble.cpu().eval(), shards


def _of_frozen_layers(plan: EnsembleTraining, frozen: nn.Module, image_shape: tuple[int, int, int]) -> State:
    """What the given weights have for these layers.

    Raises:
        UnlearnError: they are of another network.
    """
    given, found = plan.weights or {}, {}
    for name, own in frozen.state_dict().items():
        if name not in given or given[name].shape != own.shape:
            there = f"is {list(given[name].shape)} and should be {list(own.shape)}" if name in given else "is not there"
            raise UnlearnError(
                f"the weights {plan.shards.backbone!r} do not fit {plan.architecture} for images {list(image_shape)}, "
                f"{name} {there}: give those of this very network; for images of up to 64 pixels torchvision's and "
                "timm's have another first layer here, so that files of theirs fit from 65 on"
            )
        found[name] = given[name]
    return found


def keep_on(run_id: str) -> Callable[[State, int, int], Kept]:
    """What stores the weights after a stage of a shard, with the active run."""
    mlflow.set_tag(CHECKPOINTS_TAG, OF_SHARDS)
    return lambda weights, shard, stage: store_checkpoint(run_id, weights, shard=shard, stage=stage)


def sharded_past(
    session: Session, run_id: str | None = None, checkpoints: StageCheckpoints | None = None, *, anew: bool = False
) -> ShardedPast | None:
    """What an ensemble's version keeps, with its samples as the session has them; None of one model.

    Args:
        session: the version opened for work.
        run_id: of the active run, where new checkpoints are to be kept.
        checkpoints: for the same command to go on after a kill.
        anew: all shards will be trained from their start, and nothing that the version keeps is relied on.

    Raises:
        UnlearnError: what it keeps was changed, or its list of shards is not the one that its hashes give.
    """
    record = session.version.record
    if record is None or record.shards is None or record.architecture is None:
        return None
    shards, train = record.shards, session.view.source.train
    if shards.ended_by is not None:
        if not anew or shards.prefix is not None:
            return None
        # Nothing is left of the weights that were changed; of frozen layers it would be.
        shards = shards.model_copy(update={"ended_by": None})
    if shards.by != "id" and shards.by not in train.groups:
        raise UnlearnError(
            f"{session.view.source.spec!r} no longer has the column {shards.by!r}, by which {session.version.uri} has "
            "spread its samples over shards: restore the column, or train anew without the samples, by `train` with "
            f"{spelled('exclude')}"
        )
    placed = placements(keys_of(train, shards.by), shards.shards, shards.slices)
    if not anew:
        check_training(session.client, session.version, session.module)
    lost = placed.subset(np.zeros(0, np.int64)) if anew else _lost(session, placed)
    if len(lost):
        note(f"Note: {len(lost)} samples of these shards have left the data source, and are taken out of them as well.")
    forget = placed.subset(session.forget)
    return ShardedPast(
        shards=shards,
        machine=record.machine,
        architecture=record.architecture,
        retain=placed.subset(session.retain),
        forget=Placement(np.concatenate([forget.shard, lost.shard]), np.concatenate([forget.slice_, lost.slice_])),
        kept=record.checkpoints,
        read=read_checkpoint,
        classes=session.view.classes,
        image_shape=session.image_shape,
        keep=None if run_id is None else keep_on(run_id),
        checkpoint=None if checkpoints is None else checkpoints.at,
    )


def _lost(session: Session, placed: Placement) -> Placement:
    """Where those of the version's samples lie that the data source does not have any more.

    The list beside the weights says where samples were trained; of those that are there, hashes say where they belong.

    Raises:
        UnlearnError: they do not agree.
    """
    version, train = session.version, session.view.source.train
    file = f"extra_files/{PLACEMENT_FILE}"
    named = f"{file} of {version.uri}"
    recorded = read_placement(below(version.path, file, version.uri), named)
    manifest = version.training_manifest
    if manifest is not None and {*recorded} != {*manifest.ids}:
        raise UnlearnError(
            f"{named} does not list what that was trained on: the file or the list of training ids was changed; "
            f"restore it, or use the method retrain, which trains all shards anew"
        )
    differ = 0
    for index in np.union1d(session.forget, session.retain).tolist():
        key = train.ids[index] if manifest is None else manifest.key(train.ids[index])
        differ += recorded.get(key) != (int(placed.shard[index]), int(placed.slice_[index]))
    if differ:
        raise UnlearnError(
            f"of {differ} samples the shard or slice in {named} is not the one that their hash gives: the file or the "
            f"source's groups were changed; restore them, or use the method retrain, which trains all "
            "shards anew"
        )
    there = set(train.ids if manifest is None else map(manifest.key, train.ids))
    where = np.array(sorted(place for key, place in recorded.items() if key not in there), np.int64).reshape(-1, 2)
    return Placement(where[:, 0], where[:, 1])


def _weights(
    client: MlflowClient, named: str, source: Source, kept: npt.NDArray[np.int64], folder: Path
) -> dict[str, torch.Tensor]:
    """Of a registered version or a local file.

    Raises:
        UnlearnError: they cannot be read, or the version was itself trained on what is trained on now.
    """
    if not named.startswith(("models:/", "runs:/")):
        try:
            if named.endswith(".safetensors"):
                return dict(load_file(named))
            found = torch.load(named, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises anything on what is not its own
            raise UnlearnError(
                f"the weights {named!r} cannot be read ({first_line(error)}): give a state dict in .safetensors or "
                ".pt, or models:/NAME/VERSION"
            ) from error
        if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
            raise UnlearnError(f"the weights {named!r} are not a state dict: save module.state_dict()")
        return {str(name): value for name, value in found.items()}
    version = open_version(client, named, folder)
    trained_on = None if version.record is None else version.record.trained_on
    manifest = version.training_manifest
    alike = trained_on is None or trained_on.source_sha256 == source.samples_digest
    # A source that has grown or shrunk since.
    alike = alike or (trained_on is not None and trained_on.source == without_options(source.spec))
    if manifest is not None and alike:
        seen = int(manifest.mask(source.train.ids[i] for i in kept).sum())
        if seen:
            raise UnlearnError(
                f"{version.uri} was itself trained on {seen} of these samples, which its layers would keep: give "
                "weights that have not seen them"
            )
    version = admitted(version, config.Evaluate(model_uri=version.uri))
    return dict(load_module(version, None, len(source.classes), trainable=False).state_dict())
