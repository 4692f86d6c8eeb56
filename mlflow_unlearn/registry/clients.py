"""What MLflow's client does not offer by itself."""

from typing import Any

from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient


def registry_client(client: MlflowClient) -> Any:
    """The registry's own client: `MlflowClient` asks with a second request, each time, whether a name is a prompt's."""
    return getattr(client, "_get_registry_client", lambda: client)()


def experiment_ids(client: MlflowClient) -> list[str]:
    """Of all experiments that this user may read, deleted ones too: a search comes in pages."""
    found: list[str] = []
    token = None
    while True:
        page = client.search_experiments(view_type=ViewType.ALL, page_token=token)
        found += [experiment.experiment_id for experiment in page]
        if not (token := page.token):
            return found
