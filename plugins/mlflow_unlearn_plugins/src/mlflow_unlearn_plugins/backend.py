"""The project backend ``torchrun``: ``mlflow run … --backend torchrun``, on one machine or on several.

It runs an entry point as MLflow's local backend does, with processes and machines in MLFLOW_UNLEARN_NODES; the command
starts its ranks itself. MLflow does not wait for plugins: `run` returns when the entry point has ended.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_EXPERIMENT_ID, MLFLOW_RUN_ID, MLFLOW_TRACKING_URI
from mlflow.exceptions import ExecutionException
from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.submitted_run import LocalSubmittedRun
from mlflow.projects.utils import (
    PROJECT_BUILD_IMAGE,
    PROJECT_DOCKER_ARGS,
    PROJECT_DOCKER_AUTH,
    PROJECT_ENV_MANAGER,
    PROJECT_STORAGE_DIR,
    PROJECT_SYNCHRONOUS,
    fetch_and_validate_project,
    get_entry_point_command,
    get_or_create_run,
    load_project,
)
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_BACKEND

from mlflow_unlearn.distributed.launch import NODES_VARIABLE, Nodes
from mlflow_unlearn.errors import UnlearnError

RENDEZVOUS_TAG = "unlearn.rendezvous"
_MLFLOWS_OWN = {
    PROJECT_BUILD_IMAGE,
    PROJECT_DOCKER_ARGS,
    PROJECT_DOCKER_AUTH,
    PROJECT_ENV_MANAGER,
    PROJECT_STORAGE_DIR,
    PROJECT_SYNCHRONOUS,
}


class TorchrunBackend(AbstractBackend):  # type: ignore[misc]
    """Runs one entry point in several processes; on several machines each runs the same command with its node_rank."""

    def run(
        self,
        project_uri: str,
        entry_point: str,
        params: dict[str, str],
        version: str | None,
        backend_config: dict[str, object],
        tracking_uri: str,
        experiment_id: str,
    ) -> LocalSubmittedRun:
        """Run the entry point to its end; node 0 alone makes the MLflow run and ends it.

        Args:
            project_uri: of the MLflow Project.
            entry_point: its name.
            params: of the entry point.
            version: of the project, for Git.
            backend_config: processes and machines, and keys of MLflow's own.
            tracking_uri: of the store.
            experiment_id: in which the run is made.

        Raises:
            ExecutionException: the configuration is not usable, or the entry point failed.
        """
        nodes = _nodes(backend_config)
        work_dir = fetch_and_validate_project(project_uri, version, entry_point, params)
        project = load_project(work_dir)
        if project.docker_env:
            raise ExecutionException("--backend torchrun runs no docker_env: start `mlflow run` inside the container")
        [command] = get_entry_point_command(project, entry_point, params, backend_config.get(PROJECT_STORAGE_DIR))
        from mlflow_unlearn.registry.uris import absolute_uri

        # The command runs in another folder.
        environment = os.environ | {
            MLFLOW_TRACKING_URI.name: absolute_uri(tracking_uri),
            MLFLOW_EXPERIMENT_ID.name: str(experiment_id),
            NODES_VARIABLE: nodes.to_json(),
        }
        environment.pop(MLFLOW_RUN_ID.name, None)
        client, run = MlflowClient(), None
        with _sigterm_raises():
            if nodes.node_rank == 0:
                run = get_or_create_run(None, project_uri, experiment_id, work_dir, version, entry_point, params)
                environment[MLFLOW_RUN_ID.name] = run.info.run_id
                # MLflow sets it too, but only in the end and if all went well.
                client.set_tag(run.info.run_id, MLFLOW_PROJECT_BACKEND, "torchrun")
                client.set_tag(run.info.run_id, RENDEZVOUS_TAG, nodes.rdzv_endpoint or "none")
            submitted = None
            try:
                shell = ["bash", "-c", command]
                process = subprocess.Popen(shell, cwd=work_dir, env=environment, start_new_session=True)
                submitted = LocalSubmittedRun(run and run.info.run_id, process)
                succeeded = submitted.wait()
            except BaseException as error:
                if submitted is not None:
                    submitted.cancel()
                _end_run(client, run, "FAILED" if isinstance(error, Exception) else "KILLED")
                raise
        _end_run(client, run, "FINISHED" if succeeded else "FAILED")
        if not succeeded:
            which = f"run {run.info.run_id}" if run else f"node {nodes.node_rank}"
            raise ExecutionException(f"{which} failed: its command ended with exit code {process.returncode}")
        return submitted if run else LocalSubmittedRun(_run_of_node_0(client, nodes, experiment_id), process)


def _nodes(backend_config: dict[str, object]) -> Nodes:
    """The user's part of the configuration, checked; MLflow adds its own keys to it."""
    manager = backend_config.get(PROJECT_ENV_MANAGER)
    if manager not in (None, "local"):
        raise ExecutionException(
            f"--env-manager {manager} does not go with --backend torchrun, which runs in the environment that "
            "`mlflow run` is in: activate the right one and use --env-manager local"
        )
    own = {key: value for key, value in backend_config.items() if key not in _MLFLOWS_OWN}
    try:
        return Nodes.read(own, where="--backend-config")
    except UnlearnError as error:
        raise ExecutionException(str(error)) from error


def _end_run(client: MlflowClient, run: Run | None, status: str) -> None:
    """In the place of the status that the command has left; only node 0 has a run."""
    if run is not None:
        client.set_terminated(run.info.run_id, status)


def _run_of_node_0(client: MlflowClient, nodes: Nodes, experiment_id: str) -> str:
    """MLflow wants a run to tag; on other nodes that is node 0's, which is there by now, since the nodes have met."""
    found = client.search_runs([experiment_id], f"tags.`{RENDEZVOUS_TAG}` = '{nodes.rdzv_endpoint}'", max_results=1)
    if not found:
        raise ExecutionException(
            f"the command of node {nodes.node_rank} succeeded, but node 0's run is not in experiment {experiment_id} "
            f"of {client.tracking_uri}: give every node the same MLFLOW_TRACKING_URI and experiment"
        )
    return str(found[0].info.run_id)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends this process by an exception, as Ctrl-C does, so that the command and its run are ended too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
