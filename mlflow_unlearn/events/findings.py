"""What the registry says of a job: whether a step is done already, what came of it, who caused the event."""

from collections.abc import Iterator
from functools import partial

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.events.queue import Job
from mlflow_unlearn.events.rules import ListenFile
from mlflow_unlearn.events.webhook import RegistryEvent, pending
from mlflow_unlearn.registry.clients import experiment_ids, quoted, registry_client
from mlflow_unlearn.registry.forget_requests import TAG, ForgetRequest
from mlflow_unlearn.registry.network import persistently
from mlflow_unlearn.registry.walk import pages

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


def fulfilled(client: MlflowClient, job: Job) -> str | None:
    """The version that has fulfilled all requests of a job; None while one is pending.

    Raises:
        UnlearnError: a request is not on the version any more.
    """
    tags = persistently(lambda: client.get_model_version(job.model, job.version)).tags
    done = set()
    for detail in job.details:
        if TAG + detail not in tags:
            raise UnlearnError(f"{job.uri} has no request {detail} any more: its tag was removed")
        request = ForgetRequest.from_tag(TAG + detail, tags[TAG + detail])
        if request.pending:
            return None
        done.add(request.done_by[-1])
    return max(done, key=lambda uri: int(uri.rpartition("/")[2]))


def runs_of(client: MlflowClient, step: str, command: str) -> list[Run]:
    """The runs of a step, the newest first; those inside them are left out."""
    where = f"tags.`{STEP_TAG}` = {quoted(step)} and tags.`unlearn.command` = {quoted(command)}"
    ids = persistently(lambda: experiment_ids(client))
    found: list[Run] = persistently(lambda: client.search_runs(ids, where, order_by=["attributes.start_time DESC"]))
    return found


def registered_by(client: MlflowClient, runs: list[Run]) -> str | None:
    """The version that one of these runs has registered."""
    for run in runs:
        where = f"run_id = {quoted(run.info.run_id)}"
        for version in persistently(lambda where=where: client.search_model_versions(where)):  # type: ignore[misc]
            return f"models:/{version.name}/{version.version}"
    return None


def caused_by(client: MlflowClient, job: Job) -> str | None:
    """The step of a listener that has registered the version of a job; None for anybody else's."""
    run_id = persistently(lambda: client.get_model_version(job.model, job.version)).run_id
    if not run_id:
        return None
    try:
        run = persistently(lambda: client.get_run(run_id))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    step: str | None = run.data.tags.get(STEP_TAG)
    return step


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
