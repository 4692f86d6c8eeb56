"""What MLflow keeps of a deleted LoggedModel: an entry in its database, and how that goes."""

import shlex
from typing import Any

import mlflow
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_unlearn.console import hidden_password
from mlflow_unlearn.governance.location import Location, locate, relation
from mlflow_unlearn.registry.clients import experiments


def delete_entry(client: MlflowClient, model_id: str, location: Location) -> bool:
    """Delete the entry of a deleted LoggedModel for good, where this process has the database itself.

    Not by `mlflow gc`, which whatever ids it is given removes every run and experiment that is marked as deleted. This
    is the call by which it removes one LoggedModel, for this one.

    Args:
        client: of the tracking store.
        model_id: the LoggedModel.
        location: where its files were; one with files elsewhere is left alone.

    Returns:
        Whether nothing is left of the entry.
    """
    store: Any = getattr(getattr(client, "_tracking_client", None), "store", None)
    if not (hasattr(store, "_hard_delete_logged_model") and hasattr(store, "engine")):
        return False
    try:
        entry = store.get_logged_model(model_id, allow_deleted=True)
        of_this = relation(locate(entry.artifact_location.rstrip("/")), location) == "same"
        if not of_this or model_id not in store._get_deleted_logged_models():
            return False
        store._hard_delete_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # else that has been done
            raise
    return True


def gc_command(model_id: str) -> str:
    """What removes the entry on the server, without passwords."""
    here = hidden_password(mlflow.get_tracking_uri())
    database = "DATABASE" if here.startswith("http") else here
    options = ("--backend-store-uri", database, "--tracking-uri", here, "--logged-model-ids", model_id)
    return shlex.join(("mlflow", "gc", *options))


def gc_warning(client: MlflowClient) -> str:
    """What the command would remove besides: with ids of LoggedModels alone it takes all runs and experiments."""
    found = experiments(client)
    deleted = sum(experiment.lifecycle_stage == "deleted" for experiment in found)
    runs = client.search_runs([e.experiment_id for e in found], run_view_type=ViewType.DELETED_ONLY, max_results=1000)
    more = "at least " if runs.token else ""
    return (
        "`mlflow gc` removes with it every run and experiment that is marked as deleted "
        f"(runs: {more}{len(runs)}, experiments: {deleted})"
    )
