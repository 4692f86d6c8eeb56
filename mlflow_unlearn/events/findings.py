"""What the registry says of a job: whether a step is done already, what came of it, who caused the event."""

import re
from collections.abc import Collection, Iterator
from functools import partial

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.events.queue import Job
from mlflow_unlearn.events.rules import ListenFile
from mlflow_unlearn.events.webhook import RegistryEvent, pending
from mlflow_unlearn.governance.integrity import PROMOTION_TAG
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry.clients import experiment_ids, pages, quoted, registry_client
from mlflow_unlearn.registry.forget_requests import TAG, ForgetRequest
from mlflow_unlearn.registry.network import persistently
from mlflow_unlearn.registry.versions import REGISTERING_TAG, version_there

STEP_TAG = "unlearn.listen.step"
"""Of every run that a listener has caused, from its first moment: QUEUE/JOB/PLACE."""


def check_registry(client: MlflowClient) -> None:
    """Refuse a registry that sends no webhooks.

    Raises:
        UnlearnError: it keeps its versions in files.
    """
    try:
        client.list_webhooks(max_results=1)
    except NotImplementedError as error:
        raise UnlearnError(_NO_WEBHOOKS) from error
    except MlflowException as error:
        if error.error_code == "NOT_IMPLEMENTED" or "does not support list_webhooks" in str(error):
            raise UnlearnError(_NO_WEBHOOKS) from error
        if error.error_code != "PERMISSION_DENIED":  # listing them may be for administrators alone
            raise


_NO_WEBHOOKS = (
    "this registry keeps its versions in files and sends no webhooks: set MLFLOW_TRACKING_URI to an MLflow server, 3.3 "
    "or later, over a SQL database"
)


def fulfilled(client: MlflowClient, job: Job, names: Collection[str]) -> str | None:
    """The version that has fulfilled all requests of a job; None while one is pending, or its version not complete.

    Anyone who may edit tags can write that a request is done, and by what: that version is asked as well.

    Args:
        client: of the registry.
        job: of the requests.
        names: of the registered models to which the version may belong.

    Raises:
        UnlearnError: a request is not on the version any more, or no such version has fulfilled it.
    """
    tags = persistently(lambda: client.get_model_version(job.model, job.version)).tags
    done = set()
    for detail in job.details:
        if TAG + detail not in tags:
            raise UnlearnError(f"{job.uri} no longer has the request {detail}: its tag was removed")
        request = ForgetRequest.from_tag(TAG + detail, tags[TAG + detail])
        if request.pending:
            return None
        if request.state == "withdrawn":
            raise UnlearnError(f"the request {detail} of {job.uri} was {request.withdrawn}")
        versions = filter(None, (version_there(client, uri) for uri in reversed(request.done_by)))
        by = [version for version in versions if version.name in names and detail in _requests_of(version)]
        if not by:
            said = ", ".join(map(repr, request.done_by))
            raise UnlearnError(
                f"the request {detail} of {job.uri} was reportedly carried out by {said}, which is not a version of "
                f"{' or '.join(sorted(names))} that has done so: see `verify`"
            )
        if REGISTERING_TAG in by[0].tags:
            return None
        done.add(_uri(by[0]))
    return max(done, key=lambda uri: int(uri.rpartition("/")[2]))


def runs_of(client: MlflowClient, step: str, command: str) -> list[Run]:
    """The runs of a step, the newest first; those inside them are left out."""
    where = f"tags.`{STEP_TAG}` = {quoted(step)} and tags.`unlearn.command` = {quoted(command)}"
    ids = persistently(lambda: experiment_ids(client))
    found: list[Run] = persistently(lambda: client.search_runs(ids, where, order_by=["attributes.start_time DESC"]))
    return found


def registered_by(
    client: MlflowClient, runs: list[Run], names: Collection[str], requests: Collection[str] = ()
) -> str | None:
    """The complete version that one of these runs has registered.

    Args:
        client: of the registry.
        runs: of the step.
        names: of the registered models to which it may belong.
        requests: of which it must have carried out one, where there are any.
    """
    for run in runs:
        where = f"run_id = {quoted(run.info.run_id)}"
        for version in persistently(lambda where=where: client.search_model_versions(where)):  # type: ignore[misc]
            if version.name not in names or REGISTERING_TAG in version.tags:
                continue  # anyone may register another one that names the run
            if not requests or _requests_of(version) & {*requests}:
                return _uri(version)
    return None


def _requests_of(version: ModelVersion) -> set[str]:
    """Those that it has carried out."""
    return {*version.tags.get("unlearn.request_ids", "").split(",")}


def _uri(version: ModelVersion) -> str:
    return f"models:/{version.name}/{version.version}"


def caused_by(client: MlflowClient, job: Job) -> str | None:
    """The step that is said to have registered the version of a job, by its run; None for anybody else's."""
    return _step_of(client, persistently(lambda: client.get_model_version(job.model, job.version)).run_id)


def promoted_by(client: MlflowClient, job: Job) -> str | None:
    """The step that is said to have set the alias of a job, by the run of the promotion; None for anybody else's."""
    tags = persistently(lambda: client.get_model_version(job.model, job.version)).tags
    try:
        run_id = load_json(tags[PROMOTION_TAG + job.details[0]])["run_id"]
    except (ValueError, KeyError, TypeError):  # not by `promote`, or the tag was edited
        return None
    return _step_of(client, run_id)


def _step_of(client: MlflowClient, run_id: object) -> str | None:
    if not isinstance(run_id, str) or not run_id:
        return None
    try:
        run = persistently(lambda: client.get_run(run_id))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    step = run.data.tags.get(STEP_TAG, "")
    return step if re.fullmatch(r"[\w-]+/\d+/\d+", step) else None


def pending_requests(client: MlflowClient, file: ListenFile) -> Iterator[RegistryEvent]:
    """Every pending request of a version for which there is a rule: events may have come while nobody listened."""
    registry = registry_client(client)
    for model in pages(lambda token: client.search_registered_models(page_token=token)):
        if file.rule(model.name, "request", "") is None:
            continue
        search = partial(registry.search_model_versions, f"name = {quoted(model.name)}")
        for version in pages(lambda token, search=search: search(page_token=token)):  # type: ignore[misc]
            number = str(version.version)
            for key, value in version.tags.items():
                request = pending(model.name, number, key, value)
                if request is not None:
                    yield RegistryEvent("request", request.id, model.name, number)
