"""What programs are told of a version that a command has registered: parts of its evidence, or of its tags."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.evidence.provenance import Provenance
from mlflow_unlearn.evidence.record import Evidence, Exactness, FrozenRecord, Measured
from mlflow_unlearn.spelling import command_line


class Registered(FrozenRecord):
    """A new version."""

    name: str
    version: str
    uri: str = Field(description="models:/NAME/VERSION.")
    model_id: str | None = Field(description="Of its LoggedModel.")
    weights_sha256: str = Field(description="Over names, types, shapes and bytes of the state dict.")
    source_uri: str | None = Field(None, description="The version that was unlearned; null for one that was trained.")
    request_ids: list[str] = Field([], description="Of the forget requests that it has fulfilled.")
    provenance: Provenance | None = Field(
        None, description="Method and hyperparameters; null if only its tags are known."
    )
    metrics: dict[str, Measured] = Field(
        {}, description="By model: original, unlearned and gold, or trained; empty if only its tags are known."
    )
    reading: str | None = Field(None, description="Of the membership test, in a word.")
    warnings: list[str] = Field([], description="Of the method.")
    incomplete: str | None = Field(None, description="Why a class counts as not forgotten; null where none does.")
    exactness: Exactness | None = Field(
        None, description="What may be claimed beyond the figures; null if only its tags are known, or it was trained."
    )

    @classmethod
    def of(cls, evidence: Evidence) -> "Registered":
        """What was unlearned."""
        result = evidence.result
        return cls(
            name=result.name,
            version=result.version,
            uri=result.uri,
            model_id=result.model_id,
            weights_sha256=result.weights_sha256,
            source_uri=evidence.source.uri,
            request_ids=evidence.request_ids,
            provenance=evidence.provenance,
            metrics=evidence.metrics,
            reading=evidence.reading,
            warnings=evidence.learning.warnings,
            incomplete=evidence.incomplete,
            exactness=evidence.exactness,
        )

    @classmethod
    def by_tags(cls, name: str, version: str, model_id: str | None, tags: Mapping[str, str]) -> "Registered":
        """What was registered before, as far as its tags say.

        Args:
            name: of the registered model.
            version: its number.
            model_id: of its LoggedModel.
            tags: of the version.
        """
        return cls(
            name=name,
            version=version,
            uri=f"models:/{name}/{version}",
            model_id=model_id,
            weights_sha256=tags.get("unlearn.weights_sha256", ""),
            source_uri=tags.get("unlearn.source_uri"),
            request_ids=list(filter(None, tags.get("unlearn.request_ids", "").split(","))),
            warnings=list(filter(None, [tags.get("unlearn.warning")])),
            incomplete=tags.get("unlearn.incomplete"),
        )


class Registering(CommandResult):
    """Base of what commands return that register a version."""

    run_id: str = Field(description="Of the command's MLflow run.")
    registered: Registered | None = Field(None, description="Null where nothing was, or was to be, registered.")

    def next_step(self, options: Any) -> str | None:
        """To judge what was unlearned."""
        if self.registered is None or self.registered.source_uri is None:
            return None
        policy = getattr(options, "policy", None)
        return command_line("review", "--model-uri", self.registered.uri, *(("--policy", policy) if policy else ()))
