"""`promote`: move an alias to a version that has passed its review; every other move of it becomes visible."""

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_model_alias_name, _validate_model_alias_name_reserved
from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import note, say
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.evidence.policy import read_policy
from mlflow_unlearn.evidence.record import FOLDER, FrozenRecord
from mlflow_unlearn.governance.approval import approver_of, check_approver, open_requests, reviewed_by
from mlflow_unlearn.governance.exactness import with_claim
from mlflow_unlearn.governance.integrity import PROMOTION, PROMOTION_TAG, examine
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.artifacts import store_text
from mlflow_unlearn.registry.clients import registry_client
from mlflow_unlearn.registry.lock import model_lock
from mlflow_unlearn.registry.network import persistently
from mlflow_unlearn.registry.versions import retired
from mlflow_unlearn.spelling import command_line, spelled


class PromotionRecord(FrozenRecord):
    """One move of an alias, as the run and the version's tag have it."""

    uri: str
    alias: str
    weights_sha256: str
    evidence_sha256: str
    review: int | None = Field(description="The number of the review that it is based on.")
    by: str = Field(description="Who approved.")
    at: str
    override: str | None = Field(description="The reason given, where there were objections.")
    objections: list[str]
    before: str | None = Field(description="The version that had the alias; null: none had.")
    run_id: str


class PromoteResult(CommandResult):
    """Whether the alias was moved, and what spoke against it."""

    run_id: str
    uri: str
    alias: str
    objections: list[str] = Field(description="Why it may not be promoted, or may only with override.")
    promotion: PromotionRecord | None = Field(None, description="Null where it was refused.")

    def next_step(self, options: Any) -> str | None:
        """To see what still holds the samples, and can be retired now."""
        return command_line("exposure", "--model-uri", self.uri, remark="what still holds the samples")


def promote(options: config.Promote) -> PromoteResult:
    """Move the alias, if the version is intact, reviewed and passed, and no request on its source is open.

    Raises:
        Refused: one of these does not hold, or the approver may not approve.
    """
    with tracking.prepared("promote", options) as run, tracking.scratch() as folder:
        _check_alias(options.alias)
        read_policy(options.policy)  # a bad one is refused before anything is loaded
        client = tracking.client()
        examined = with_claim(client, examine(client, options.model_uri, folder, key=options.key), folder)
        run_id = run.begin(examined.registered)
        examined.refuse_differences("cannot be promoted")
        policy = None
        if options.policy is not None:
            policy = read_policy(options.policy, schema=examined.evidence.policy_schema)
        approver = approver_of(options.approver)
        name, version = examined.registered.name, str(examined.registered.version)
        with model_lock(client, name) as (lock, registered):
            # Somebody may have reviewed or retired it while it was examined.
            examined = replace(examined, registered=client.get_model_version(name, version))
            if (how := retired(examined.registered)) is not None:
                raise Refused(f"{examined.uri} cannot be promoted: it was {how}")
            reviewed, policies, objections = reviewed_by(examined, policy)
            if reviewed is None and policy is None and options.override is not None:
                raise Refused(
                    f"{examined.uri} cannot be promoted: {objections[0]}; to override that, give {spelled('policy')}, "
                    "which says who may approve"
                )
            objections += open_requests(client, examined.evidence)
            if objections and options.override is None:
                refused = PromoteResult(run_id=run_id, uri=examined.uri, alias=options.alias, objections=objections)
                raise Refused(f"{examined.uri} cannot be promoted: {'; '.join(objections)}", refused)
            for each in policies:
                check_approver(approver, examined.evidence, each)
            for objection in objections:
                note(f"Note: promoted despite this: {objection}")
            aliases = {alias: str(number) for alias, number in registered.aliases.items()}
            key, before = PROMOTION_TAG + options.alias, aliases.get(options.alias)
            came_from = f"models:/{name}/{before}" if before is not None else None
            if before == version:  # once more, or after it was interrupted
                with suppress(ValueError, KeyError, TypeError):  # not by `promote`, or the tag was edited
                    came_from = load_json(examined.registered.tags[key])["before"]
            promotion = PromotionRecord(
                uri=examined.uri,
                alias=options.alias,
                weights_sha256=examined.evidence.result.weights_sha256,
                evidence_sha256=examined.sha256,
                review=reviewed.n if reviewed is not None else None,
                by=approver.display_name(),
                at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                override=options.override if objections else None,
                objections=objections,
                before=came_from,
                run_id=run_id,
            )
            record = promotion.model_dump()
            store_text(run_id, json.dumps(record, indent=2), f"{FOLDER}/{PROMOTION}")
            registry = registry_client(client)
            lock.check()
            # The tag first: an alias without it was moved by hand, and a tag whose run did not finish was interrupted.
            persistently(lambda: registry.set_model_version_tag(name, version, key, json.dumps(record)))
            persistently(lambda: registry.set_registered_model_alias(name, options.alias, version))
        moved = f" (it was version {before})" if before not in (None, version) else ""
        say(f"{name}@{options.alias} is now version {version}{moved}, approved by {approver.display_name()}.")
        return PromoteResult(
            run_id=run_id, uri=examined.uri, alias=options.alias, objections=objections, promotion=promotion
        )


def _check_alias(alias: str) -> None:
    try:
        _validate_model_alias_name(alias)
        _validate_model_alias_name_reserved(alias)
    except MlflowException as error:
        raise UnlearnError(f"{spelled('alias', alias)} cannot be set: {error.message}") from error
