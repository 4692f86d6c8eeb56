"""What MLflow's client does not offer by itself."""

import time
from functools import partial

import mlflow
import pytest
from mlflow.entities import ViewType

from mlflow_unlearn.errors import NoAnswer
from mlflow_unlearn.registry import network
from mlflow_unlearn.registry.clients import experiment_ids, experiments


class Client:
    """One whose search for experiments is another one."""

    def __init__(self, search_experiments):
        self.search_experiments = search_experiments


def test_experiments_of_all_pages(empty_store):
    client = empty_store.client
    made = {client.create_experiment(f"e{number}") for number in range(3)}
    client.delete_experiment(min(made))
    one_by_one = Client(partial(client.search_experiments, max_results=1))
    assert experiment_ids(one_by_one) == [e.experiment_id for e in client.search_experiments(ViewType.ALL)]
    assert made < {*experiment_ids(one_by_one)}


def test_a_page_of_experiments_is_not_waited_for_without_end(empty_store, monkeypatch):
    """A server may send its answer byte by byte."""
    monkeypatch.setattr(network, "LONGEST_ANSWER", 0.05)
    monkeypatch.setattr(mlflow, "get_registry_uri", lambda: "http://localhost:1")
    with pytest.raises(NoAnswer, match=r"not complete after 0\.05 seconds"):
        experiments(Client(lambda **_: time.sleep(1)))
