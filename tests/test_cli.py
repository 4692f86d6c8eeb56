"""The command line: help, options, exit codes. Nothing here needs a store."""

import csv
import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mlflow_unlearn import __version__, cli
from mlflow_unlearn.config import COMMANDS, options
from mlflow_unlearn.data.loaders import load_source

HELPS = [(), *((name,) for name in COMMANDS)]
RUN = """
import json
import sys
from mlflow_unlearn.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        print(end.code or 0, arguments, file=sys.stderr)
    heavy = {"torch", "mlflow", "optuna", "numpy", "sklearn", "timm", "rich"} & set(sys.modules)
    print(f"heavy: {sorted(heavy)}", file=sys.stderr)
"""


def in_process(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def test_help_and_wrong_arguments_load_nothing_heavy():
    """So that both come at once."""
    wrong = ["train", "--data", "digits", "--name", "x", "--epochs", "0"]
    done = python("-c", RUN, json.dumps([*([*command, "--help"] for command in HELPS), wrong]))
    lines = [line for line in done.stderr.splitlines() if line.startswith(("0 ", "2 ", "heavy"))]
    assert lines[:-2] == [line for command in HELPS for line in (f"0 {[*command, '--help']}", "heavy: []")]
    assert lines[-2:] == [f"2 {wrong}", "heavy: []"]


def test_the_module_is_the_program():
    shown = python("-m", "mlflow_unlearn", "tune", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "mlflow-unlearn tune" in shown.stdout.partition("Example:")[2]


def test_the_group_lists_each_command(capsys):
    code, out, _ = in_process(capsys, "--help")
    assert code == 0
    commands = out.partition("Commands:")[2]
    for name, config in COMMANDS.items():
        [line] = [line for line in commands.splitlines() if line.startswith(f"  {name} ")]
        assert line.split(maxsplit=1)[1][:20] == config.__doc__[:20]
    assert "Exit codes: 0 done or passed, 2 bad input" in " ".join(out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_is_explained(capsys, name):
    code, out, _ = in_process(capsys, name, "--help")
    assert code == 0
    text = " ".join(out.split())
    for option, field in options(COMMANDS[name]).items():
        assert f"--{option.replace('_', '-')} " in out
        assert " ".join(field.description.split())[:25] in text
        assert ("[required]" in text) or not field.is_required()
    assert COMMANDS[name].example in " ".join(out.replace("\\\n", " ").split()), "folded where it is long"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_parses(name, monkeypatch):
    """What help shows can be typed."""
    import shlex

    seen = []
    monkeypatch.setattr(cli, "command_function", lambda name: seen.append)
    monkeypatch.setattr(cli, "_check_named", lambda options: None)
    program, command, *arguments = shlex.split(COMMANDS[name].example)
    assert (program, command) == ("mlflow-unlearn", name)
    with pytest.raises(SystemExit) as end:
        cli.main([command, *arguments])
    assert not end.value.code
    assert isinstance(seen[0], COMMANDS[name])


def parsed(monkeypatch, *arguments: str):
    """What a command line becomes, without doing it."""
    seen = []
    monkeypatch.setattr(cli, "command_function", lambda name: seen.append)
    monkeypatch.setattr(cli, "_check_named", lambda options: None)
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    assert not end.value.code
    return seen[0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], False),
        (["--force"], True),
        (["--force", "true"], True),
        (["--force", "false"], False),
        (["--force=false"], False),
        (["--force", "True"], True),
        (["--force", "--seed", "1"], True),
    ],
)
def test_booleans(monkeypatch, given, expected):
    """As a flag for people, with a value for MLproject."""
    command = parsed(monkeypatch, "unlearn", "--model-uri", "models:/clf/1", *given)
    assert command.force is expected


def test_a_value_that_is_not_a_boolean(capsys):
    code, _, err = in_process(capsys, "unlearn", "--model-uri", "models:/clf/1", "--force", "maybe")
    assert code == 2
    assert "--force" in err
    assert "maybe" in err


def test_empty_values_count_as_not_given(monkeypatch):
    command = parsed(monkeypatch, "unlearn", "--model-uri", "models:/clf/1", "--forget", "", "--gold-uri", "")
    assert command.forget is None
    assert command.gold_uri is None
    assert command == parsed(monkeypatch, "unlearn", "--model-uri", "models:/clf/1")


def test_register_is_spelt_like_that(monkeypatch):
    assert parsed(monkeypatch, "tune", "--model-uri", "m", "--register", "none").register_ == "none"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["unlaern"], ["No such command 'unlaern'", "unlearn"]),
        (["unlearn", "--modle-uri", "x"], ["--modle-uri", "--model-uri"]),
        (["unlearn"], ["Missing option '-m' / '--model-uri'"]),
        (["unlearn", "--model-uri", "x", "--seed", "-1"], ["--seed", "-1"]),
        (["unlearn", "--model-uri", "x", "--seed", "one"], ["--seed", "one"]),
        (["unlearn", "--model-uri", "x", "--precision", "fp16"], ["--precision", "fp16", "bf16"]),
        (["train", "--data", "digits", "--name", "x", "--lr", "nan"], ["--lr", "nan"]),
        (["data"], ["Missing option '--data'"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_wrong_arguments(capsys, arguments, words):
    code, out, err = in_process(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_idle_threads_leave_the_cores_to_others_before_torch_is_loaded():
    code = "import os, sys; from mlflow_unlearn import cli\ntry: cli.main(['--version'])\nfinally: "
    code += "print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    for given, spins in (({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | given
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.stdout.splitlines()[-1] == f"{spins} False", done.stderr


def test_version(capsys):
    code, out, _ = in_process(capsys, "--version")
    assert (code, out.strip()) == (0, f"mlflow-unlearn, version {__version__}")
    project = Path(cli.__file__).parents[1] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == __version__


def test_data_prints_counts_and_makes_no_run(tmp_path, monkeypatch, capsys):
    """Neither a run nor a database for one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, out, _ = in_process(capsys, "data", "--data", "digits,train=20%")
    assert code == 0
    rows = {
        line.replace("│", " ").split()[0]: line.replace("│", " ").split()[1:]
        for line in out.splitlines()
        if "│" in line
    }
    assert rows["all"] == ["359", "719", "719"]
    assert [sum(int(rows[str(digit)][part]) for digit in range(10)) for part in range(3)] == [359, 719, 719]
    for word in ("train: ids like 'digits/", "digest"):
        assert word in out
    assert list(tmp_path.iterdir()) == []


def test_data_lists_the_ids(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = in_process(capsys, "data", "--data", "digits,train=20%", "--ids", "ids.csv")
    assert code == 0, err
    source = load_source("digits,train=20%")
    with open("ids.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert found == [
        {"id": one, "split": split, "class": str(label)}
        for split in ("train", "val", "test")
        for one, label in zip(getattr(source, split).ids, getattr(source, split).labels, strict=True)
    ]
    code, _, err = in_process(capsys, "data", "--data", "digits", "--ids", "nowhere/ids.csv")
    assert code == 2
    assert "Error: the list of ids cannot be written to 'nowhere/ids.csv'" in err
    assert "Traceback" not in err


def test_a_traceback_on_demand_alone(capsys):
    for arguments, traced in ((["--debug"], True), (["--debug", "false"], False), ([], False)):
        code, _, err = in_process(capsys, "data", "--data", "digit", *arguments)
        assert code == 2
        assert "Error: unknown data source 'digit'" in err
        assert ("Traceback" in err) == traced


def test_a_command_in_this_process_leaves_signals_to_be_heard():
    """They are ignored at the interpreter's end alone: a child would inherit that."""
    with pytest.raises(SystemExit):
        cli.main(["methods"])
    for number in (signal.SIGTERM, signal.SIGINT):
        assert signal.getsignal(number) != signal.SIG_IGN


def test_a_signal_waits_until_a_pool_knows_its_thread():
    """Else Python would wait without end for a thread that waits for work."""
    code = (
        "import os, signal, threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from mlflow_unlearn import cli\n"
        "signal.signal(signal.SIGTERM, cli._stop)\n"
        "start = threading.Thread.start\n"
        "def started(self):\n"
        "    start(self)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread.start = started\n"
        "pool = ThreadPoolExecutor(1)\n"
        "try:\n"
        "    pool.submit(int)\n"
        "    signal.pause()\n"
        "except cli.Terminated:\n"
        "    print('terminated')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (ran.returncode, ran.stdout) == (0, "terminated\n"), ran.stderr
