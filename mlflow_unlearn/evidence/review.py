"""`review`: judge a version by a policy; the verdict is a file of its own, bound to what it is about.

The reviews of a version form a chain: each one's file names the number and the digest of the one before. The tag
`HEAD_TAG` names the last one, on the version and on that review's own run, and a review counts once it is the head.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from mlflow_unlearn.evidence.audit import AuditRecord
from mlflow_unlearn.evidence.policy import Policy, Verdict
from mlflow_unlearn.evidence.record import FOLDER, FrozenRecord, Person
from mlflow_unlearn.parsing import load_json

TAG = "unlearn.review."
VERDICT_TAG = "unlearn.verdict"
HEAD_TAG = "unlearn.reviews"
MODEL_URI_TAG = "unlearn.model_uri"
"""Of a review's run: the version that it is about."""


class Head(FrozenRecord):
    """The last review of a chain; of one that has none yet, number 0."""

    n: int = 0
    sha256: str = Field("", description="Of its file.")

    def __str__(self) -> str:
        """As a tag."""
        return f"{self.n} {self.sha256}"

    @classmethod
    def from_tag(cls, value: str) -> "Head | None":
        """The inverse; None for what is not the head of a chain."""
        match = re.fullmatch("([1-9][0-9]{0,8}) ([0-9a-f]{64})", value)
        return cls(n=int(match[1]), sha256=match[2]) if match else None


class ReviewRecord(FrozenRecord):
    """One verdict on one version, by name, number and digests: a copy of the version is another version."""

    n: int = Field(description="Reviews of a version are counted from 1; the last one counts.")
    previous: Head | None = Field(None, description="The review before it; none in those of earlier releases.")
    at: str
    by: Person
    name: str
    version: str
    weights_sha256: str
    evidence_sha256: str
    policy: Policy
    verdict: Verdict
    audit: AuditRecord | None = Field(None, description="What the policy's rules on an audit were judged by.")

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_releases(cls, values: Any) -> Any:
        """Their policies did not ask whether a name was authenticated, nor whether a pass tells anything."""
        if not isinstance(values, dict) or not isinstance(values.get("policy"), dict):
            return values
        policy = {"authenticated": False} | values["policy"]
        if isinstance(policy.get("membership"), dict):
            policy["membership"] = {"uninformative": "accept"} | policy["membership"]
        return values | {"policy": policy}

    @property
    def file(self) -> str:
        """Its path in its run."""
        return f"{FOLDER}/review-{self.n}.json"

    def to_json(self) -> str:
        """What is stored."""
        return self.model_dump_json(indent=1) + "\n"


@dataclass(frozen=True)
class ReviewEntry:
    """One review, as a version's tag has it.

    Attributes:
        n: its number.
        run_id: of its run.
        sha256: of its file.
        verdict: in a word.
        previous: SHA-256 of the file of the one before, empty for the first; None in those of earlier releases.
        policy: its name.
        by: who reviewed, as people read it.
        at: when.
        why: what has failed, in short; empty where nothing has.
    """

    n: int
    run_id: str
    sha256: str
    verdict: str
    previous: str | None
    policy: str
    by: str
    at: str
    why: str = ""

    @property
    def head(self) -> Head:
        """The chain that ends with it."""
        return Head(n=self.n, sha256=self.sha256)


@dataclass(frozen=True)
class ReviewChain:
    """The reviews of a version, as its tags have them.

    Attributes:
        entries: those that count, by number.
        begun: one that did not become the head, since its command was interrupted.
        problems: what was deleted or changed, in words.
    """

    entries: Mapping[int, ReviewEntry]
    begun: ReviewEntry | None
    problems: tuple[str, ...]

    @property
    def last(self) -> ReviewEntry | None:
        """The one that counts."""
        return self.entries[max(self.entries)] if self.entries else None

    @property
    def head(self) -> Head:
        """What the next review names as the one before."""
        return self.last.head if self.last is not None else Head()

    def stated(self, finished: Collection[str]) -> Iterator[ReviewEntry | None]:
        """The review that the version's description may state, first the one that counts; None: that there is none.

        A review counts before it is in the description, and its run is marked after that.

        Args:
            finished: ids of the runs that are marked.
        """
        entry = self.last
        while entry is not None:
            yield entry
            if entry.run_id in finished:
                return
            entry = self.entries.get(entry.n - 1)
        yield None

    def missing(self, runs: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
        """What runs of reviews (id → tags) say of this version and its tags do not."""
        for run_id, tags in runs.items():
            head = Head.from_tag(tags[HEAD_TAG])
            entry = self.entries.get(head.n) if head is not None else None
            if entry is None or entry.head != head:
                yield f"the review that run {run_id} recorded as number {tags[HEAD_TAG][:20]!r} is not among them"
            elif tags.get(VERDICT_TAG) != entry.verdict:
                yield f"review {entry.n} says {entry.verdict}, and its run {run_id} says {tags.get(VERDICT_TAG)}"


def read_chain(tags: Mapping[str, str]) -> ReviewChain:
    """The chain of reviews that a version's tags form. Those of earlier releases are where it begins."""
    counted = {f"{TAG}{n}" for n in numbers(tags)}
    problems = [f"the tag {key} is not of a review" for key in tags if key.startswith(TAG) and key not in counted]
    found: dict[int, ReviewEntry] = {}
    for n in sorted(numbers(tags)):
        try:
            said = load_json(tags[f"{TAG}{n}"])
            previous = None if said.get("previous") is None else str(said["previous"])
            about = {key: str(said[key]) for key in ("run_id", "sha256", "verdict")}
            about |= {key: str(said.get(key, "")) for key in ("policy", "by", "at", "why")}
            found[n] = ReviewEntry(n, previous=previous, **about)
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"the tag of review {n} cannot be read")
    head = Head()
    if HEAD_TAG in tags:
        read = Head.from_tag(tags[HEAD_TAG])
        if read is None:
            problems.append(f"the tag {HEAD_TAG} does not name a review")
        head = read or head
    else:  # of an earlier release, which knew no chain
        head = Head(n=sum(entry.previous is None for entry in found.values()))
        head = found[head.n].head if head.n in found else head
    entries = {n: entry for n, entry in found.items() if n <= head.n}
    beyond = [entry for n, entry in found.items() if n > head.n]
    begun = beyond[0] if len(beyond) == 1 and (beyond[0].n, beyond[0].previous) == (head.n + 1, head.sha256) else None
    if beyond and begun is None:
        problems.append(f"review {beyond[-1].n} is not the one that {HEAD_TAG} names as the last")
    if (gap := next((n for n in range(1, head.n + 1) if f"{TAG}{n}" not in tags), None)) is not None:
        problems.append(f"review {gap} is missing")
    for n, entry in entries.items():
        before = entries.get(n - 1)
        linked = before is not None and before.previous is not None
        if linked if entry.previous is None else entry.previous != (before.sha256 if before is not None else ""):
            problems.append(f"review {n} does not follow review {n - 1}")
    if head.n in entries and entries[head.n].head != head:
        problems.append(f"review {head.n} is not the one that {HEAD_TAG} names")
    verdicts = {entries[head.n].verdict if head.n in entries else None, *([begun.verdict] if begun else [])}
    if not problems and tags.get(VERDICT_TAG) not in verdicts:
        problems.append(f"{VERDICT_TAG} says {tags.get(VERDICT_TAG)}, and the last review does not")
    return ReviewChain(entries, begun, tuple(problems))


def numbers(tags: Iterable[str]) -> list[int]:
    """Of the reviews that a version's tags name, from the tags' keys."""
    found = [key.removeprefix(TAG) for key in tags if key.startswith(TAG)]
    return [int(number) for number in found if re.fullmatch("[1-9][0-9]{0,8}", number)]
