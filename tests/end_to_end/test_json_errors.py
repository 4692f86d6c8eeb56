"""`--format json` where a command fails, is stopped or crashes: still one document, with the exit code."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from answers import V1, answer, checked
from chains import QUICK
from processes import ranks_below
from servers import free_port
from stores import DATA, FORGET, Outcome, call, shell

JSON = ("--format", "json")


def refused(*arguments: str) -> dict:
    """Bad input that comes before any schema: what of the answer is the same for all commands."""
    done = call(*arguments)
    answer = json.loads(done.out)
    assert (done.code, answer["exit_code"], answer["error"]["kind"]) == (2, 2, "bad input")
    assert answer["error"]["message"] in " ".join(done.err.split())  # people read the same
    return answer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("data", *JSON), "Missing option '--data'"),
        (("data", "--data", DATA, "--bogus", "1", *JSON), "No such option '--bogus'"),
        (("data", "--data", DATA, "--format=json", "extra"), "'extra' is given beside --data"),
        (("train", "--data", DATA, "--name", "x", "--epochs", "0", *JSON), "--epochs 0 is not usable"),
        (("data", "--format", "table", "--data", "no such", *JSON), "no such"),
        (("data", "--data", "folder:/tmp/\udcff", *JSON), "folder"),  # a name that is not UTF-8
    ],
)
def test_bad_input(arguments, words):
    answer = refused(*arguments)
    assert words in answer["error"]["message"] and answer["command"] == arguments[0]


def test_a_command_that_there_is_not():
    assert refused("unlaern", *JSON)["command"] == ""


def test_the_last_format_counts():
    assert not call("data", *JSON, "--data", "no such", "--format", "table").out


@pytest.mark.parametrize("command", ["unlearn", "data"])
def test_help_is_for_people(command):
    done = call(command, *JSON, "--help")
    assert done.code == 0 and done.out.startswith("Usage:")


def test_an_unknown_model(store):
    failed = answer("unlearn", "--model-uri", "models:/none/1", code=2)
    assert failed["error"]["kind"] == "bad input" and "none" in failed["error"]["message"]


def test_a_server_that_is_away(empty_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hidden@127.0.0.1:{free_port()}")
    done = call("request", *V1, "--forget", FORGET, *JSON)
    failed = checked(done, "request", code=2)
    assert "cannot be reached" in failed["error"]["message"] and "hidden" not in done.out + done.err


def test_nothing_to_unlearn_takes_the_attempts_along(store):
    """Of until=pass none passes within the budget: what was tried is known."""
    (store.folder / "strict.yaml").write_text("rules: [{metric: acc_test, at_least: 1.0}]\nmembership: null\n")
    failed = answer(
        *("unlearn", *V1, "--forget", FORGET, "--until", "pass", "--policy", "strict.yaml"),
        *("--rungs", '[{"method": "finetune", "params": {"epochs": 1}}]'),
        code=3,
    )
    [attempt] = failed["result"]["attempts"]
    assert failed["error"]["kind"] == "nothing to unlearn" and failed["result"]["registered"] is None
    assert attempt["method"] == "finetune" and not attempt["passed"] and attempt["outcome"]
    assert store.client.get_run(attempt["run_id"]) and store.versions() == ["1"]


@pytest.mark.slow
def test_what_was_done_before_a_kill(empty_store):
    """The next command, in whatever format, names the version; the fields of the result are the same."""
    arguments = ("train", "--data", DATA, "--name", "new", "--architecture", "toy:trainable", "--epochs", "1")
    child = os.fork()
    if not child:
        from mlflow_unlearn.commands import train

        train.complete = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        call(*arguments)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    done = answer(*arguments)
    assert done["result"]["registered"]["uri"] == "models:/new/1" and done["result"]["samples"] is None
    assert "had done so before it was killed" in done["note"] and empty_store.versions("new") == ["1"]


def test_a_crash():
    code = "from mlflow_unlearn import cli; cli.command_function = lambda name: 1 / 0; cli.main(['data', *{}])"
    arguments = ["--data", "digits", *JSON]
    ran = subprocess.run([sys.executable, "-c", code.format(arguments)], capture_output=True, text=True)
    crashed = checked(Outcome(ran.returncode, ran.stdout, ran.stderr), "data", code=1)
    assert crashed["error"] == {"kind": "crashed", "message": "ZeroDivisionError: division by zero"}
    assert "Traceback" in ran.stderr


@pytest.mark.slow
def test_without_an_encoding_for_what_is_said():
    ran = shell("methods", *JSON, env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    methods = checked(Outcome(ran.returncode, ran.stdout, ran.stderr), "methods")["result"]["methods"]
    assert "methods" in ran.stderr or "lotus" in ran.stderr
    assert methods.keys() >= {"lotus"}


def start(*arguments: str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow_unlearn", *arguments, *JSON],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def until(happens, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not happens():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


LONG = ("unlearn", *V1, "--forget", FORGET, "--params", '{"epochs": 1000, "lr": 1e-9}')


def training(store, known: int):
    runs = store.runs()
    return len(runs) > known and any("acc_forget" in run.data.metrics for run in runs[: len(runs) - known])


@pytest.mark.nightly
@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(store, number, code, processes):
    known = len(store.runs())
    process = start(*LONG, "--processes", processes, "--device", "cpu")
    try:
        until(lambda: training(store, known), process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    stopped = checked(Outcome(process.returncode, out, err), "unlearn", code=code)
    assert stopped["error"]["kind"] == "stopped" and "nothing was registered" in stopped["error"]["message"]


@pytest.mark.nightly
@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_rank_that_is_killed(store, victim):
    known = len(store.runs())
    process = start(*LONG, "--processes", "2", "--device", "cpu")
    try:
        until(lambda: training(store, known), process)
        os.kill(ranks_below(process)[victim], signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    killed = checked(Outcome(process.returncode, out, err), "unlearn", code=1)
    assert killed["error"]["kind"] == "crashed"


@pytest.mark.nightly
def test_ranks_answer_once(store):
    """Rank 0 has the result, or the error, and the process that has started it prints that."""
    both = ("--processes", "2", "--device", "cpu", *JSON)
    for forget, code in ((FORGET, 0), ("class:none", 2)):
        ran = shell("unlearn", *V1, "--forget", forget, "--params", QUICK, *both)
        done = checked(Outcome(ran.returncode, ran.stdout, ran.stderr), "unlearn", code=code)
        assert code or done["result"]["registered"]["uri"] == "models:/clf/2"
        assert "Registered clf version 2" in ran.stderr or code


@pytest.mark.nightly
def test_bars_and_warnings_are_on_the_other_stream(store):
    """On a terminal: progress bars, tables, a method's warning; and a program reads standard output."""
    import pty

    reader, writer = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-W", "always", "-m", "mlflow_unlearn", "unlearn", *V1, "--forget", FORGET]
        + ["--params", '{"epochs": 3, "lr": 1e-9}', *JSON],
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
    )
    os.close(writer)
    shown = b""
    while True:
        try:
            part = os.read(reader, 65536)
        except OSError:  # its other end was closed
            break
        if not part:
            break
        shown += part
    out, _ = process.communicate(timeout=60)
    done = checked(Outcome(process.returncode, out, shown.decode()), "unlearn")
    assert "━" in shown.decode() and "Registered clf version 2" in shown.decode()
    assert done["result"]["registered"]["uri"] == "models:/clf/2"
