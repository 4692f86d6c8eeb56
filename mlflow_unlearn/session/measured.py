"""A version opened to be measured, with the version that it is measured against."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from mlflow.tracking import MlflowClient
from torch import nn

from mlflow_unlearn.config import Evaluate, Measuring
from mlflow_unlearn.data.forget import retained
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.metrics.outputs import Outputs
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.versions import Version, open_version
from mlflow_unlearn.session.checks import check_alike, check_outputs
from mlflow_unlearn.session.forget_set import evaluated_forget_set
from mlflow_unlearn.session.hardware import pick_hardware
from mlflow_unlearn.session.missing import require
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.session.view import InputSpec, data_spec, make_splits, open_input_spec, training_mask

Chosen = tuple[InputSpec, npt.NDArray[np.int64], npt.NDArray[np.int64], str | None]
"""How what is measured is read, the forget and retain sets as indices, and the salt of a hashed request."""


def open_measured(
    client: MlflowClient,
    options: Measuring,
    folder: Path,
    *,
    progress: bool,
    choose: Callable[[Version, Version, InputSpec], Chosen] | None = None,
) -> tuple[Session, Version]:
    """Open a version to be measured, with the version that it is measured against, which may be the same.

    Args:
        client: of the registry.
        options: of the command.
        folder: for temporary files.
        progress: whether bars are shown.
        choose: the samples, given the version, its original and how the version reads its inputs; by default those
            of the option ``forget`` or of the version's requests.

    Raises:
        UnlearnError: something is missing, or does not fit.
    """
    version = admitted(open_version(client, options.model_uri, folder), options)
    require(version, options, trains=False)
    recorded = version.record.source_uri if version.record is not None else None
    original_uri = options.original_uri or recorded
    original = version if original_uri is None else open_version(client, original_uri, folder)
    if original.uri == version.uri or (original.model_id is not None and original.model_id == version.model_id):
        original = version
    else:
        original = admitted(original, options.model_copy(update={"data": data_spec(version, options.data)}))
    view = open_input_spec(version, options, trains=False)
    if original is not version:
        check_alike(original, view)
    if choose is not None:
        view, forget, retain, salt = choose(version, original, view)
    else:
        mask = training_mask(original, view.source)
        chosen = evaluated_forget_set(client, version, original, view.source, mask, options)
        forget, salt = chosen.indices, chosen.salt
        # Only what both were trained on: what the version forgot before is not a retain sample.
        retain = retained(mask & training_mask(version, view.source), forget)
    module = load_module(version, options.architecture, len(view.classes), trainable=False)
    splits = make_splits(view, module, forget, retain, progress)
    check_outputs(module, splits.test, view.classes, version.uri)
    hardware = pick_hardware(module, splits.test, options, progress=progress)
    return Session(client, version, module, view, splits, forget, retain, (), hardware, folder, salt), original


def evaluate_measured(
    session: Session, original: Version, options: Evaluate, gold: nn.Module | None
) -> tuple[dict[str, Outputs], str]:
    """The outputs of each model on the four sets, and the name of the session's own version among them.

    That is ``original`` where the version came from no other.

    Args:
        session: from `open_measured`.
        original: likewise.
        options: of the command.
        gold: from `open_gold`.
    """
    own = session.evaluate_original(force=options.force)
    name = "original" if original is session.version else "unlearned"
    outputs = {name: own}
    if original is not session.version:
        module = load_module(original, options.architecture, len(session.view.classes), trainable=False)
        before = evaluate_splits(module, session.splits, session.hardware, name="original", cached=True)
        outputs = {"original": before, "unlearned": own}
    if gold is not None:
        outputs["gold"] = evaluate_splits(gold, session.splits, session.hardware, name="gold", cached=True)
    return outputs, name
