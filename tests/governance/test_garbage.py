"""The entry of a LoggedModel: that of the retired one goes, and no other."""

import mlflow
import pytest

from mlflow_unlearn.governance.garbage import delete_entry, gc_command
from mlflow_unlearn.governance.location import locate


def entries(client) -> int:
    with client._tracking_client.store.engine.begin() as connection:
        return int(connection.exec_driver_sql("SELECT COUNT(*) FROM logged_models").scalar())


@pytest.mark.parametrize("what", ["deleted", "not deleted", "with files elsewhere"])
def test_which_entry_is_deleted(empty_store, tmp_path, what):
    client = empty_store.client
    experiment = client.create_experiment("own", (tmp_path / "runs").as_uri())
    model, other = (client.create_logged_model(experiment, name="model", tags={"a": "b"}) for _ in range(2))
    client.delete_logged_model(other.model_id)
    if what != "not deleted":
        client.delete_logged_model(model.model_id)
    location = locate((other if what == "with files elsewhere" else model).artifact_location)
    assert delete_entry(client, model.model_id, location) is (what == "deleted")
    assert entries(client) == (1 if what == "deleted" else 2)
    if what == "deleted":
        assert delete_entry(client, model.model_id, location), "it is gone, by whichever command"


def test_the_command_has_no_password(monkeypatch):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "postgresql://me:secret@host/db?sslmode=require")
    command = gc_command("m-1")
    assert "secret" not in command and command.startswith("mlflow gc --backend-store-uri 'postgresql://me:***@host/db")
    assert command.endswith("--logged-model-ids m-1")
