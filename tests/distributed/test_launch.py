"""Ranks that torchrun's agent starts for us: real processes, which meet through gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import free_port

from mlflow_unlearn.distributed.launch import NODES_VARIABLE, Nodes, launch, should_launch
from mlflow_unlearn.errors import UnlearnError, UnlearnWarning

HERE = Path(__file__).parents[1]
LAUNCH = """
import sys
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.distributed.launch import launch

processes, patience, *arguments = sys.argv[1:]
try:
    code = launch(arguments, int(processes), module="ranks", patience=int(patience))
except UnlearnError as error:
    print(f"Error: {error}", file=sys.stderr)
    code = error.exit_code
sys.exit(code)
"""


def start(what, folder, *arguments, processes=2, patience=100, nodes=None, **variables) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "TMPDIR": str(folder)} | variables
    if nodes is not None:
        env[NODES_VARIABLE] = json.dumps(nodes)
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(processes), str(patience), what, str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def end(process) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    return process.returncode, out, err


def wait_for(*paths):
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"{paths} did not appear"
        time.sleep(0.05)


def alive(folder) -> list[str]:
    """Ranks that have outlived their launcher, by the process ids that they have written."""
    ids = [path.read_text() for path in folder.glob("pid-*")]
    assert ids
    return [pid for pid in ids if Path(f"/proc/{pid}").exists()]


# One machine


@pytest.mark.slow
def test_ranks_meet_and_rank_0_alone_is_heard(tmp_path, monkeypatch):
    """Sum of 1 + 2 over two ranks; arguments arrive letter by letter, log files are gone after."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    given = ["--reason", "costs $$5, ${local_rank} or $local_rank", "", "--params", '{"a": "b c"}']
    code, out, err = end(start("sum", tmp_path, *given))
    assert code == 0, err
    [line] = out.splitlines()
    cores = len(os.sched_getaffinity(0))
    assert json.loads(line) == {
        "total": 3.0,
        "arguments": given,
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": str(max(1, cores // 2)),
        "MASTER_ADDR": "localhost",
    }
    assert "noise of rank 0" in err and "noise of rank 1" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pid-0", "pid-1"]


@pytest.mark.nightly
def test_a_rank_that_refuses_gives_its_code_and_its_sentence(tmp_path):
    """Rank 0, which waits for it in an all-reduce, has ended first or not: 2 it is, and no usage, no log."""
    code, out, err = end(start("refuse", tmp_path))
    assert code == 2
    assert err.endswith("\nError: no such sample 'x':\nuse another\n")
    assert "Usage" not in err and "elastic" not in err
    assert alive(tmp_path) == []


@pytest.mark.slow
def test_a_bug_in_a_rank_is_shown(tmp_path):
    code, out, err = end(start("bug", tmp_path))
    assert code == 1
    assert "Error: rank 1 of 2 ended with exit code 1; it printed:" in err
    assert "ZeroDivisionError: a bug in the last rank" in err
    assert alive(tmp_path) == []


@pytest.mark.nightly
def test_a_killed_rank_ends_all_and_is_named(tmp_path):
    code, out, err = end(start("kill", tmp_path, processes=3))
    assert code == 1
    assert "Error: rank 2 of 3 was killed by SIGKILL (out of memory?)" in err
    assert alive(tmp_path) == []


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_reaches_every_rank(tmp_path, sent, code):
    launcher = start("late", tmp_path)
    wait_for(tmp_path / "pid-0", tmp_path / "pid-1")
    launcher.send_signal(sent)
    assert end(launcher)[0] == code
    assert [(tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1)] == [sent.name] * 2
    assert alive(tmp_path) == []


@pytest.mark.nightly
def test_an_ignored_signal_stays_ignored(tmp_path):
    """As under nohup: the terminal's end is not the ranks' end."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        launcher = start("late", tmp_path)
    finally:
        signal.signal(signal.SIGHUP, previous)
    wait_for(tmp_path / "pid-0", tmp_path / "pid-1")
    launcher.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.wait(1)
    launcher.terminate()
    assert end(launcher)[0] == 143


# Several machines


def node(rank, port, **more):
    return {"nnodes": 2, "node_rank": rank, "rdzv_endpoint": f"127.0.0.1:{port}", **more}


@pytest.mark.nightly
def test_two_nodes_meet(tmp_path):
    """2 + 1 ranks: 1 + 2 + 3. Node 1 starts first and waits. The user's own number of threads stays."""
    port = free_port()
    second = start("sum", tmp_path / "b", processes=1, nodes=node(1, port))
    first = start("sum", tmp_path / "a", processes=1, nodes=node(0, port, nproc_per_node=2), OMP_NUM_THREADS="3")
    (code, out, err), (code_b, out_b, err_b) = end(first), end(second)
    assert (code, code_b) == (0, 0), err + err_b
    seen = json.loads(out)
    assert (seen["total"], seen["OMP_NUM_THREADS"]) == (6.0, "3")
    assert (out_b, err_b) == ("", "")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["pid-2"]


@pytest.mark.nightly
def test_a_failure_on_one_node_ends_the_other(tmp_path):
    port = free_port()
    first, second = (start("refuse", tmp_path, processes=1, nodes=node(rank, port)) for rank in (0, 1))
    (code, _, _), (code_b, _, err_b) = end(first), end(second)
    assert (code, code_b) == (1, 2)
    assert "Error: no such sample 'x'" in err_b
    assert alive(tmp_path) == []


@pytest.mark.nightly
@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_that_stays_alone_says_so(tmp_path, rank):
    code, _, err = end(start("sum", tmp_path, processes=1, patience=3, nodes=node(rank, free_port())))
    assert code == 2
    assert err.count("\n") == 1 and f"Error: node {rank} of 2 did not meet the others at 127.0.0.1:" in err


@pytest.mark.slow
def test_waiting_for_nodes_can_be_stopped(tmp_path):
    """The wait is C++, which Python's own handlers do not interrupt."""
    waiting = start("sum", tmp_path, processes=1, patience=90, nodes=node(0, free_port()))
    wait_for(tmp_path)
    while not list(tmp_path.glob("mlflow-unlearn-ranks-*")):
        time.sleep(0.05)
    time.sleep(1)
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(10) == -signal.SIGINT
    end(waiting)


# What is refused, and what is not


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ('{"nnode": 2}', "unknown key 'nnode': the keys are nnodes, node_rank, rdzv_endpoint, nproc_per_node"),
        ('{"nproc_per_node": 0}', "nproc_per_node = 0 is not usable: input should be greater than or equal to 1"),
        ('{"nnodes": 2, "node_rank": 1}', "nnodes = 2 needs rdzv_endpoint too"),
        ('{"nnodes": 2, "rdzv_endpoint": "a:1"}', "nnodes = 2 needs node_rank too"),
        ('{"nnodes": 2, "node_rank": 2, "rdzv_endpoint": "a:1"}', "node_rank = 2 does not fit nnodes = 2"),
        ('{"nnodes": 2, "node_rank": 0, "rdzv_endpoint": "a"}', "rdzv_endpoint = 'a' is not usable: give HOST:PORT"),
        ('{"nnodes": 2, "node_rank": 0, "rdzv_endpoint": "a:99999"}', "rdzv_endpoint = 'a:99999' is not usable"),
        ("2 nodes", "the value = '2 nodes' is not usable: invalid JSON"),
        ("[1]", "the value = [1] is not usable: input should be an object"),
    ],
)
def test_nodes_that_make_no_sense(monkeypatch, value, sentence):
    monkeypatch.setenv(NODES_VARIABLE, value)
    with pytest.raises(UnlearnError) as error:
        launch(["sum"], module="ranks")
    assert str(error.value).startswith(f"{NODES_VARIABLE}: {sentence}")
    assert error.value.exit_code == 2


def test_two_answers_are_refused(monkeypatch):
    monkeypatch.setenv(NODES_VARIABLE, '{"nproc_per_node": 2}')
    with pytest.raises(UnlearnError, match="--processes 3 is not MLFLOW_UNLEARN_NODES's nproc_per_node = 2"):
        launch(["sum"], 3, module="ranks")


def test_more_ranks_than_devices_are_refused():
    with pytest.raises(UnlearnError, match="99 processes need 99 CUDA devices, and this machine has"):
        launch(["sum"], 99, device="cuda", module="ranks")
    with pytest.raises(UnlearnError, match="device=cuda:0 is one device for 2 processes: use device=cuda"):
        launch(["sum"], 2, device="cuda:0", module="ranks")


@pytest.mark.slow
def test_more_ranks_than_cores_are_only_warned_of(monkeypatch):
    """In this process, so that the warning can be seen; its signal handlers are as before."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.warns(UnlearnWarning, match="2 processes share 1 cores"):
        assert launch([], 2, device="cpu", module="platform") == 0
    assert [signal.getsignal(number) for number in numbers] == before
    assert "OMP_NUM_THREADS" not in os.environ


def test_who_launches(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv(NODES_VARIABLE, raising=False)
    assert not should_launch(1)
    assert should_launch(2)
    monkeypatch.setenv(NODES_VARIABLE, "{}")
    assert should_launch(1)
    monkeypatch.setenv("RANK", "0")
    assert not should_launch(2)


def test_importing_it_does_not_wait_for_torch():
    code = "import sys, mlflow_unlearn.distributed.launch; print({'torch', 'mlflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_nodes_survive_json():
    given = {"nnodes": 2, "node_rank": 0, "rdzv_endpoint": "[::1]:29500"}
    assert json.loads(Nodes.read(given).to_json()) == given
