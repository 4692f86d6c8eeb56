"""`locate`: which versions of the whole registry were trained on some samples."""

from collections.abc import Iterable

from mlflow.tracking import MlflowClient

from mlflow_unlearn import config
from mlflow_unlearn.console import note
from mlflow_unlearn.data.forget import named_ids
from mlflow_unlearn.data.spec import without_options
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.governance.holders import named_by
from mlflow_unlearn.governance.locating import Wanted
from mlflow_unlearn.governance.places import UNSEEN, Places, elsewhere, look, rows
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.versions import trained_on
from mlflow_unlearn.registry.walk import Registry, walk
from mlflow_unlearn.report import table


def locate(options: config.Locate) -> Places:
    """Print every place that holds the samples, or may.

    Raises:
        UnlearnError: no source knows what is looked for.
        Refused: it was found and ``fail_on`` says so, or the server stopped to answer on the way.
    """
    with tracking.read_only_client() as client:
        registry = walk(client)
        wanted = wanted_by(client, registry, options.forget, options.data, no_code=options.no_code)
        places = look(client, registry, wanted)
    table.show_places(_asked(options.forget, wanted), rows(places), elsewhere(places))
    print(_summary(places))
    print(UNSEEN)
    if places.unanswered is not None:
        raise Refused(f"the search is not complete, since no answer came ({places.unanswered}): start it again", places)
    failing = {"nothing": (), "contains": ("contains",), "unknown": ("contains", "unknown")}[options.fail_on]
    left = [place.uri for place in places.places if place.state in failing]
    if left := left + (places.logged_models if failing else []):
        raise Refused(f"the samples are, or may be, in {', '.join(left)}: {_WAY_OUT}", places)
    return places


_WAY_OUT = "`request --all true` files what is to be unlearned, and `manifest` records what cannot be told"


def wanted_by(client: MlflowClient, registry: Registry, spec: str, data: str | None, *, no_code: bool) -> list[Wanted]:
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
        return [Wanted(named_ids(spec, None))]
    recorded = filter(None, (trained_on(version.tags) for version in registry.versions))
    return _in_all_sources(spec, sorted({one.source for one in recorded} - {""}))


def _in_source(spec: str, data: str, *, no_code: bool) -> Wanted:
    from mlflow_unlearn.data.loaders import load_source  # takes torch, which a list of ids does without

    if no_code and data.startswith("python:"):
        raise UnlearnError(f"the data source {data!r} runs code, and no_code is set: give a file of ids without data=")
    source = load_source(data)
    return Wanted(named_ids(spec, source), without_options(source.spec), source.samples_digest)


def _in_all_sources(spec: str, sources: Iterable[str]) -> list[Wanted]:
    """The samples in each source that knows them."""
    found, others = [], []
    for source in sources:
        try:
            if source.startswith("python:"):  # whoever may tag a version may name any code
                raise UnlearnError(f"{source!r} runs code: name it with data=")
            found.append(_in_source(spec, source, no_code=True))
        except UnlearnError as error:
            others.append(str(error))
    if not found:
        reasons = f" ({'; '.join(others)})" if others else ""
        raise UnlearnError(
            f"no data source that a version records knows {spec!r}{reasons}: give data=, or a file of ids"
        )
    for reason in others:
        note(f"Note: not looked for there: {reason}")
    return found


def _asked(spec: str, wanted: list[Wanted]) -> str:
    named = [f"{len(set(one.samples.ids))} samples of {one.source or 'any source'}" for one in wanted]
    return f"Looked for: {spec} ({'; '.join(named)})"


def _summary(places: Places) -> str:
    counts = {state: len(places.in_state(state)) for state in ("contains", "unlearned", "unknown", "retired")}
    words = {"contains": "contain them", "unlearned": "have unlearned them", "unknown": "cannot be told"}
    said = [f"{counts[state]} {text}" for state, text in words.items()]
    return f"Of {places.versions_looked_at} versions {', '.join(said)}; {counts['retired']} were retired."
