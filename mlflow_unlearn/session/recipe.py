"""How a version was trained, as far as that is recorded."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mlflow_unlearn.api import Result
from mlflow_unlearn.config import ReadOptions
from mlflow_unlearn.console import note
from mlflow_unlearn.data.datasets import Augmented
from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.engine.architectures import builder_like, model_family
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import Origin, Shards
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.registry.versions import Record, open_version
from mlflow_unlearn.rng import isolated_rng
from mlflow_unlearn.session.past import NOT_THE_RECORDED, otherwise, with_difference
from mlflow_unlearn.session.session import Session

TRAINED = ("train", "retrain", "rewind")
"""Methods whose hyperparameters are a recipe of training."""


@dataclass(frozen=True)
class Recipe:
    """How a version was trained before anything was unlearned, as far as that is recorded.

    Attributes:
        params: hyperparameters of `retrain`, as recorded or as given; the others are its defaults.
        augment: random augmentation of the training images.
        seed: of the recorded training.
        architecture: what ``model_factory`` builds, None where it draws each module's weights anew.
        model_factory: builds a randomly initialised model of the version's architecture.
        origin: the version that the training went on from; None where it began with random weights.
        assumed: a sentence about what is taken where nothing is recorded; None where the recipe is the recorded one.
    """

    params: Mapping[str, Any]
    augment: str
    seed: int | None
    architecture: str | None
    model_factory: Callable[[], nn.Module]
    origin: Origin | None = None
    assumed: str | None = None

    def splits(self, splits: Splits) -> Splits:
        """The splits with the retain set as it was trained on."""
        return splits if self.augment == "none" else replace(splits, retain=Augmented(splits.retain, self.augment))

    def claimed(self, result: Result) -> Result:
        """A retraining's result whose claim says where it was trained otherwise than the version."""
        sentence: str | None
        if self.assumed is not None:
            sentence = "How the version was trained is not recorded: this recipe may be another one."
        elif self.origin is not None:
            sentence = f"{NOT_THE_RECORDED}: in one go, and not on from {self.origin.uri}."
        else:
            other = otherwise(result.params, self.params)
            sentence = f"{NOT_THE_RECORDED}: {', '.join(other)}." if other else None
        return replace(result, exactness=with_difference(result.exactness, sentence))


def recorded_params(session: Session, options: ReadOptions, methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By method the hyperparameters that it takes of the version's recorded training: a repair's learning rate, say."""
    taking = {method: get_method(method) for method in methods if get_method(method).from_recipe}
    if not taking:
        return {}
    defaults = [f"{name} takes lr = {method.Params.model_fields['lr'].default:g}" for name, method in taking.items()]
    recipe = training_recipe(session, options, without=f"{', '.join(defaults)}, the default")
    family = model_family(session.module)
    return {name: method.recorded(recipe.params, family) for name, method in taking.items()}


def training_recipe(
    session: Session, options: ReadOptions, *, without: str | None = None, given: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe of the version, or of the one that it was unlearned from.

    Args:
        session: the version opened for work.
        options: of the command.
        without: what happens where nothing is recorded, for the note that says so; None where it is for retraining.
        given: hyperparameters of `retrain` that take the place of the recorded ones.
    """
    given = given or {}
    version, record = session.version, session.version.record
    own, shards = record, _shards(record)
    while (
        shards is None
        and record is not None
        and record.provenance.method not in TRAINED
        and record.source_uri is not None
    ):
        try:
            version = open_version(session.client, record.source_uri, session.folder)
        except UnlearnError as error:
            # A version that still contains forgotten samples may have been deleted since, as it should.
            note(f"Note: {record.source_uri}, from which {version.uri} was made, cannot be opened ({error}).")
            break
        record = version.record
    architecture = options.architecture or (own.architecture if own is not None else None)
    with isolated_rng(0):
        model_factory = builder_like(session.module, architecture, len(session.view.classes), session.image_shape)
    if shards is not None:
        return Recipe({**shards.params, **given}, shards.augment, shards.seed, architecture, model_factory)
    if record is None or record.provenance.method not in TRAINED:
        kind = "Warning" if without is None else "Note"  # a guess at what everything is measured against
        assumed = f"{version.uri} does not record how it was trained; {without or _defaults(given)}"
        note(f"{kind}: {assumed}.")
        return Recipe(given, "none", None, architecture, model_factory, assumed=assumed)
    if record.origin is not None and without is None:
        note(
            f"Note: the training of {version.uri} went on from {record.origin.uri}; retraining takes the recipe of "
            "that training alone, from random weights."
        )
    recorded, fields = record.provenance, get_method("retrain").Params.model_fields
    params = {key: value for key, value in recorded.params.items() if key in fields}
    return Recipe(
        {**params, **given}, recorded.augment or "none", recorded.seed, architecture, model_factory, record.origin
    )


def _defaults(given: Mapping[str, Any]) -> str:
    """What retraining takes where nothing is recorded."""
    defaults = get_method("retrain").Params().model_dump()
    values = ", ".join(f"{name} {value:g}" for name, value in defaults.items() if name not in given)
    more = f" but for what is given ({', '.join(given)})" if given else ""
    return f"retraining takes the defaults of `retrain`{more}: {values or 'none'}"


def _shards(record: Record | None) -> Shards | None:
    """How an ensemble's sub-models were trained; None of one model, and of an ensemble that was retrained as one."""
    if record is None or record.shards is None:
        return None
    as_one = record.shards.ended_by is not None and record.provenance.method in TRAINED
    return None if as_one else record.shards
