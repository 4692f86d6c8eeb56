"""One command of a kind at a time in an experiment."""

import mlflow
import pytest

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.lock import LOCK_TAG, experiment_lock


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


def test_what_a_dead_process_left_running_is_closed(empty_store, capsys):
    with mlflow.start_run() as run, experiment_lock("compare", run.info.run_id):
        experiment, holder = run.info.experiment_id, mlflow.get_run(run.info.run_id).data.tags[LOCK_TAG]
    dead = empty_store.client.create_run(experiment, tags={LOCK_TAG: holder}).info.run_id
    child = empty_store.client.create_run(experiment, tags={"mlflow.parentRunId": dead}).info.run_id
    other = empty_store.client.create_run(experiment, tags={LOCK_TAG: "elsewhere"}).info.run_id
    with mlflow.start_run() as run, experiment_lock("compare", run.info.run_id):
        states = {run_id: mlflow.get_run(run_id).info.status for run_id in (dead, child, other)}
    assert states == {dead: "KILLED", child: "KILLED", other: "RUNNING"}
    assert f"run {dead} had died and is closed as KILLED" in " ".join(capsys.readouterr().err.split())
