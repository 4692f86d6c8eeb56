"""`locate`: which versions of the whole registry were trained on some samples."""

from mlflow_unlearn import config
from mlflow_unlearn.console import counted, say
from mlflow_unlearn.errors import Refused
from mlflow_unlearn.governance.locating import Wanted
from mlflow_unlearn.governance.looking import wanted_by
from mlflow_unlearn.governance.places import UNSEEN, Places, elsewhere, look, rows
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.network import brief_retries
from mlflow_unlearn.registry.uris import in_ranges
from mlflow_unlearn.registry.walk import walk
from mlflow_unlearn.report import table
from mlflow_unlearn.spelling import spelled


def locate(options: config.Locate) -> Places:
    """Print every place that holds the samples, or may.

    Raises:
        UnlearnError: no source knows what is looked for.
        Refused: it was found and ``fail_on`` says so, or the server stopped to answer on the way.
    """
    with brief_retries(), tracking.read_only_client() as client:
        registry = walk(client)
        wanted = wanted_by(client, registry, options.forget, options.data, options.no_code)
        places = look(client, registry, wanted)
    table.show_places(_asked(options.forget, wanted), rows(places), elsewhere(places))
    say(_summary(places))
    say(UNSEEN)
    if places.unanswered is not None:
        raise Refused(
            f"the search is incomplete, since the server did not answer ({places.unanswered}): run it again", places
        )
    failing = {"nothing": (), "contains": ("contains",), "unknown": ("contains", "unknown")}[options.fail_on]
    left = [place.uri for place in places.places if place.state in failing]
    left += places.logged_models if failing else []
    left += places.logged_models_unknown if "unknown" in failing else []
    left += places.unlisted_checkpoints if "unknown" in failing else []
    if left:
        raise Refused(f"the samples are, or may be, in {', '.join(in_ranges(left))}: {_way_out()}", places)
    return places


def _way_out() -> str:
    return (
        f"`request` with {spelled('all', True)} files what is to be unlearned, and `manifest` records what a version "
        "was trained on"
    )


def _asked(spec: str, wanted: list[Wanted]) -> str:
    named = [
        f"{counted(len(set(one.samples.ids)), 'sample')} of {one.source or 'any source'}"
        for one in wanted
        if one.samples.ids
    ]
    return f"Looked for: {spec} ({'; '.join(named)})"


def _summary(places: Places) -> str:
    counts = {state: len(places.in_state(state)) for state in ("contains", "unlearned", "unknown", "retired")}
    one = {"contains": "contains them", "unlearned": "has unlearned them", "unknown": "may contain them"}
    many = {"contains": "contain them", "unlearned": "have unlearned them", "unknown": "may contain them"}
    said = [f"{counts[state]} {(one if counts[state] == 1 else many)[state]}" for state in one]
    more = len(places.logged_models_unknown)
    rest = f" So may {counted(more, 'LoggedModel')} without a version." if more else ""
    return f"Of {counted(places.versions_looked_at, 'version')} {', '.join(said)}; {counts['retired']} retired.{rest}"
