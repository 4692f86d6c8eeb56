"""Commands as processes: how they end, and that a later listener knows of one that still runs."""

import os
import subprocess
import sys
import threading
import time

import pytest
from listeners import wait_for

from mlflow_unlearn.events.child import alive, run, wait_until_ended

WAITING = """
import sys
from mlflow_unlearn.events.child import run
from pathlib import Path
log = Path(sys.argv[1])
run(["data", "--data", "python:slow:data"], log=log, folder=log.parent, environment=__import__("os").environ,
    stopping=lambda: False)
"""
SLOW = """
import time
def data():
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.mark.nightly
def test_a_command_ends_with_its_code_and_its_sentence(tmp_path):
    log = tmp_path / "log"
    environment = dict(os.environ)

    def ended(*arguments):
        return run(arguments, log=log, folder=tmp_path, environment=environment, stopping=lambda: False)

    assert ended("data", "--data", "digits") == (0, "")
    before = log.read_text()
    code, sentence = ended("data", "--data", "nothing:x")
    assert code == 2 and sentence.startswith("unknown data source 'nothing:x'")
    assert len(before) > 100 and log.read_text().startswith(before)  # added to, not overwritten
    assert not alive(log)


@pytest.mark.nightly
def test_the_folder_of_the_rules_hides_no_module_of_python_s(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('not the one')")
    (tmp_path / "own.py").write_text("def data():\n    raise ValueError('found')")

    def ended(source):
        arguments = ["data", "--data", source]
        return run(
            arguments, log=tmp_path / "log", folder=tmp_path, environment=dict(os.environ), stopping=lambda: False
        )

    assert ended("digits") == (0, "")
    code, sentence = ended("python:own:data")
    assert code and "found" in sentence


@pytest.mark.slow
def test_a_command_that_outlives_its_listener_is_waited_for(tmp_path, capsys):
    (tmp_path / "slow.py").write_text(SLOW)
    log = tmp_path / "log"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    assert not alive(log)
    listener = subprocess.Popen([sys.executable, "-c", WAITING, str(log)], env=environment, start_new_session=True)
    wait_for(lambda: log.exists() and "begun" in log.read_text())
    [command] = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _parent(pid) == listener.pid]
    listener.kill()
    listener.wait()
    assert alive(log)
    assert not wait_until_ended(log, lambda: True)  # but not once we are to stop
    waited = threading.Thread(target=wait_until_ended, args=(log, lambda: False))
    waited.start()
    time.sleep(0.3)
    assert waited.is_alive()
    assert f"started and that still runs: see {log}." in capsys.readouterr().err
    os.kill(command, 9)
    waited.join(timeout=10)
    assert not waited.is_alive() and not alive(log)


def _parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return None


@pytest.mark.slow
def test_a_command_is_terminated_when_its_listener_is_to_stop(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    log = tmp_path / "log"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    code, _ = run(
        ["data", "--data", "python:slow:data"],
        log=log,
        folder=tmp_path,
        environment=environment,
        stopping=lambda: log.exists() and "begun" in log.read_text(),
    )
    assert code == 143 and "Terminated" in log.read_text()


@pytest.mark.slow
def test_one_that_does_not_end_by_sigterm_is_killed(tmp_path, monkeypatch):
    """Such as one whose library waits for a thread of its own."""
    monkeypatch.setattr("mlflow_unlearn.events.child.GRACE", 0.5)
    (tmp_path / "deaf.py").write_text(
        "import signal, time\n\n\ndef splits():\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    open('begun', 'w').close()\n    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    code, sentence = run(
        ["data", "--data", "python:deaf:splits"],
        log=tmp_path / "log",
        folder=tmp_path,
        environment=environment,
        stopping=(tmp_path / "begun").exists,
    )
    assert code == -9 and sentence == "killed by SIGKILL"
