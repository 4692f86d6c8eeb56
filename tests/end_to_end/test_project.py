"""The MLflow Project: the same commands and defaults as the shell's, run by `mlflow run`."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from mlflow.projects import _project_spec
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from servers import free_port, stop
from stores import FORGET

from mlflow_unlearn.config import COMMANDS, options

ROOT = Path(__file__).parents[2]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
CONDA = yaml.safe_load((ROOT / "conda.yaml").read_text())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNLEARN = ("-e", "unlearn", "-P", "model_uri=models:/clf/1", "-P", 'params={"epochs": 1}')


# The file


def test_mlflow_reads_it():
    project = _project_spec.load_project(str(ROOT))
    assert project.name == "mlflow-unlearn"
    assert Path(project.env_config_path) == ROOT / "conda.yaml"
    assert set(PROJECT["entry_points"]) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_entry_point_is_its_command(name):
    """Names, what is required, and defaults, both ways round."""
    parameters = PROJECT["entry_points"][name]["parameters"]
    defaults = {}
    for option, field in options(COMMANDS[name]).items():
        value = field.default
        if field.is_required():
            defaults[option] = "string"
        else:
            text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            defaults[option] = {"type": "string", "default": text}
    assert parameters == defaults
    assert list(parameters) == list(defaults)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_entry_point_passes_each_parameter_on(name):
    command = PROJECT["entry_points"][name]["command"]
    program, _, rest = command.partition(f" {name} ")
    assert program == "python -m mlflow_unlearn"
    passed = re.findall(r"--(\S+) \{(\w+)\}", rest)
    assert [option.replace("-", "_") for option, _ in passed] == [parameter for _, parameter in passed]
    assert {parameter for _, parameter in passed} == set(PROJECT["entry_points"][name]["parameters"])
    assert re.sub(r"--\S+ \{\w+\}", "", rest).split() == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_defaults_survive_the_way_through_mlflow(name, monkeypatch, tmp_path):
    """MLflow's own command line, taken apart by a shell, gives what the command line gives by itself."""
    import shlex

    from mlflow_unlearn import cli

    seen = []
    monkeypatch.setattr(cli, "command_function", lambda name: seen.append)
    monkeypatch.setattr(cli, "_check_named", lambda options: None)
    required = {option: f"a {option}" for option, field in options(COMMANDS[name]).items() if field.is_required()}
    required |= {"name": "my_idea"} if name == "new-method" else {}  # it takes no name with a space
    entry = _project_spec.load_project(str(ROOT)).get_entry_point(name)
    through = shlex.split(entry.compute_command(required, str(tmp_path)))[3:]
    direct = [name, *(word for option, value in required.items() for word in (f"--{option.replace('_', '-')}", value))]
    for arguments in (through, direct):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert not end.value.code
    assert seen[0] == seen[1]


def test_the_environment_is_pyproject_s():
    """Same packages, same ranges, nothing of this project, and a pinned Python that it supports."""
    *plain, pip = CONDA["dependencies"]
    assert sorted(pip["pip"]) == sorted(PYPROJECT["dependencies"])
    assert all(Requirement(line).name != PYPROJECT["name"] for line in pip["pip"])
    [python] = [line for line in plain if line.startswith("python=")]
    version = python.removeprefix("python=")
    assert re.fullmatch(r"3\.\d+", version)
    assert Requirement(f"python{PYPROJECT['requires-python']}").specifier.contains(version)
    assert "pip" in plain


def test_the_tested_versions_are_in_our_ranges():
    """All that we name has its tested version; after a change of pyproject.toml, `make constraints` writes them."""
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    tested = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for wanted in map(Requirement, PYPROJECT["dependencies"] + PYPROJECT["optional-dependencies"]["test"]):
        assert wanted.specifier.contains(tested[canonicalize_name(wanted.name)]), wanted


@pytest.mark.nightly
def test_the_environment_can_be_installed(tmp_path):
    """pip finds a set of releases that fit each other. Resolved afresh, nothing installed."""
    (tmp_path / "requirements.txt").write_text("\n".join(CONDA["dependencies"][-1]["pip"]))
    resolved = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"),
            *("--only-binary", ":all:", "--report", str(tmp_path / "report.json"), "-r", "requirements.txt"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if "Failed to establish a new connection" in resolved.stderr or "Network is unreachable" in resolved.stderr:
        pytest.skip("no package index can be reached")
    assert resolved.returncode == 0, resolved.stderr
    assert (tmp_path / "report.json").exists()


# `mlflow run`


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A commit of this working tree, as a repository of its own."""
    folder = tmp_path_factory.mktemp("served") / "project.git"
    folder.mkdir()
    for name in ("MLproject", "conda.yaml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(
        ROOT / "mlflow_unlearn", folder / "mlflow_unlearn", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
    for arguments in (("init", "-q", "-b", "main"), ("add", "-A"), (*identity, "commit", "-qm", "all")):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    return folder


def head(folder: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def mlflow_run(project: object, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "mlflow", "run", str(project), *arguments, "--env-manager", "local"],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PATH": path},
        timeout=300,
    )


@pytest.mark.nightly
def test_unlearn_from_a_folder(store, cli, checkout, tmp_path):
    """One run: MLflow's own, with its parameters and ours, FINISHED; the new version points to it."""
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    before = len(store.runs())
    ended = mlflow_run(".", *UNLEARN, cwd=checkout)
    assert ended.returncode == 0, ended.stderr
    assert store.versions() == ["1", "2"]
    assert len(store.runs()) == before + 1
    run = store.runs()[0]
    assert run.info.status == "FINISHED"
    assert store.tags("2")["unlearn.run_id"] == run.info.run_id
    assert run.data.tags["mlflow.project.entryPoint"] == "unlearn"
    assert run.data.tags["unlearn.git.commit"] == run.data.tags["mlflow.source.git.commit"] == head(checkout)
    assert run.data.tags["unlearn.git.dirty"] == "false"
    assert run.data.params["unlearn.model_uri"] == "models:/clf/1"
    assert run.data.params["unlearn.params.epochs"] == "1"
    assert "model_uri" in run.data.params
    [(state, details)] = store.requests().values()
    assert (state, details["by"]) == ("done", ["models:/clf/2"])
    # Both ways of starting it come to the same weights.
    request = f"request:{next(iter(store.requests()))}"
    again = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", request, "--params", '{"epochs": 1}')
    assert again.code == 0, again.err
    assert store.tags("2")["unlearn.weights_sha256"] == store.tags("3")["unlearn.weights_sha256"]


@pytest.mark.nightly
def test_unlearn_from_a_git_uri(store, cli, checkout, tmp_path):
    """Cloned over the network, run from the clone."""
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    port = free_port()
    daemon = subprocess.Popen(
        [
            *("git", "daemon", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}", "--export-all"),
            *(f"--base-path={checkout.parent}", str(checkout.parent)),
        ],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        uri = f"git://127.0.0.1:{port}/project.git"
        for _ in range(50):
            if subprocess.run(["git", "ls-remote", uri], capture_output=True).returncode == 0:
                break
        ended = mlflow_run(uri, *UNLEARN, "--version", "main", cwd=tmp_path)
    finally:
        stop(daemon)
    assert ended.returncode == 0, ended.stderr
    assert store.versions() == ["1", "2"]
    run = store.runs()[0]
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.source.name"] == uri
    assert run.data.tags["unlearn.git.commit"] == run.data.tags["mlflow.source.git.commit"] == head(checkout)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-P", "model_uri=models:/clf/1", "-P", "sead=4"), "No such option '--sead'"),
        (("-P", "model_uri=models:/clf/7"), "model 'clf' has no version '7': its versions are: 1"),
        (("-P", "model_uri=models:/clf/1", "-P", "seed=-1"), "-P seed=-1 is not usable"),
    ],
    ids=["misspelt", "version", "value"],
)
def test_bad_input_ends_failed_with_the_sentence(store, checkout, tmp_path, arguments, sentence):
    before = store.everything_registered()
    ended = mlflow_run(checkout, "-e", "unlearn", *arguments, cwd=tmp_path)
    assert ended.returncode == 1
    assert sentence in ended.stderr
    run = store.runs()[0]
    assert run.info.status == "FAILED"
    assert sentence in run.data.tags["unlearn.error"]
    assert store.everything_registered() == before


@pytest.mark.nightly
def test_the_other_entry_points(store, checkout, tmp_path):
    """request and evaluate; spaces, quotes and JSON come through."""
    reason = """GDPR article 17, "at once", it's urgent"""
    asked = mlflow_run(
        *(checkout, "-e", "request", "-P", "model_uri=models:/clf/1", "-P", f"forget={FORGET}"),
        *("-P", f"reason={reason}"),
        cwd=tmp_path,
    )
    assert asked.returncode == 0, asked.stderr
    assert [state for state, _ in store.requests().values()] == ["pending"]
    assert store.runs()[0].data.params["unlearn.reason"] == reason
    measured = mlflow_run(checkout, "-e", "evaluate", "-P", "model_uri=models:/clf/1", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    assert store.versions() == ["1"]
