"""One command, several processes: rank 0 alone talks to MLflow, and all end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ranks_below
from stores import FORGET, shell

UNLEARN = ("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET, "--processes", "2", "--device", "cpu")
LONG = (*UNLEARN, "--params", '{"epochs": 1000}')


@pytest.fixture
def training(store):
    """A command whose two ranks are training, and the run that it has made."""
    known = {run.info.run_id for run in store.runs()}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow_unlearn", *LONG],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while True:
        new = [run for run in store.runs() if run.info.run_id not in known and run.data.metrics]
        if new:
            break
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield process, new[0].info.run_id
    process.kill()


@pytest.mark.nightly
def test_rank_0_alone_registers_and_makes_a_run(store):
    runs = len(store.runs())
    done = shell(*UNLEARN, "--params", '{"epochs": 2}')
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Registered clf version 2 from models:/clf/1.") == 1
    assert "Warning" not in done.stderr
    assert store.versions() == ["1", "2"]
    # Its own, and the one that the forget set is filed with.
    made = [run for run in store.runs() if run.data.tags.get("unlearn.command") == "unlearn"]
    assert len(made) == 1 and made[0].info.status == "FINISHED" and len(store.runs()) - runs <= 2
    assert made[0].data.params["unlearn.processes"] == "2"


@pytest.mark.nightly
@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_rank_that_is_killed_ends_the_others_and_fails_the_run(store, training, victim):
    process, run_id = training
    before = store.everything_registered()
    ranks = ranks_below(process)
    assert ranks.keys() == {"0", "1"}
    os.kill(ranks[victim], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert ("Error: another process of this command has ended" in err) == (victim == "1")
    assert f"Error: rank {victim} of 2 was killed by SIGKILL" in err
    assert "Traceback" not in err
    assert store.client.get_run(run_id).info.status == "FAILED"
    assert store.everything_registered() == before
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())


@pytest.mark.nightly
@pytest.mark.parametrize(("sent", "code", "says"), [(signal.SIGTERM, 143, "Terminated"), (signal.SIGINT, 130, "Inter")])
def test_a_signal_ends_all_and_the_run_is_killed(store, training, sent, code, says):
    process, run_id = training
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert says in err and "Traceback" not in err
    assert store.client.get_run(run_id).info.status == "KILLED"
