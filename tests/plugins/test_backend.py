"""`mlflow run --backend torchrun` with the plugin installed as a user would, on a small project of its own."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import ExecutionException
from mlflow.projects.utils import load_project
from servers import free_port

from mlflow_unlearn.distributed.launch import Nodes

ROOT = Path(__file__).parents[2]
MLPROJECT = """
name: sums
entry_points:
  main:
    parameters:
      what: {type: string, default: sum}
      folder: string
      processes: {type: string, default: "1"}
    command: python -m entry {processes} {what} {folder}
"""
ENTRY = '''
"""As mlflow_unlearn does it: the first process starts the ranks, rank 0 alone knows of MLflow."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from mlflow_unlearn.distributed.launch import launch, should_launch

processes, what, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
if should_launch(processes):
    sys.exit(launch(sys.argv[1:], processes, device="cpu", module="entry"))

import torch
from torch import distributed

rank = int(os.environ["RANK"])
distributed.init_process_group("gloo")
try:
    total = torch.tensor(float(rank + 1))
    distributed.all_reduce(total)
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    if what == "wait":
        time.sleep(100)
    if what == "kill":
        time.sleep(100) if rank else os.kill(os.getpid(), signal.SIGKILL)
    if what == "refuse":
        print("Error: nothing of the kind", file=sys.stderr)
        sys.exit(2)
    if rank == 0:
        import mlflow

        environment = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
        (folder / "environment.json").write_text(json.dumps(environment))
        with mlflow.start_run():
            mlflow.log_metric("total", total.item())
finally:
    distributed.destroy_process_group()
'''


@pytest.fixture
def project(tmp_path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "MLproject").write_text(MLPROJECT)
    (folder / "entry.py").write_text(ENTRY)
    return folder


@pytest.fixture
def mlflow_run(empty_store, installed, project, tmp_path):
    """Start `mlflow run` of the project; its working directory is not the project's."""
    started = []
    (tmp_path / "out").mkdir()

    def start(what: str, config: object, *more: str, **variables: str) -> subprocess.Popen[str]:
        path = [str(installed), str(ROOT), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "run", str(project), "--backend", "torchrun"),
                *("--backend-config", json.dumps(config), "-P", f"what={what}", "-P", f"folder={tmp_path / 'out'}"),
                *more,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join(path),
                "OMP_NUM_THREADS": "1",
            }
            | variables,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process) -> tuple[int, str]:
    _, err = process.communicate(timeout=150)
    return process.returncode, err


def ranks_alive(folder) -> list[str]:
    ids = [path.read_text() for path in folder.glob("pid-*")]
    assert ids
    return [pid for pid in ids if Path(f"/proc/{pid}").exists()]


@pytest.fixture
def run_here(empty_store, installed, project, tmp_path, monkeypatch):
    """`mlflow.run` of the project in this process, of which the ranks are children."""
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "out").mkdir()

    def run(what: str, config: object, **more: object) -> None:
        parameters = {"what": what, "folder": str(tmp_path / "out")}
        mlflow.run(str(project), backend="torchrun", backend_config=config, parameters=parameters, **more)

    return run


@pytest.mark.nightly
def test_two_processes_in_one_run(empty_store, run_here, tmp_path, monkeypatch):
    """1 + 2 over two ranks; one run, MLflow's own, which rank 0 has resumed. A relative store is found from there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert Path.cwd() == empty_store.folder
    run_here("sum", {"nproc_per_node": 2}, run_name="mine", env_manager="local")
    [run] = empty_store.runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "mine"
    assert run.data.metrics == {"total": 3.0}
    assert run.data.params["what"] == "sum"
    assert run.data.tags["mlflow.project.backend"] == "torchrun"
    assert run.data.tags["mlflow.project.entryPoint"] == "main"
    seen = json.loads((tmp_path / "out" / "environment.json").read_text())
    assert seen["MLFLOW_RUN_ID"] == run.info.run_id
    assert seen["MLFLOW_EXPERIMENT_ID"] == run.info.experiment_id
    assert seen["MLFLOW_TRACKING_URI"] == empty_store.uri
    assert json.loads(seen["MLFLOW_UNLEARN_NODES"]) == {"nproc_per_node": 2}


@pytest.mark.nightly
def test_two_nodes_make_one_run(empty_store, mlflow_run):
    """The same command twice; node 1 returns node 0's run and changes nothing of it."""
    shared = {"nnodes": 2, "nproc_per_node": 1, "rdzv_endpoint": f"127.0.0.1:{free_port()}"}
    second = mlflow_run("sum", shared | {"node_rank": 1}, MLFLOW_RUN_ID="left over")
    first = mlflow_run("sum", shared | {"node_rank": 0})
    (code, err), (code_b, err_b) = ended(first), ended(second)
    assert (code, code_b) == (0, 0), err + err_b
    [run] = empty_store.runs()
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"total": 3.0})


@pytest.mark.nightly
def test_without_a_configuration_the_parameter_counts(empty_store, mlflow_run):
    code, err = ended(mlflow_run("sum", {}, "-P", "processes=2", "--env-manager", "local"))
    assert code == 0, err
    assert empty_store.runs()[0].data.metrics == {"total": 3.0}


@pytest.mark.slow
def test_a_refusal_fails_the_run(empty_store, run_here, tmp_path, capfd):
    with pytest.raises(ExecutionException) as error:
        run_here("refuse", {"nproc_per_node": 2}, env_manager="local")
    assert "Error: nothing of the kind" in capfd.readouterr().err
    [run] = empty_store.runs()
    assert run.info.status == "FAILED"
    assert f"run {run.info.run_id} failed: its command ended with exit code 2" in str(error.value)
    assert ranks_alive(tmp_path / "out") == []


@pytest.mark.nightly
def test_a_killed_rank_fails_the_run(empty_store, mlflow_run, tmp_path):
    """Though rank 0 was killed, and no other one could end its run."""
    code, err = ended(mlflow_run("kill", {"nproc_per_node": 2}))
    assert code == 1
    assert "rank 0 of 2 was killed by SIGKILL" in err
    [run] = empty_store.runs()
    assert run.info.status == "FAILED"
    assert f"run {run.info.run_id} failed: its command ended with exit code 1" in err
    assert ranks_alive(tmp_path / "out") == []


@pytest.mark.nightly
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_stopping_it_stops_the_ranks(empty_store, mlflow_run, tmp_path, sent):
    process = mlflow_run("wait", {"nproc_per_node": 2})
    deadline = time.monotonic() + 90
    while len(list((tmp_path / "out").glob("pid-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(sent)
    code, err = ended(process)
    assert code != 0
    [run] = empty_store.runs()
    assert run.info.status == "KILLED"
    assert ranks_alive(tmp_path / "out") == []


@pytest.fixture
def refused(empty_store, installed, project, tmp_path, monkeypatch):
    """The sentence with which `mlflow.run` refuses a configuration; no run may be left."""
    monkeypatch.syspath_prepend(str(installed))

    def sentence(config, **more) -> str:
        with pytest.raises(ExecutionException) as error:
            mlflow.run(
                str(project), backend="torchrun", backend_config=config, parameters={"folder": str(tmp_path)}, **more
            )
        assert empty_store.runs() == []
        return str(error.value)

    return sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"nproc": 2}, "unknown key 'nproc': the keys are nnodes, node_rank, rdzv_endpoint, nproc_per_node"),
        ({"nproc_per_node": 0}, "nproc_per_node = 0 is not usable: input should be greater than or equal to 1"),
        ({"nproc_per_node": "all"}, "nproc_per_node = 'all' is not usable: input should be a valid integer"),
        ({"nnodes": 2}, "nnodes = 2 needs node_rank and rdzv_endpoint too: node_rank is 0 on the first node"),
        ({"nnodes": 2, "node_rank": 1}, "nnodes = 2 needs rdzv_endpoint too"),
        ({"nnodes": 2, "node_rank": 0, "rdzv_endpoint": "first"}, "rdzv_endpoint = 'first' is not usable"),
    ],
)
def test_a_configuration_that_makes_no_sense(refused, config, sentence):
    assert refused(config).startswith(f"--backend-config: {sentence}")


def test_it_builds_no_environment(refused, project):
    assert re.match("--env-manager conda does not go with --backend torchrun", refused({}, env_manager="conda"))
    with (project / "MLproject").open("a") as file:
        file.write("docker_env: {image: any}\n")
    assert refused({}).startswith("--backend torchrun runs no docker_env")


# docs/scale.md

SCALE = (ROOT / "docs" / "scale.md").read_text()


def block(kind: str, first_line: str) -> str:
    return re.search(rf"^```{kind}\n({re.escape(first_line)}.*?)^```", SCALE, re.DOTALL | re.MULTILINE)[1]


def test_the_configurations_in_the_docs_are_valid():
    found = re.findall(r"'(\{\"nnodes.*?\})'", SCALE)
    assert [Nodes.read(text).node_rank for text in found] == [0, 1, 0]


def test_the_docs_batch_job_numbers_its_nodes(tmp_path):
    """Only Slurm is played: two tasks, on hosts `a` and `b`."""
    (tmp_path / "job").write_text(block("bash", "#!/bin/bash"))
    programs = {
        "scontrol": """printf 'a\\nb\\n'""",
        "srun": 'shift; SLURM_NODEID=0 "$@"; SLURM_NODEID=1 "$@"',
        "mlflow-unlearn": """printf '%s\\0' "$MLFLOW_UNLEARN_NODES" """,
    }
    for name, code in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "[a-b]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7012345"}
    env = os.environ | slurm | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "job"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    nodes = [Nodes.read(text) for text in done.stdout.split("\0")[:-1]]
    assert nodes == [Nodes(nnodes=2, node_rank=rank, rdzv_endpoint="a:22345", nproc_per_node=4) for rank in (0, 1)]


def test_the_docs_kubernetes_project_needs_no_quotes(tmp_path):
    """MLflow would hand them to the container."""
    (tmp_path / "MLproject").write_text(block("yaml", "name: mlflow-unlearn"))
    project = load_project(str(tmp_path))
    command = project.get_entry_point("unlearn").compute_command({"model_uri": "models:/clf@best"}, None)
    assert command == "python -m mlflow_unlearn unlearn --model-uri models:/clf@best --processes 1"
    assert [shlex.quote(word) for word in shlex.split(command)] == command.split()
    assert project.docker_env["image"]
