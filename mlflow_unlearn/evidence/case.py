"""A case as it is shown and handed on: requests that belong together, what came of them, and what is still open."""

import json
from datetime import UTC, datetime
from typing import Literal, get_args

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from mlflow_unlearn.console import storable
from mlflow_unlearn.evidence.record import FrozenRecord

Role = Literal["source", "fulfilled", "later", "copy"]
EventKind = Literal["filed", "unlearned", "audited", "reviewed", "promoted", "retired"]


class CaseRequest(FrozenRecord):
    """One forget request of a case."""

    id: str
    of: str = Field(description="The version that it is about.")
    run_id: str
    filed: str | None
    filed_by: str
    requester: str | None
    reason: str | None
    due: str | None
    samples: int | None
    hashed: bool | None = Field(description="Whether the ids are stored hashed; None: the list is missing.")
    done_by: list[str] = Field(description="URIs of the versions that fulfilled it.")
    withdrawn: str | None = Field(None, description="By whom it was taken back, when and why, in words.")
    folder: str


class CaseVersion(FrozenRecord):
    """A version that a case is about, as it is now.

    ``fulfilled`` is one that carried a request out, ``later`` one that was made from such a version and promoted,
    ``copy`` a copy of one that carried a request out, ``source`` one that only knows what is to be forgotten.
    """

    uri: str
    role: Role
    request_ids: list[str] = Field(description="Of this case, that it carried out.")
    knows: list[str] = Field(description="Requests of this case whose samples it was trained on.")
    source_uri: str | None = Field(description="What it was unlearned from.")
    method: str | None
    membership: str | None = Field(description="How the membership test reads it.")
    audit: str | None = Field(description="What the strongest audit of it came to.")
    verdict: str | None = Field(description="Of its last review, in a word.")
    aliases: list[str]
    retired: bool = Field(description="Whether `retire` has removed its files and ended.")
    folder: str


class CaseEvent(FrozenRecord):
    """One thing that was done, by the record that says so."""

    at: str
    kind: EventKind
    about: str = Field(description="Id of the request, or URIs of the versions.")
    message: str
    by: str
    run_id: str
    file: str = Field(description="Where the dossier has the record.")
    sha256: str


class Case(FrozenRecord):
    """Everything that belongs to one case.

    ``files`` are the records as they are stored, byte by byte, by their path in a dossier.
    """

    schema_version: Literal[1] = 1
    id: str
    requests: list[CaseRequest]
    versions: list[CaseVersion]
    events: list[CaseEvent] = Field(description="By time.")
    missing: dict[str, str] = Field(description="Path in the dossier → why that file is not there.")
    files: SkipJsonSchema[dict[str, bytes]] = Field(exclude=True, repr=False)

    def to_json(self) -> str:
        """What a dossier holds of it besides the records themselves, without passwords."""
        return json.dumps(storable(self.model_dump(mode="json")), indent=1, ensure_ascii=False) + "\n"

    @property
    def carried_out(self) -> list[CaseVersion]:
        """The versions that fulfilled a request."""
        return [version for version in self.versions if version.role == "fulfilled"]

    @property
    def serving(self) -> list[str]:
        """NAME@ALIAS of the versions that have forgotten, with those made from them."""
        return [
            f"{_name(version.uri)}@{alias}"
            for version in self.versions
            if version.role in ("fulfilled", "later") and not version.knows
            for alias in version.aliases
        ]

    @property
    def open_points(self) -> list[str]:
        """What is still to be done, in words; empty for a case that is closed."""
        points = []
        for request in self.requests:
            if not (request.done_by or request.withdrawn):
                due = f", due {request.due}" if request.due is not None else ""
                points.append(f"request {request.id} was not carried out{due}")
        for version in self.carried_out:
            if version.retired:
                continue
            if version.verdict is None:
                points.append(f"{version.uri} was not reviewed")
            elif version.verdict != "pass":
                points.append(f"the last review of {version.uri} says {version.verdict}")
            if version.audit == "told apart":
                points.append(f"an audit distinguishes the forgotten samples of {version.uri} from unseen ones")
        if self.carried_out and not self.serving:
            points.append("no alias points to a version that has forgotten the samples")
        taken_back = {request.id for request in self.requests if request.withdrawn and not request.done_by}
        for version in self.versions:
            if {*version.knows} - taken_back and not version.retired:
                still = f", and is {', '.join(version.aliases)}" if version.aliases else ""
                points.append(f"{version.uri}, which knows the samples, was not retired{still}")
        points += [f"{path} is missing: {why}" for path, why in self.missing.items()]
        return points


class HolderRecord(FrozenRecord):
    """A version of which it is known, or cannot be told, that it contains samples of a case."""

    uri: str
    samples: int = Field(description="How many of them its list of training ids names.")
    aliases: list[str]
    endpoints: dict[str, str] = Field(description="Name → URL, by the version's tags.")
    why: str = Field(description="How that is known, or why it is not.")


class Holders(FrozenRecord):
    """Which places still hold the samples of a case, as far as the tracking server can tell."""

    schema_version: Literal[1] = 1
    contain: list[HolderRecord] = Field(description="Versions.")
    cannot_be_told: list[HolderRecord]
    logged_models: list[str] = Field(description="LoggedModels with the samples that no version names.")
    logged_models_unknown: list[str] = Field([], description="Likewise, where that is unknown.")
    runs: list[str] = Field(description="That logged what contains them.")
    references: list[str] = Field(description="Outputs of models that audits have trained, with them among the data.")
    checkpoints: list[str] = Field([], description="Of trainings, that have seen the samples.")
    checkpoints_unknown: list[str] = Field([], description="Of trainings, which no version lists: they may have.")
    not_looked_for: dict[str, str] = Field(description="Request → why its samples could not be looked for.")

    def to_json(self) -> str:
        """As a dossier has it, without passwords."""
        return json.dumps(storable(self.model_dump(mode="json")), indent=1, ensure_ascii=False) + "\n"

    @property
    def unknown(self) -> list[str]:
        """URIs of what may contain the samples."""
        return [*(one.uri for one in self.cannot_be_told), *self.logged_models_unknown, *self.checkpoints_unknown]

    def open_points(self, case: Case) -> list[str]:
        """What is still to be done, in words, besides what the case itself says."""
        told = {version.uri for version in case.versions if version.knows and not version.retired}
        inside = {version.uri for version in case.versions}
        points = []
        for one in self.contain:
            if one.uri not in told:
                beyond = "" if one.uri in inside else ", and does not belong to this case"
                still = f"; it is {', '.join(one.aliases)}" if one.aliases else ""
                points.append(f"{one.uri} contains the samples{beyond}{still}")
        points += [f"{uri} contains the samples, and does not belong to this case" for uri in self.logged_models]
        return points + [
            f"the samples of request {id} were not looked for: {why}" for id, why in self.not_looked_for.items()
        ]


def _name(uri: str) -> str:
    return uri.removeprefix("models:/").rpartition("/")[0]


def by_time(event: CaseEvent) -> tuple[float, int, str]:
    """Of those of one second, in the order in which things are done."""
    try:
        at = datetime.fromisoformat(event.at)
        seconds = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        seconds = 0.0
    return int(seconds), get_args(EventKind).index(event.kind), event.about
