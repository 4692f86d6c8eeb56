"""Whom a search is about: from a forget spec to samples, in the sources that know them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mlflow.tracking import MlflowClient

from mlflow_unlearn.console import note
from mlflow_unlearn.data.ids import listed_ids
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.spec import without_options
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.governance.holders import named_by
from mlflow_unlearn.governance.locating import Wanted
from mlflow_unlearn.registry.versions import trained_on
from mlflow_unlearn.registry.walk import Registry
from mlflow_unlearn.spelling import spelled

if TYPE_CHECKING:
    from mlflow_unlearn.data.source import Source


def wanted_by(client: MlflowClient, registry: Registry, spec: str, data: str | None, no_code: bool) -> list[Wanted]:
    """What a forget spec names, by source.

    Args:
        client: of the registry.
        registry: all that is there.
        spec: of the forget set.
        data: spec of the one source that is meant; None for all that versions record.
        no_code: refuse a source that runs code.

    Raises:
        UnlearnError: no source knows what is looked for.
    """
    scheme, colon, value = spec.partition(":")
    if colon and scheme == "request":
        return [named_by(client, value)]
    if data is not None:
        return [_in_source(spec, data, no_code=no_code)]
    if not (colon and scheme in ("class", "group")):
        return [Wanted(listed_ids(spec))]
    recorded = filter(None, (trained_on(version.tags) for version in registry.versions))
    found, looked_at, unread, others = _in_all_sources(spec, sorted({one.source for one in recorded} - {""}))
    # A source that only missing versions record may know it.
    if not found and registry.unanswered is None:
        said = "; ".join([*(one.unread for one in unread), *others])
        reasons = f" ({said})" if said else ""
        raise UnlearnError(
            f"no data source that a version records knows {spec!r}{reasons}: give {spelled('data')}, or a file of ids"
        )
    for reason in others:
        note(f"Note: not looked for there: {reason}")
    # Of versions of earlier releases only their files name the source, which are read later.
    rest = Wanted(
        Manifest(()), unread=f"its data source was not looked at, since no tag names it: give {spelled('data')}"
    )
    return [*found, *looked_at, *unread, rest]


def _in_source(spec: str, data: str, *, no_code: bool) -> Wanted:
    if no_code and data.startswith("python:"):
        raise UnlearnError(
            f"the data source {data!r} runs code, and {spelled('no_code', True)} is set: give a file of ids "
            f"without {spelled('data')}"
        )
    from mlflow_unlearn.data.loaders import load_source

    return _of_source(spec, load_source(data))


def _of_source(spec: str, source: "Source") -> Wanted:
    from mlflow_unlearn.data.forget import named_ids

    return Wanted(named_ids(spec, source), without_options(source.spec), source.samples_digest)


def _in_all_sources(spec: str, sources: Iterable[str]) -> tuple[list[Wanted], list[Wanted], list[Wanted], list[str]]:
    """The samples in each source that knows them; sources that do not, or cannot be read; and why they do not."""
    from mlflow_unlearn.data.loaders import load_source

    found, looked_at, unread, others = list[Wanted](), list[Wanted](), list[Wanted](), list[str]()
    for spec_of_source in sources:
        try:
            if spec_of_source.startswith("python:"):  # whoever may tag a version may name any code
                raise UnlearnError(f"{spec_of_source!r} runs code: name it with {spelled('data')}")
            source = load_source(spec_of_source)
        except UnlearnError as error:
            unread.append(Wanted(Manifest(()), spec_of_source, unread=str(error)))
            continue
        try:
            found.append(_of_source(spec, source))
        except UnlearnError as error:
            others.append(str(error))
            looked_at.append(Wanted(Manifest(()), spec_of_source))
    return found, looked_at, unread, others
