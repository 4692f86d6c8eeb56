"""What MLflow's client does not offer by itself."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import mlflow
from mlflow.entities import Experiment, ViewType
from mlflow.tracking import MlflowClient

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.network import awaited, persistently


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


def pages(page: Callable[[str | None], Any]) -> Iterator[Any]:
    """The items of all pages."""
    token = None
    while True:
        items = _answered(partial(page, token))
        yield from items
        token = items.token
        if not token:
            return


def _answered(step: Callable[[], Any]) -> Any:
    """A page; only of a server it can be waited for in another thread: a database in memory has one for each."""
    if not mlflow.get_registry_uri().startswith("http"):
        return persistently(step)
    return persistently(partial(awaited, step))


def experiments(client: MlflowClient) -> list[Experiment]:
    """All that this user may read, deleted ones too."""
    search = partial(client.search_experiments, view_type=ViewType.ALL)
    return list(pages(lambda token: search(page_token=token)))


def experiment_ids(client: MlflowClient) -> list[str]:
    """Of all experiments that this user may read."""
    return [experiment.experiment_id for experiment in experiments(client)]
