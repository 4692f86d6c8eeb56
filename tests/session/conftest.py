"""The template's version, opened once for the tests that only look at it."""

import pytest
from stores import FORGET, copied

from mlflow_unlearn import config
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.session.session import Session, open_session


@pytest.fixture(scope="session")
def options() -> config.Unlearn:
    return config.Unlearn(model_uri="models:/clf/1", forget=FORGET, device="cpu")


@pytest.fixture(scope="session")
def opened(template, tmp_path_factory, options) -> Session:
    """Its run has ended; `store` has the same version."""
    with copied(template, tmp_path_factory.mktemp("opened")), tracking.run("unlearn", options):
        return open_session(tracking.client(), options, tmp_path_factory.mktemp("files"), progress=False)
