"""One command of a kind at a time in an experiment."""

import mlflow
import pytest

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.lock import experiment_lock


def test_a_second_command_is_refused_until_the_first_has_ended(empty_store):
    with mlflow.start_run() as run:
        with experiment_lock("compare", run.info.run_id):
            with pytest.raises(UnlearnError, match="another compare is running in experiment"):
                with experiment_lock("compare", run.info.run_id):
                    pytest.fail("two at a time")
            with experiment_lock("tune", run.info.run_id):
                pass
        with experiment_lock("compare", run.info.run_id):
            pass
