"""Everything that a registry holds, in few requests."""

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from mlflow_unlearn.errors import NoAnswer
from mlflow_unlearn.registry import walk as walking
from mlflow_unlearn.registry.clients import pages
from mlflow_unlearn.registry.walk import runs_where, uri_of, walk


def test_versions_come_with_their_aliases_and_models(chain):
    chain.client.set_registered_model_alias("clf", "champion", "3")
    registry = walk(chain.client)
    assert [uri_of(v) for v in registry.versions] == [f"models:/clf/{n}" for n in (1, 2, 3, 4)]
    assert [v.aliases for v in registry.versions] == [[], [], ["champion"], []]
    models = [registry.logged_as(version) for version in registry.versions]
    assert len({model.model_id for model in models}) == 4 and registry.unanswered is None
    chain.client.delete_registered_model_alias("clf", "champion")


def test_a_copy_has_the_model_of_what_it_was_copied_from(chain):
    chain.client.copy_model_version("models:/clf/2", "once")
    chain.client.copy_model_version("models:/once/1", "twice")
    registry = walk(chain.client)
    original, copy = (registry.logged_as(registry.by_uri[uri]) for uri in ("models:/clf/2", "models:/twice/1"))
    assert original is copy is not None
    for name in ("once", "twice"):
        chain.client.delete_registered_model(name)


def test_all_pages_are_read(monkeypatch):
    items = list(range(7))

    def page(token):
        start = int(token or 0)
        return PagedList(items[start : start + 3], str(start + 3) if start + 3 < 7 else None)

    assert list(pages(page)) == items


class StopsToAnswer:
    """A client whose server goes away before it has named the LoggedModels."""

    def __init__(self, client, error):
        self._client, self._error = client, error

    def __getattr__(self, name):
        return getattr(self._client, name)

    def search_logged_models(self, *_, **__):
        raise self._error


def test_what_was_found_before_a_server_went_away_is_kept(chain, monkeypatch):
    registry = walk(StopsToAnswer(chain.client, NoAnswer("connection refused")))
    assert len(registry.versions) == 4 and registry.unanswered == "connection refused"


def test_what_a_server_refuses_is_an_error(chain):
    with pytest.raises(MlflowException, match="forbidden"):
        walk(StopsToAnswer(chain.client, MlflowException("forbidden", error_code=7)))


def test_runs_of_all_experiments(chain, monkeypatch):
    monkeypatch.setattr(walking, "PAGE", 2)
    tagged = list(runs_where(chain.client, "tags.`unlearn.request_id` LIKE '%'"))
    assert len({run.info.run_id for run in tagged}) == 3
