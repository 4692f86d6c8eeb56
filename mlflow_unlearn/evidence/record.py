"""The evidence record: what `evidence.json` holds, and everything that is derived from it.

Tags, description, model card and report are made from one `Evidence`, so they cannot disagree. Its JSON Schema is
``docs/evidence.schema.json``.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, PrivateAttr, ValidationError, model_validator

from mlflow_unlearn.console import first_line
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.provenance import Provenance
from mlflow_unlearn.metrics.collapse import stated_collapse
from mlflow_unlearn.metrics.reading import Attack, read_after, read_membership
from mlflow_unlearn.parsing import NumbersAreNumbers, load_json

FOLDER = "evidence"
FILE, REPORT, CARD, SIGNATURE = "evidence.json", "report.html", "model_card.md", "evidence.sig"
DIGEST_TAG, REPORT_TAG = "unlearn.evidence_sha256", "unlearn.report_sha256"

LIMITS = (
    "Unlearning is approximate. These figures are evidence of how far the forgotten samples still show in the model's "
    "outputs, as far as the metrics see; they do not prove that the samples are gone. The source version still holds "
    "them."
)
EXACT_LIMITS = (
    "The weights come from training without the forgotten samples, as far as `exactness` in the record covers; the "
    "figures show what such a model does, and by chance one of twenty is told apart. What is retained may resemble "
    "what is forgotten. The source version still holds the samples."
)
ATTACK = (
    "Membership: the largest difference, over all thresholds on the margin of the true class in logits, between the "
    "fractions of forgotten and of unseen test samples above it, classes matched (mia_advantage), with its null under "
    "1,000 permutations within classes; this one decides. Besides, by the entropy of the softmax output: the area "
    "under the ROC curve with a 95 % bootstrap interval (mia_auc), and as published a balanced logistic regression, "
    "retain set against test set (mia, mia_excess)."
)


class FrozenRecord(NumbersAreNumbers):
    """Base of all parts of the record: frozen, and closed against what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Person(FrozenRecord):
    """Who did something: the tracking server's user, or, where it does not authenticate, the name on the machine."""

    name: str
    authenticated: bool

    def display_name(self) -> str:
        """The name, with a note where no server has checked it."""
        return self.name if self.authenticated else f"{self.name} (not authenticated)"


class SourceRecord(FrozenRecord):
    """The version that was unlearned."""

    uri: str
    model_id: str | None
    weights_sha256: str
    evidence_sha256: str | None = Field(description="Of its own evidence.json; None for a version that has none.")
    files: dict[str, str] = Field(description="SHA-256 of every file of the model, by path, as it was read.")
    loading_ran_code: bool = Field(description="Loading it, or the gold standard beside it, ran code.")
    code: list[str] = Field([], description="What ran; releases that recorded pickles alone leave it empty.")

    @property
    def what_ran(self) -> str:
        """Which code, in a sentence, where loading ran any."""
        if not self.code:
            return "The source version is a pickle: loading it ran the code that it carries."
        return f"Loading the source version ran code: {'; '.join(self.code)}."


class ResultRecord(FrozenRecord):
    """The version that was registered."""

    name: str
    version: str
    model_id: str | None
    weights_sha256: str = Field(description="Over names, types, shapes and bytes of the state dict.")
    files: dict[str, str] = Field(description="SHA-256 of every file of the model, by path, as stored.")

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``."""
        return f"models:/{self.name}/{self.version}"


class Step(FrozenRecord):
    """One earlier unlearning on the way to the source."""

    uri: str
    source_uri: str
    method: str
    weights_sha256: str
    evidence_sha256: str
    request_ids: list[str]


class SampleSet(FrozenRecord):
    """A set of samples by size and digest."""

    samples: int
    sha256: str = Field(description="Over the sorted ids, hashed ids where the request hides them.")


class DataRecord(FrozenRecord):
    """What was read."""

    source: str
    digest: str
    transform: str
    classes: list[str]
    salt: str | None = Field(description="Of the ids in the digest of the forget set; None where they are plain.")
    forget: SampleSet
    retain: SampleSet
    val: SampleSet
    test: SampleSet
    forgotten_before: SampleSet | None = Field(description="All that earlier steps forgot and the source still has.")
    split: str | None = Field(None, description="Who decided what is trained on: the source, a list, or this tool.")
    trained_on: str | None = Field(None, description="How it is known what the source version was trained on.")


class Measured(FrozenRecord):
    """Metrics of one model: values, why others are missing, and sample sizes."""

    values: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    not_computed: dict[str, str]
    counts: dict[str, int]

    @property
    def collapsed(self) -> str | None:
        """Why the model counts as collapsed, so that only its accuracies were computed; None: it does not."""
        return stated_collapse(self.not_computed)

    @property
    def membership(self) -> str:
        """residual, over-forgotten, spread, undecided, indistinguishable, collapsed, or not measured.

        By ``mia_advantage``; by ``mia_auc`` in records of releases that did not measure that.
        """
        return self.read_by(None)

    def read_by(self, attack: Attack | None) -> str:
        """`membership` by one attack."""
        return read_membership(self.values, self.not_computed, attack)


class Matched(FrozenRecord):
    """Where the samples lie that a forget spec names: those that are forgotten, and those that are not among them."""

    trained: int = Field(description="In the training split, and the version was trained on them: these are forgotten.")
    untrained: int = Field(description="In the training split, but not trained on, or forgotten before.")
    val: int = Field(description="In the validation split, never trained on.")
    test: int = Field(description="In the test split, never trained on.")
    nowhere: int = Field(description="In no split, or no longer in the source.")

    def others(self) -> str:
        """Those that are not forgotten, in words; empty where there are none."""
        places = {
            "in the training split that it is not trained on": self.untrained,
            "in the validation split": self.val,
            "in the test split": self.test,
            "in no split": self.nowhere,
        }
        return ", ".join(f"{count} {place}" for place, count in places.items() if count)


class RequestRecord(FrozenRecord):
    """A forget request that this version, or one before it, has carried out."""

    id: str
    of: str
    run_id: str
    filed: str | None
    filed_by: Person | None
    requester: str | None
    reason: str | None
    samples: int
    manifest_sha256: str
    request_sha256: str | None = Field(None, description="Of request.json; None for a request of an earlier release.")
    carried_out_by: str
    forget: str | None = Field(
        None, description="Its spec: a class, a random draw, or a column without its value. None: another, or hidden."
    )
    matched: Matched | None = Field(None, description="What its spec named when it was filed; None: not recorded.")
    exchangeable: bool | None = Field(
        None,
        description="Whether its samples were drawn as unseen ones were, at random or a whole class; None: unknown.",
    )
    metrics: dict[str, Measured] = Field(description="By model, where several requests are told apart.")


PLACES = frozenset({"epoch", "shard", "stage"})
"""What an entry of a history says of where it stands in the training; the rest was measured there."""


class Learning(FrozenRecord):
    """What the method reported while it ran."""

    history: list[dict[str, float]]
    final: dict[str, float]
    warnings: list[str]
    seconds: float


class Histogram(FrozenRecord):
    """Shares of samples between neighbouring edges, by set and model; each row sums to 1."""

    edges: list[float]
    shares: dict[str, dict[str, list[float]]]


class ClassRow(FrozenRecord):
    """One class before and after."""

    name: str
    forget: int
    test: int
    acc_test: dict[str, float] = Field(description="By model; empty where the class has no test sample.")
    rf_jsd: dict[str, float] = Field(description="By model; empty where RF-JSD is not defined for the class.")


class Exactness(FrozenRecord):
    """Whether the weights are those of a model that never saw the forgotten samples, and as far as that is claimed."""

    kind: Literal["approximate", "exact", "exact up to numerics"] = "approximate"
    covers: str | None = Field(
        None, description="What is claimed, in a sentence; None where nothing beyond figures is."
    )
    excludes: list[str] = Field([], description="What the claim does not speak of, a sentence each.")
    retrained: dict[str, int] = Field({}, description="Shard → slices that stayed before it was trained again.")
    untouched: dict[str, str] = Field({}, description="Shard → SHA-256 of its weights, those that the source has.")
    steps: int = Field(0, description="Of the optimiser; 0 where they are not counted.")
    steps_from_scratch: int = Field(0, description="That training everything anew would take.")
    checkpoints: int = Field(0, description="That this version keeps of its training, those of its source included.")
    frozen: str | None = Field(None, description="Of an ensemble: the module before which no layer is trained.")

    @property
    def trained_without(self) -> bool:
        """Whether the weights come from training without the forgotten samples, bit by bit or up to numerics."""
        return self.kind != "approximate"


class Figures(FrozenRecord):
    """What the report draws."""

    entropy: Histogram
    confidence: Histogram
    classes: list[ClassRow]


class Wording(FrozenRecord):
    """A text that a later release would word in another way."""

    characters: int
    sha256: str

    @classmethod
    def of(cls, text: str) -> "Wording":
        """Of this text."""
        return cls(characters=len(text), sha256=sha256(text.encode()))


class RunRecord(FrozenRecord):
    """The run that made the version."""

    id: str
    config_sha256: str
    experiment_id: str | None = Field(
        None, description="Of MLflow, by which its pages are found; None in records of earlier releases."
    )


class Evidence(FrozenRecord):
    """Evidence of unlearning for one registered version."""

    schema_version: Literal[3] = 3
    created: str
    limits: str = LIMITS
    attack: str = ATTACK
    made_by: Person
    run: RunRecord
    source: SourceRecord
    result: ResultRecord
    lineage: list[Step] = Field(description="Earlier unlearnings on the way to the source, the first one first.")
    request_ids: list[str] = Field(description="What this version has carried out.")
    requests: list[RequestRecord] = Field(description="Those, and all that the lineage has carried out.")
    data: DataRecord
    provenance: Provenance
    learning: Learning
    metrics: dict[str, Measured]
    reading: str | None = Field(
        None, description="Of membership, in the light of the original's; None in records of earlier releases."
    )
    union: dict[str, Measured] = Field(description="On everything forgotten so far, where that is more than now.")
    incomplete: str | None
    exactness: Exactness = Exactness()
    audit: dict[str, JsonValue] | None = Field(None, description="What an audit found; None where there was none.")
    definitions: dict[str, int] = Field(description="Version of the definition by which each metric was computed.")
    figures: Figures
    texts: dict[str, Wording] | None = Field(
        None,
        description="What people read and this record alone makes, the version's description and its model card, in "
        "the words of the release that wrote it; None in records of earlier releases.",
    )
    public_key: str | None = Field(
        None, description="PEM, of the key that it is signed with; None if unsigned, or signed by an earlier release."
    )
    hardware: dict[str, str]
    system: dict[str, str]

    _written_as: int = PrivateAttr(3)

    @property
    def written_as(self) -> int:
        """The schema of the file that it was read from; what people read beside it was made by that schema's rules."""
        return self._written_as

    @model_validator(mode="after")
    def _measured(self) -> "Evidence":
        if missing := {"original", "unlearned"} - self.metrics.keys():
            raise ValueError(f"there are no metrics of {' and '.join(sorted(missing))}")
        return self

    @property
    def policy_schema(self) -> Literal[1, 2]:
        """Of policies that state none: 1, by ``mia_auc``, where ``mia_advantage`` was not measured yet."""
        return 2 if "mia_advantage" in self.definitions else 1

    @property
    def matched_by_class_only(self) -> bool:
        """Whether a request names samples that were not drawn as unseen ones were, so that the null lacks something."""
        return any(request.exchangeable is False for request in self.requests if request.id in self.request_ids)

    @property
    def membership(self) -> str:
        """How the membership test reads the unlearned model, in the light of the original's reading."""
        return read_after(self.metrics["unlearned"].membership, self.metrics["original"].membership)

    def chosen_on_validation(self) -> Iterator[tuple[str, str]]:
        """The figures by which the setting was chosen, each beside that on the test set, for people."""
        selection, tested = self.provenance.selection, self.metrics["unlearned"].values
        chosen_by = selection.on_validation if selection is not None else {}
        for key in ("mia_advantage", "rf_jsd", "acc_test"):
            if key in chosen_by and key in tested:
                name = key.removesuffix("_test")
                yield (
                    f"{name} where it was chosen",
                    f"{chosen_by[key]:.4f} (validation set), {tested[key]:.4f} (test set)",
                )

    def to_json(self) -> str:
        """What is stored; its SHA-256 is what the version's tag and every review name."""
        return self.model_dump_json(indent=1) + "\n"

    @property
    def sha256(self) -> str:
        """Of the stored file."""
        return sha256(self.to_json().encode())

    def tags(self) -> dict[str, str]:
        """The version's tags: what can be searched for in the registry."""
        tags = {
            "unlearn.method": self.provenance.method,
            "unlearn.source_uri": self.source.uri,
            "unlearn.request_ids": ",".join(self.request_ids),
            "unlearn.run_id": self.run.id,
            "unlearn.weights_sha256": self.result.weights_sha256,
            **(self.provenance.selection.tags() if self.provenance.selection is not None else {}),
        }
        if self.provenance.prefix is not None:
            tags["unlearn.prefix"] = self.provenance.prefix
        if self.learning.warnings:
            tags["unlearn.warning"] = "; ".join(self.learning.warnings)
        if self.incomplete is not None:
            tags["unlearn.incomplete"] = self.incomplete
        return tags | metric_tags(self.metrics["unlearned"].values)


def read_evidence(folder: Path) -> tuple[Evidence, str]:
    """The record in a downloaded model folder, and the SHA-256 of the file as it is stored.

    Raises:
        FileNotFoundError: there is none.
        UnlearnError: it cannot be read.
    """
    content = (folder / FOLDER / FILE).read_bytes()
    try:
        stored = load_json(content)
        written_as = stored.get("schema_version") if isinstance(stored, dict) else None
        evidence = Evidence.model_validate_json(json.dumps(_from_schema_2(stored)) if written_as == 2 else content)
    except ValidationError as error:
        first = error.errors()[0]
        where, reason = ".".join(map(str, first["loc"])) or "the file", first["msg"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        where, reason = "the file", first_line(error)
    else:
        evidence._written_as = 2 if written_as == 2 else 3
        return evidence, sha256(content)
    raise UnlearnError(f"{FILE} cannot be read ({where}: {reason}): it was edited, or written by another release")


def _from_schema_2(stored: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 2, where hyperparameters, seed, prefix and study shared one mapping, as one of schema 3."""
    stored = dict(stored)
    method = dict(stored.pop("method"))
    name, recipe = method.pop("name"), method.pop("hyperparameters")
    provenance = Provenance.from_recipe(name, recipe, stored.pop("selection"))
    measured = stored["metrics"].values()
    keys = {key for one in measured for key in (*one["values"], *one["not_computed"])}
    return stored | {
        "schema_version": 3,
        "provenance": provenance.model_dump(mode="json"),
        "learning": method,
        "definitions": dict.fromkeys(sorted(keys), 1),
    }


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def json_schema() -> str:
    """The text of ``docs/evidence.schema.json``."""
    schema = Evidence.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


METRIC_TAG = "unlearn.metric."


def metric_tags(metrics: Mapping[str, float]) -> dict[str, str]:
    """Metrics as tags ``unlearn.metric.<key>`` of a version, by which the registry can be searched."""
    return {METRIC_TAG + key: repr(float(value)) for key, value in metrics.items()}
