"""What MLflow's client does not offer by itself."""

from functools import partial
from typing import Any

from mlflow.entities import Experiment, ViewType
from mlflow.tracking import MlflowClient

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.network import persistently


def registry_client(client: MlflowClient) -> Any:
    """The registry's own client: `MlflowClient` asks with a second request, each time, whether a name is a prompt's."""
    return getattr(client, "_get_registry_client", lambda: client)()


def quoted(text: str) -> str:
    """A text as a value in the filter of a search, where no character is escaped.

    Raises:
        UnlearnError: it has both kinds of quotation marks, so that nothing can be searched by it.
    """
    if "'" not in text:
        return f"'{text}'"
    if '"' in text:
        raise UnlearnError(f"MLflow cannot search for {text!r}, which has both kinds of quotation marks: rename it")
    return f'"{text}"'


def experiments(client: MlflowClient) -> list[Experiment]:
    """All that this user may read, deleted ones too: a search comes in pages."""
    found: list[Experiment] = []
    token = None
    while True:
        page = persistently(partial(client.search_experiments, view_type=ViewType.ALL, page_token=token))
        found += page
        if not (token := page.token):
            return found


def experiment_ids(client: MlflowClient) -> list[str]:
    """Of all experiments that this user may read."""
    return [experiment.experiment_id for experiment in experiments(client)]
