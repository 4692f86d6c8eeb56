"""Whom a search is about: from a forget spec to samples, in the sources that know them."""

from collections.abc import Iterable

from mlflow.tracking import MlflowClient

from mlflow_unlearn.console import note
from mlflow_unlearn.data.spec import without_options
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.governance.holders import named_by
from mlflow_unlearn.governance.locating import Wanted
from mlflow_unlearn.registry.versions import trained_on
from mlflow_unlearn.registry.walk import Registry


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
        from mlflow_unlearn.data.forget import named_ids  # takes torch, as whatever reads data

        return [Wanted(named_ids(spec, None))]
    recorded = filter(None, (trained_on(version.tags) for version in registry.versions))
    found, others = _in_all_sources(spec, sorted({one.source for one in recorded} - {""}))
    # A source that only missing versions record may know it.
    if not found and registry.unanswered is None:
        reasons = f" ({'; '.join(others)})" if others else ""
        raise UnlearnError(
            f"no data source that a version records knows {spec!r}{reasons}: give data=, or a file of ids"
        )
    for reason in others:
        note(f"Note: not looked for there: {reason}")
    return found


def _in_source(spec: str, data: str, *, no_code: bool) -> Wanted:
    from mlflow_unlearn.data.forget import named_ids
    from mlflow_unlearn.data.loaders import load_source

    if no_code and data.startswith("python:"):
        raise UnlearnError(f"the data source {data!r} runs code, and no_code is set: give a file of ids without data=")
    source = load_source(data)
    return Wanted(named_ids(spec, source), without_options(source.spec), source.samples_digest)


def _in_all_sources(spec: str, sources: Iterable[str]) -> tuple[list[Wanted], list[str]]:
    """The samples in each source that knows them; and why others do not."""
    found, others = [], []
    for source in sources:
        try:
            if source.startswith("python:"):  # whoever may tag a version may name any code
                raise UnlearnError(f"{source!r} runs code: name it with data=")
            found.append(_in_source(spec, source, no_code=True))
        except UnlearnError as error:
            others.append(str(error))
    return found, others
