"""A version that a failed command has registered is taken back, with the name that it alone had."""

import mlflow
import pytest

from mlflow_unlearn.registry.versions import withdrawn_on_failure


@pytest.fixture
def register(store):
    """Register the template's model once more."""
    uri = f"models:/{mlflow.models.get_model_info('models:/clf/1').model_id}"
    return lambda name: mlflow.register_model(uri, name)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["clf", "new"])
def test_on_failure(store, register, name, error):
    before = store.everything_registered()
    version = register(name)
    assert store.everything_registered() != before
    with pytest.raises(error, match="stop"), withdrawn_on_failure(store.client, version):
        raise error("stop")
    assert store.everything_registered() == before  # clf/1 and its name are still there
    assert store.versions() == ["1"]


def test_without_failure(store, register):
    version = register("new")
    with withdrawn_on_failure(store.client, version):
        pass
    assert store.versions("new") == ["1"]
