"""Where samples still live: versions, LoggedModels, runs, references, this machine's cache."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from pydantic import Field

from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.config import Locate
from mlflow_unlearn.errors import NoAnswer
from mlflow_unlearn.evidence.audit import REFERENCE_FILE
from mlflow_unlearn.governance import manifest_index
from mlflow_unlearn.governance.holders import cached, checkpoints, references
from mlflow_unlearn.governance.locating import ENDPOINT_TAG, Found, Located, Search, State, Wanted
from mlflow_unlearn.governance.seen import RunCheckpoints, Seen, checkpoints_seen
from mlflow_unlearn.registry.uris import in_ranges
from mlflow_unlearn.registry.walk import Registry
from mlflow_unlearn.spelling import command_line, spelled

PRINTED = {"unknown": "unknown"}
"""State → what people read; other states say it themselves."""
_MANY = 40
"""Places above which those that are alike share a row."""
UNSEEN = (
    "Not seen from here: downloads, backups, and copies on other machines and servers; endpoints are known by the "
    f"tag {ENDPOINT_TAG}NAME alone."
)


class Place(CommandResult):
    """One version, or one LoggedModel that no version names."""

    uri: str
    state: State
    samples: int = Field(description="How many of the samples its list of training ids names.")
    why: str = Field(description="How that is known, or why it is not.")
    source: str = Field(description="Data source that it records; empty where it records none.")
    aliases: list[str]
    endpoints: dict[str, str] = Field(description="Name → URL, by the version's tags.")
    unlearned_by: list[str] = Field(description="Versions that came of it and do not contain them.")
    checkpoints: int = Field(0, description="How many of its training's checkpoints have seen some of the samples.")


class Places(CommandResult):
    """Where samples still live, as far as the tracking server and this machine can tell."""

    looked_for: int = Field(description="Number of samples.")
    versions_looked_at: int
    places: list[Place] = Field(description="All but what never contained any of them.")
    logged_models: list[str] = Field(description="LoggedModels that no version names and that contain samples.")
    logged_models_unknown: list[str] = Field(description="Likewise, where that is unknown.")
    runs: list[str] = Field(description="That logged what contains them.")
    references: list[str] = Field(description="Outputs of models that audits have trained, with them among the data.")
    cached: list[str] = Field(description="Outputs in this machine's cache.")
    checkpoints: list[str] = Field(description="Of commands that were killed on this machine.")
    training_checkpoints: list[RunCheckpoints] = Field(
        [], description="Checkpoints of trainings that have seen samples."
    )
    unlisted_checkpoints: list[str] = Field(
        [], description="Checkpoints of trainings that no version lists: what they have seen is unknown."
    )
    unanswered: str | None = Field(None, description="Why the rest is missing; null where all was looked at.")

    def next_step(self, options: Any) -> str | None:
        """Of what contains the samples: to file a request on it, or where that is done, the plan to retire it."""
        contain = [one for one in self.places if one.state == "contains" and one.uri.startswith("models:/")]
        if isinstance(options, Locate):
            filed = all(one.unlearned_by for one in contain)
            return None if filed else command_line("request", "--forget", options.forget, "--all", "true")
        idle = [one.uri for one in contain if one.unlearned_by and not (one.aliases or one.endpoints)]
        return command_line("retire", "--model-uri", idle[0], remark="only the plan") if idle else None

    def in_state(self, state: State) -> list[Place]:
        """The places in a state."""
        return [place for place in self.places if place.state == state]


def look(client: MlflowClient, registry: Registry, wanted: Sequence[Wanted]) -> Places:
    """Search all of a registry, the store's LoggedModels and references, and this machine's cache."""
    found = manifest_index.with_index(lambda index: Search(client, registry, index).find(wanted))
    return _places(client, registry, wanted, found)


def _places(client: MlflowClient, registry: Registry, wanted: Sequence[Wanted], found: Found) -> Places:
    holders = found.holders()
    runs = {getattr(h.registered, "run_id", None) or getattr(h.registered, "source_run_id", None) for h in holders}
    trained, seen, unanswered = list[Run](), Seen(), found.unanswered
    try:
        trained = references(client, holders) if unanswered is None and holders else []
        seen = checkpoints_seen(client, registry, found, wanted) if unanswered is None else seen
    except NoAnswer as error:
        unanswered = str(error)
    return Places(
        looked_for=len({sample for one in wanted for sample in one.samples.ids}),
        versions_looked_at=len(found.versions),
        places=[_place(entry, seen) for entry in found.versions if entry.state != "never contained"],
        logged_models=[entry.uri for entry in found.models if entry.state == "contains"],
        logged_models_unknown=[entry.uri for entry in found.models if entry.state == "unknown"],
        runs=sorted(filter(None, runs)),
        references=[f"runs:/{run.info.run_id}/{REFERENCE_FILE}" for run in trained],
        cached=[str(path) for path in cached(holders)],
        checkpoints=[str(path) for path in checkpoints(holders, of_train=bool(holders))],
        training_checkpoints=list(seen.runs),
        unlisted_checkpoints=list(seen.unlisted),
        unanswered=unanswered,
    )


def _place(entry: Located, seen: Seen) -> Place:
    return Place(
        uri=entry.uri,
        state=entry.state,
        samples=entry.samples,
        why=entry.why,
        source=entry.source,
        aliases=sorted(entry.registered.aliases),
        endpoints=entry.endpoints,
        unlearned_by=list(entry.unlearned_by),
        checkpoints=seen.counts.get(entry.uri, 0),
    )


def rows(places: Places) -> list[tuple[str, ...]]:
    """Of the table for people: what holds them first.

    Versions of a model that cannot be told share a row, and where there are many, all in one state that no alias and no
    endpoint names: what is in use has a row of its own.
    """
    order = ("contains", "unknown", "another source", "unlearned", "retired")
    many = len(places.places) > _MANY
    groups: dict[object, list[Place]] = {}
    for place in sorted(places.places, key=lambda place: order.index(place.state)):
        groups.setdefault(_alike(place, many=many) or place.uri, []).append(place)
    return [_row(group) for group in groups.values()]


def _alike(place: Place, *, many: bool) -> tuple[str, ...] | None:
    """What versions have in common that share a row; None for one that has its own."""
    if place.aliases or place.endpoints or not (many or place.state == "unknown"):
        return None
    reason = place.why if place.state == "unknown" else ""
    return place.uri.rpartition("/")[0], place.state, reason


def _row(places: Sequence[Place]) -> tuple[str, ...]:
    """One version, or several that are alike."""
    first, reasons = places[0], {place.why for place in places}
    samples, counts = sorted({place.samples for place in places}), sorted({place.checkpoints for place in places})
    numbers = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    kept = f"; {numbers} of its checkpoints have seen them" if counts[-1] else ""
    return (
        *in_ranges(place.uri for place in places),
        PRINTED.get(first.state, first.state),
        "–".join(map(str, dict.fromkeys((samples[0], samples[-1])))) if samples[-1] else "–",
        ", ".join(first.aliases) or "–",
        ", ".join(f"{name} ({url})" for name, url in first.endpoints.items()) or "–",
        ", ".join(in_ranges(uri for place in places for uri in place.unlearned_by)) or "–",
        (first.why if len(reasons) == 1 else f"{len(reasons)} reasons, each of which {spelled('format', 'json')} has")
        + kept,
    )


def elsewhere(places: Places) -> Mapping[str, Sequence[str]]:
    """What else there is, by what it is."""
    return {
        "LoggedModels that were never registered": places.logged_models,
        "runs that logged these models": places.runs,
        "outputs of references that audits have trained": places.references,
        "outputs in this machine's cache": places.cached,
        "checkpoints of trainings that have seen the samples": [str(one) for one in places.training_checkpoints],
        "checkpoints that no version lists (what they have seen is unknown)": places.unlisted_checkpoints,
        "checkpoints of commands that were killed on this machine": places.checkpoints,
    }
