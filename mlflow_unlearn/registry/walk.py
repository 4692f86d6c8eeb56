"""Everything that a registry and its tracking server hold, in as few requests as MLflow has pages for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from mlflow.entities import LoggedModel, Run, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_unlearn.errors import NoAnswer
from mlflow_unlearn.registry.clients import experiment_ids, pages

PAGE = 5000
"""Of versions and LoggedModels; of registered models and runs a server gives at most a thousand or some thousands."""


@dataclass(frozen=True)
class Registry:
    """What was found; with its aliases, which a search for versions leaves out.

    Attributes:
        versions: all, by name and number.
        models: every LoggedModel that is not deleted.
        unanswered: why the rest is missing; None where nothing is.
        experiments: ids of all that this user may read.
    """

    versions: Sequence[ModelVersion]
    models: Sequence[LoggedModel]
    unanswered: str | None = None
    experiments: Sequence[str] = ()

    @cached_property
    def by_uri(self) -> Mapping[str, ModelVersion]:
        """``models:/NAME/VERSION`` → version."""
        return {uri_of(version): version for version in self.versions}

    @cached_property
    def by_model_id(self) -> Mapping[str, LoggedModel]:
        """LoggedModels by their ids."""
        return {model.model_id: model for model in self.models}

    def logged_as(self, version: ModelVersion) -> LoggedModel | None:
        """The LoggedModel with a version's files, through the versions that it is a copy of; None without."""
        seen, source = set[str](), str(version.source or "")
        while source in self.by_uri and source not in seen:
            seen.add(source)
            source = str(self.by_uri[source].source or "")
        return self.by_model_id.get(source.removeprefix("models:/")) or self.by_model_id.get(version.model_id or "")


def uri_of(version: ModelVersion) -> str:
    """``models:/NAME/VERSION``."""
    return f"models:/{version.name}/{version.version}"


def walk(client: MlflowClient) -> Registry:
    """All versions and LoggedModels; what was found before a server stopped to answer."""
    versions: list[ModelVersion] = []
    aliases: dict[tuple[str, str], list[str]] = {}
    models: list[LoggedModel] = []
    unanswered = None
    ids: list[str] = []
    try:
        order = ["name ASC", "version_number ASC"]  # by their last change pages would shift under other commands
        page = partial(client.search_model_versions, max_results=PAGE, order_by=order)
        versions.extend(pages(lambda token: page(page_token=token)))
        for registered in pages(lambda token: client.search_registered_models(max_results=1000, page_token=token)):
            for alias, number in registered.aliases.items():
                aliases.setdefault((registered.name, str(number)), []).append(alias)
        ids = experiment_ids(client)
        models.extend(pages(lambda token: client.search_logged_models(ids, max_results=PAGE, page_token=token)))
    except NoAnswer as error:
        unanswered = str(error)
    except MlflowException as error:
        if not versions or error.error_code not in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"):
            raise
        unanswered = str(error)
    for version in versions:
        version.aliases = aliases.get((version.name, str(version.version)), [])
    return Registry(versions, models, unanswered, ids)


def runs_where(client: MlflowClient, condition: str) -> Iterator[Run]:
    """Runs of all experiments, deleted ones too."""
    yield from runs_of(client, experiment_ids(client), condition)


def runs_of(client: MlflowClient, experiments: Sequence[str], condition: str) -> Iterator[Run]:
    """Runs of these experiments, deleted ones too."""
    search = partial(client.search_runs, list(experiments), condition, run_view_type=ViewType.ALL, max_results=PAGE)
    yield from pages(lambda token: search(page_token=token))
