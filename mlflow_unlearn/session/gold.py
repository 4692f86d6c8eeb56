"""The gold standard that a command is given."""

from torch import nn

from mlflow_unlearn.config import Measuring, Unlearning
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.versions import Version, open_version
from mlflow_unlearn.session.checks import check_alike, check_outputs
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.spelling import spelled


class SawForgotten(UnlearnError):
    """A model was trained on samples that are forgotten: it is not a gold standard."""


def open_gold(session: Session, options: Unlearning | Measuring) -> nn.Module | None:
    """The gold standard's module, if one is named.

    Raises:
        SawForgotten: it was trained on samples that are forgotten, now or earlier.
        UnlearnError: its inputs or outputs differ.
    """
    return None if options.gold_uri is None else open_retrained(session, options, options.gold_uri)[1]


def open_retrained(session: Session, options: Unlearning | Measuring, uri: str) -> tuple[Version, nn.Module]:
    """A version that is named as a gold standard, and its module.

    Args:
        session: with the sets that it must not have seen.
        options: of the command.
        uri: of the version.

    Raises:
        SawForgotten: it was trained on samples that are forgotten, now or earlier.
        UnlearnError: its inputs or outputs differ.
    """
    view = session.view
    read = options.model_copy(update={"data": view.source.spec, "transform": view.transform})
    version = admitted(open_version(session.client, uri, session.folder), read)
    check_alike(version, view)
    manifest = version.training_manifest
    if manifest is not None:
        seen = manifest.mask(view.source.train.ids)
        seen[session.retain] = False
        if seen.any():
            raise SawForgotten(
                f"{version.uri} was trained on {seen.sum()} samples that are to be forgotten or were forgotten before: "
                f"it is not a gold standard; train one with {spelled('exclude')}"
            )
    session.code.extend(f"the gold standard {version.uri}: {reason}" for reason in version.code or ())
    module = load_module(version, options.architecture, len(view.classes), trainable=False)
    check_outputs(module, session.splits.test, view.classes, version.uri)
    return version, module
