"""Which versions of a whole registry were trained on some samples, by their lists of training ids."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import NoAnswer
from mlflow_unlearn.governance.files import files_of, located
from mlflow_unlearn.governance.location import Location, Relations, locate
from mlflow_unlearn.governance.manifest_index import Hashes, ManifestIndex, keys_of
from mlflow_unlearn.governance.model_folder import is_gone
from mlflow_unlearn.governance.training_lists import TrainingLists
from mlflow_unlearn.registry.versions import (
    WEIGHTS_TAG,
    TrainedOn,
    retired,
    trained_on,
)
from mlflow_unlearn.registry.walk import Registry, uri_of

State = Literal["contains", "unlearned", "never contained", "another source", "retired", "unknown"]
ENDPOINT_TAG = "unlearn.endpoint."
"""A version's tag ``unlearn.endpoint.<name>`` = URL says where it is served: MLflow itself does not know."""
SUPPLY = "record what it was trained on with `manifest`"


@dataclass(frozen=True)
class Wanted:
    """Samples that are looked for: ids of one source, or of whatever source has them.

    Attributes:
        samples: plain ids, or hashed ones where a request keeps no others.
        source: spec of their source, without what splits it; None for any.
        source_sha256: its `Source.samples_digest`, where that is known.
        about: URIs of versions that a request about these samples names: they hold them by its word.
        requests: ids of these requests.
        unread: why the source cannot be read: whether it has such samples is not known.
    """

    samples: Manifest
    source: str | None = None
    source_sha256: str | None = None
    about: frozenset[str] = frozenset()
    requests: frozenset[str] = frozenset()
    unread: str = ""

    def same_source(self, of: TrainedOn) -> bool:
        """Whether a list is about this source, as it is now or as it was."""
        if self.source is None and self.source_sha256 is None:
            return True
        by_content = self.source_sha256 is not None and (
            self.source_sha256 == of.source_sha256 or of.salt == Manifest.salt_of(self.source_sha256)
        )
        return by_content or of.source in ("", self.source)


@dataclass(frozen=True)
class Located:
    """One registered version, or one LoggedModel that no version names.

    Attributes:
        uri: of it.
        state: whether it was trained on the samples and has not forgotten them.
        why: how that is known, or why it is not.
        samples: how many of them are in its list.
        registered: as the registry has it; a LoggedModel, where no version names it.
        model_id: of the LoggedModel with its files.
        location: where these lie.
        source: spec of its data.
        unlearned_by: later versions that came of it and do not contain them.
    """

    uri: str
    state: State
    why: str
    registered: ModelVersion | LoggedModel
    samples: int = 0
    model_id: str | None = None
    location: Location = field(default_factory=lambda: Location(""))
    source: str = ""
    unlearned_by: tuple[str, ...] = ()

    @property
    def endpoints(self) -> dict[str, str]:
        """Name → URL, by its tags."""
        return endpoints(self.registered.tags)


@dataclass(frozen=True)
class Found:
    """What came of a search.

    Attributes:
        versions: every registered version.
        models: every LoggedModel that no version names.
        unanswered: why some could not be asked; None where all were.
    """

    versions: Sequence[Located]
    models: Sequence[Located]
    unanswered: str | None

    def holders(self) -> list[Located]:
        """Those that contain the samples."""
        return [entry for entry in (*self.versions, *self.models) if entry.state == "contains"]


def endpoints(tags: Mapping[str, str]) -> dict[str, str]:
    """Name → URL, by the tags of a version."""
    return {key.removeprefix(ENDPOINT_TAG): value for key, value in tags.items() if key.startswith(ENDPOINT_TAG)}


class Search:
    """Of one registry, for any number of samples; it stops to ask once the server does not answer."""

    def __init__(self, client: MlflowClient, registry: Registry, index: ManifestIndex) -> None:
        """Ask nothing yet.

        Args:
            client: of the registry.
            registry: all that is there.
            index: of lists; those that it has not are read and added.
        """
        self._client, self._registry, self._index = client, registry, index
        self._models = {model.id: model for model in located(registry.models)}
        self._lists, self._retired = TrainingLists(registry, index), dict[str, bool]()

    @property
    def unanswered(self) -> str | None:
        """Why some of what it was to ask is missing; None where nothing is."""
        return next(iter(self._lists.away.values()), None)

    def find(self, wanted: Sequence[Wanted]) -> Found:
        """Which versions, and LoggedModels that no version names, were trained on these samples."""
        return self.find_each([wanted])[0]

    def find_each(self, cases: Sequence[Sequence[Wanted]]) -> list[Found]:
        """The same for several sets of samples: each list of training ids is looked at once."""
        counts = _Counts(self._index, [one for wanted in cases for one in wanted])
        return [self._found(wanted, counts) for wanted in cases]

    def _found(self, wanted: Sequence[Wanted], counts: "_Counts") -> Found:
        found = [self._version(entry, wanted, counts) for entry in self._entries]
        holders = [entry for entry in found if entry.state == "contains"]
        found = _with_descent(_with_copies(found, holders))
        models = [self._state(entry, wanted, counts) for entry in self._unregistered]
        return Found(found, _with_copies(models, holders), self.unanswered)

    @cached_property
    def _entries(self) -> list[Located]:
        entries = []
        for version in self._registry.versions:
            model = self._registry.logged_as(version)
            model_id = None if model is None else model.model_id
            location = self._location(version, model_id)
            entries.append(Located(uri_of(version), "unknown", "", version, model_id=model_id, location=location))
        return entries

    @cached_property
    def _unregistered(self) -> list[Located]:
        registered = {entry.model_id for entry in self._entries}
        return [
            Located(f"models:/{id}", "unknown", "", model, model_id=id, location=self._models[id].location)
            for id, model in self._registry.by_model_id.items()
            if id not in registered
        ]

    def _location(self, version: ModelVersion, model_id: str | None) -> Location:
        """Without a request, where its LoggedModel or its source tells."""
        source = str(version.source or "").rstrip("/")
        if model_id is not None:
            return self._models[model_id].location
        if not source.startswith(("models:/", "runs:/")):
            return locate(source)
        try:
            self._lists.ask()
            return files_of(self._client, version, list(self._models.values()))
        except NoAnswer as error:
            self._lists.away.setdefault("", str(error))
            return Location(source, doubt="the server did not answer")

    def _version(self, entry: Located, wanted: Sequence[Wanted], counts: "_Counts") -> Located:
        how = retired(entry.registered)
        if how is not None and self._gone(entry):
            # Of what it held only its tag can tell, where another version has the same list.
            told = trained_on(entry.registered.tags)
            if told is not None and self._index.samples(told.list_key) is not None:
                _, _, samples = _judged(told, entry.registered.tags, wanted, counts)
                entry = replace(entry, samples=samples, source=told.source)
            return replace(entry, state="retired", why=how)
        about = sorted(request for one in wanted if entry.uri in one.about for request in one.requests)
        entry = self._state(entry, wanted, counts)
        if entry.state not in ("contains", "unlearned") and about:
            return replace(entry, state="contains", why=f"request {', '.join(about)} is about it")
        return entry

    def _gone(self, entry: Located) -> bool:
        """Whether a retired version's files are gone; asked each time, since a mark is anybody's word."""
        if entry.uri not in self._retired:
            try:
                self._lists.ask()
                self._retired[entry.uri] = is_gone(entry.uri, entry.location)
            except NoAnswer as error:
                self._lists.away.setdefault("", str(error))
                return True  # as its tag says
        return self._retired[entry.uri]

    def _state(self, entry: Located, wanted: Sequence[Wanted], counts: "_Counts") -> Located:
        """By its list of training ids."""
        listed = self._lists.of(entry)
        if isinstance(listed, str):
            return replace(entry, why=listed)
        state, why, samples = _judged(listed, entry.registered.tags, wanted, counts)
        return replace(entry, source=listed.source, state=state, why=why, samples=samples)


def _judged(
    listed: TrainedOn, tags: Mapping[str, str], wanted: Sequence[Wanted], counts: "_Counts"
) -> tuple[State, str, int]:
    """What a version with this list and these tags is to samples; how that is known, and how many it names."""
    done = set(tags.get("unlearn.request_ids", "").split(","))
    looked_at = {one.source for one in wanted}
    for one in wanted:
        if one.unread and (one.source == listed.source or (one.source is None and listed.source not in looked_at)):
            return "unknown", f"its data cannot be read: {one.unread}", 0
    own, other, unclear = 0, 0, False
    counted = set[object]()
    for one in wanted:
        if one.unread:
            continue
        # Requests of one case name the same samples, of several versions.
        count = 0 if counts.named[id(one)] in counted else counts.of(listed, one)
        counted |= {counts.named[id(one)]} if count is not None else set()
        if count is None:
            unclear |= one.same_source(listed) and not done & one.requests
        elif count and one.same_source(listed):
            own += count
        else:
            other += count
    if own:
        return "contains", "by its list of training ids", own
    if unclear:
        return "unknown", "the request's ids are hashed in another way than its list of training ids", 0
    if done & {request for one in wanted for request in one.requests}:
        return "unlearned", f"carried out {', '.join(sorted(done))}", 0
    if other:
        return "another source", f"samples of the same ids, of another source: {listed.source}", other
    return "never contained", "none of them is in its list of training ids", 0


class _Counts:
    """How many of some samples each list names: of all of them at once, since to read a list takes longer.

    Attributes:
        named: the samples of each by which they are the same as others.
    """

    def __init__(self, index: ManifestIndex, wanted: Sequence[Wanted]) -> None:
        self._index, self._wanted = index, wanted
        self.named = {id(one): (one.samples.digest, one.source, one.source_sha256) for one in wanted}
        self._keys: dict[str | None, list[Hashes | None]] = {}
        self._counts: dict[str, dict[int, int]] = {}

    def of(self, listed: TrainedOn, one: Wanted) -> int | None:
        """Of these samples; None where they are hashed in another way."""
        if listed.list_key not in self._counts:
            self._counts[listed.list_key] = self._count(listed.list_key, listed.salt)
        return self._counts[listed.list_key].get(id(one))

    def _count(self, key: str, salt: str | None) -> dict[int, int]:
        if salt not in self._keys:
            self._keys[salt] = [keys_of(one.samples, salt) for one in self._wanted]
        pairs = zip(self._wanted, self._keys[salt], strict=True)
        comparable = {id(one): keys for one, keys in pairs if keys is not None}
        return dict(zip(comparable, self._index.counts(key, comparable.values()), strict=True))


def _with_copies(found: Iterable[Located], holders: Sequence[Located]) -> list[Located]:
    """A copy shares its LoggedModel, its weights or its files with what holds the samples."""
    by_mark: dict[str, Located] = {}
    for holder in holders:
        for mark in _marks(holder):
            by_mark.setdefault(mark, holder)
    relations = Relations({holder.uri: holder.location for holder in holders})
    result = []
    for entry in found:
        if entry.state in ("contains", "retired"):
            result.append(entry)
            continue
        same = next((by_mark[mark] for mark in _marks(entry) if mark in by_mark), None)
        uri, how = (same.uri, "same") if same is not None else relations.first(entry.location)
        if how == "same":
            samples = max((holder.samples for holder in holders if holder.uri == uri), default=0)
            entry = replace(entry, state="contains", samples=samples, why=f"the same model as {uri}")
        elif how in ("inside", "around"):
            entry = replace(entry, state="contains", why=f"its files lie {how} those of {uri}")
        elif how == "unclear" and entry.state == "never contained":
            entry = replace(entry, state="unknown", why=f"whether it has the files of {uri} cannot be decided")
        result.append(entry)
    return result


def _marks(entry: Located) -> Iterator[str]:
    """What two versions have in common when one is a copy of the other."""
    yield from (mark for mark in (entry.model_id, entry.registered.tags.get(WEIGHTS_TAG)) if mark)


def _with_descent(found: Sequence[Located]) -> list[Located]:
    """A version that came of one that holds the samples, and does not hold them, has unlearned them."""
    by_uri = {entry.uri: entry for entry in found}
    by: dict[str, list[str]] = {}
    result: dict[str, Located] = {}
    for entry in found:
        held = [uri for uri in _ancestors(entry, by_uri) if _held(by_uri[uri])]
        if entry.state in ("never contained", "unlearned"):
            for uri in held:
                by.setdefault(uri, []).append(entry.uri)
            if held and entry.state == "never contained":
                entry = replace(entry, state="unlearned", why=f"came of {held[0]}, and its list names none of them")
        result[entry.uri] = entry
    return [replace(entry, unlearned_by=tuple(by[uri])) if uri in by else entry for uri, entry in result.items()]


def _held(entry: Located) -> bool:
    return entry.state == "contains" or (entry.state == "retired" and entry.samples > 0)


def _ancestors(entry: Located, by_uri: Mapping[str, Located]) -> Iterator[str]:
    """The versions that it came of, the nearest one first."""
    seen = {entry.uri}
    while True:
        uri = entry.registered.tags.get("unlearn.source_uri", "")
        if uri in seen or uri not in by_uri:
            return
        seen.add(uri)
        entry = by_uri[uri]
        yield uri
