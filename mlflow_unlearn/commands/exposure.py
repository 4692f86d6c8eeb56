"""`exposure`: where forgotten data still lives, as far as the tracking server and this machine can tell."""

from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.evidence.audit import REFERENCE_FILE
from mlflow_unlearn.evidence.record import FrozenRecord
from mlflow_unlearn.governance.holders import (
    ENDPOINT_TAG,
    ExposureState,
    cached,
    checkpoints,
    forgotten_by,
    logged_models,
    references,
    unregistered,
    version_exposures,
)
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.versions import registered_version
from mlflow_unlearn.report import table

_PRINTED = {"contains": "holds it", "unlearned": "forgot it"}
"""State of a version → what the table says; other states say it themselves."""


class ExposedVersion(FrozenRecord):
    """A registered version, and whether it was trained on the samples."""

    uri: str
    state: ExposureState
    why: str = Field(description="How that is known.")
    aliases: list[str]
    endpoints: dict[str, str] = Field(description="Name → URL, by its tags.")


class ExposureResult(CommandResult):
    """Where the data lives, as far as can be seen from here."""

    uri: str
    request_ids: list[str] = Field(description="Of the requests that name the data.")
    versions: list[ExposedVersion] = Field(description="Of every registered model.")
    others: dict[str, list[str]] = Field(description="What else may hold it, by kind: runs, models, files.")


def exposure(options: config.Exposure) -> ExposureResult:
    """Print every version, LoggedModel, run and cache entry that may hold what the version's requests name."""
    with tracking.read_only_client() as client:
        target = registered_version(client, options.model_uri)
        forgotten = forgotten_by(client, target)
        models = logged_models(client)
        found = version_exposures(client, forgotten, models)
        holders = [entry for entry in found if entry.state == "contains"]
        others = {
            "LoggedModels that were never registered": [f"models:/{m}" for m in unregistered(models, found)],
            "runs that logged these models": sorted({p.registered.run_id for p in holders if p.registered.run_id}),
            "outputs of references that audits have trained": [
                f"runs:/{run.info.run_id}/{REFERENCE_FILE}" for run in references(client, holders)
            ],
            "outputs in this machine's cache": [str(path) for path in cached(holders)],
            "checkpoints of commands that were killed on this machine": [
                str(path) for path in checkpoints(holders, of_train=True)
            ],
        }
        table.show_exposure(
            [f"{request.id} ({request.samples} samples of {request.of})" for request in forgotten],
            [
                (
                    entry.uri,
                    _PRINTED.get(entry.state, entry.state),
                    ", ".join(entry.registered.aliases) or "–",
                    ", ".join(f"{name} ({url})" for name, url in entry.endpoints.items()) or "–",
                    entry.why,
                )
                for entry in found
                if entry.state != "never contained"
            ],
            others,
        )
    print(
        "Not seen from here: downloads, backups, and copies on other machines and servers; endpoints are known by the "
        f"tag {ENDPOINT_TAG}NAME alone."
    )
    return ExposureResult(
        uri=f"models:/{target.name}/{target.version}",
        request_ids=[request.id for request in forgotten],
        versions=[
            ExposedVersion(
                uri=entry.uri,
                state=entry.state,
                why=entry.why,
                aliases=list(entry.registered.aliases),
                endpoints=entry.endpoints,
            )
            for entry in found
        ],
        others=others,
    )
