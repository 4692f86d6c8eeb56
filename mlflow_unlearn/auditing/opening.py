"""An audit opened: the original, and the gold standards that were named as far as they are such."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from mlflow_unlearn.auditing.audit import Audit, AuditGold, check_auditable
from mlflow_unlearn.config import Measuring
from mlflow_unlearn.console import note
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.record import read_evidence
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.versions import Version
from mlflow_unlearn.session.canaries import canaries_of
from mlflow_unlearn.session.gold import SawForgotten, open_retrained
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.spelling import spelled


def open_audit(
    session: Session,
    original_version: Version,
    options: Measuring,
    gold_uris: Sequence[str],
    alike_uris: Sequence[str] = (),
) -> Audit:
    """What is there to audit a version by, with nothing trained for it.

    Args:
        session: of the version, as `open_measured` gives it.
        original_version: beside it, which may be the same.
        options: of the command.
        gold_uris: models retrained without the forget set; those that are none are left out, and named.
        alike_uris: versions made as the audited one, with other seeds.

    Raises:
        UnlearnError: there are too few unseen samples, a single class, or a version that was made otherwise.
    """
    if original_version is session.version:
        original = session.module
    else:
        original = load_module(original_version, options.architecture, len(session.view.classes), trainable=False)
    check_auditable(session)
    session = _hidden_as_recorded(session)
    alike = _alike(session, options, alike_uris)
    golds, unusable = _golds(session, original, options, gold_uris)
    canaries = canaries_of(original_version)
    return Audit(session, original_version.uri, original, golds, unusable, canaries, alike=alike)


def _hidden_as_recorded(session: Session) -> Session:
    """With the salt of the version's evidence: it has hidden ids there, and digests are compared with it."""
    if session.salt is not None:
        return session
    try:
        evidence, _ = read_evidence(session.version.path)
    except FileNotFoundError:
        return session
    return replace(session, salt=evidence.data.salt)


def listed(uris: str | None) -> list[str]:
    """URIs that commas separate.

    >>> listed("models:/a/1, models:/a/2,"), listed(None)
    (['models:/a/1', 'models:/a/2'], [])
    """
    return [part.strip() for part in (uris or "").split(",") if part.strip()]


def _alike(session: Session, options: Measuring, uris: Sequence[str]) -> list[nn.Module]:
    """Modules of versions that differ from the audited one by the seed alone."""
    modules: list[nn.Module] = []
    taken = {weights_digest(session.module): session.version.uri}
    for uri in uris:
        try:
            version, module = open_retrained(session, options, uri)
        except SawForgotten as error:
            raise UnlearnError(
                f"{spelled('alike_uri', uri)} knows samples that {session.version.uri} has forgotten"
            ) from error
        own, other = (_making(each, session.view.source.train.ids) for each in (session.version, version))
        for what, made in own.items():
            if other[what] != made:
                raise UnlearnError(
                    f"{spelled('alike_uri', uri)} was made otherwise than {session.version.uri}, its {what} differ: "
                    "give versions of one method, one setting, one source and one forget set"
                )
        digest = weights_digest(module)
        if digest in taken:
            raise UnlearnError(f"{spelled('alike_uri', uri)} has the weights of {taken[digest]}: it counts once")
        taken[digest] = uri
        modules.append(module)
    return modules


def _making(version: Version, ids: Sequence[str]) -> dict[str, object]:
    record, trained = version.record, version.training_manifest
    if record is None:
        raise UnlearnError(f"{version.uri} does not record how it was made: nothing is known to be like it")
    made = record.provenance
    return {
        "method and setting": (made.method, made.params, made.prefix),
        "source": record.source_uri,
        "samples": None if trained is None else trained.mask(ids).tolist(),
    }


def _golds(
    session: Session, original: nn.Module, options: Measuring, uris: Sequence[str]
) -> tuple[list[AuditGold], dict[str, str]]:
    """The gold standards that were named, and those that are none: a control that is not retrained controls nothing."""
    golds: list[AuditGold] = []
    unusable: dict[str, str] = {}
    taken = {weights_digest(session.module): "the audited version", weights_digest(original): "the original"}
    for uri in uris:
        try:
            version, module = open_retrained(session, options, uri)
        except SawForgotten as error:
            unusable[uri] = str(error)
        else:
            digest, record = weights_digest(module), version.record
            if record is None or version.training_manifest is None or record.method not in ("train", "retrain"):
                unusable[uri] = (
                    f"{uri} does not record that it was trained anew, and on what: it is not a gold standard"
                )
            elif digest in taken:
                unusable[uri] = f"{uri} has the weights of {taken[digest]}: it is not another gold standard"
            else:
                taken[digest] = uri
                golds.append(AuditGold(uri, module, digest))
    for why in unusable.values():
        note(f"Note: {why}; it is left out.")
    return golds, unusable
