"""What is typed in a shell, and what a command is given."""

import os
import subprocess
import sys

import click
import pytest
import yaml

from mlflow_unlearn import console
from mlflow_unlearn.cli import cli
from mlflow_unlearn.config import COMMANDS, parse_params
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.policy import Policy, read_policy
from mlflow_unlearn.spelling import spelled


def given(command: str, *typed: str) -> dict[str, object]:
    """What comes of it that is not the default."""
    context = cli.commands[command].make_context(command, [*typed])
    defaults = {option.name: option.default for option in cli.commands[command].params}
    return {
        name: value
        for name, value in context.params.items()
        if value is not None and str(value).lower() != str(defaults[name])
    }


URI = {"model_uri": "models:/clf/3"}


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (("models:/clf/3",), URI),
        (("-m", "models:/clf/3"), URI),
        (("-mmodels:/clf/3",), URI),
        (("--model-uri=models:/clf/3",), URI),
        (("--", "models:/clf/3"), URI),
        (("--seed", "7", "models:/clf/3", "--method", "scrub"), {**URI, "seed": 7, "method": "scrub"}),
        (("--force", "models:/clf/3"), {**URI, "force": True}),
        (("models:/clf/3", "--force"), {**URI, "force": True}),
        (("models:/clf/3", "--force", "--hash-ids"), {**URI, "force": True, "hash_ids": True}),
        (("models:/clf/3", "--force", "false"), URI),
        (("models:/clf/3", "--force", "true"), {**URI, "force": True}),
        (("models:/clf/3", "--force=true", "--no-force"), URI),
        (("models:/clf/3", "--no-code"), {**URI, "no_code": True}),
        (("models:/clf/3", "-v"), {**URI, "debug": True}),
        (("models:/clf/3", "--name", "other"), {**URI, "register_as": "other"}),
        (("models:/clf/3", "--register-as", "other"), {**URI, "register_as": "other"}),
        (("models:/clf/3", "--forget", "-"), {**URI, "forget": "-"}),
        (("models:/clf/3", "--params", "alpha=-8"), {**URI, "params": "alpha=-8"}),
    ],
)
def test_of_a_version(typed, expected):
    assert given("unlearn", *typed) == expected


def test_of_other_commands():
    assert given("train", "digits", "--name", "clf") == {"data": "digits", "name": "clf"}
    assert given("retire", "models:/clf/3", "--yes", "--alias", "a,b") == {**URI, "yes": True, "aliases": "a,b"}
    assert given("policy", "show") == {} and given("policy", "show", "--policy", "p.yaml") == {"policy": "p.yaml"}


@pytest.mark.parametrize(
    ("command", "typed", "sentence"),
    [
        ("unlearn", ("models:/clf/3", "--model-uri", "models:/clf/4"), "'models:/clf/3' is given beside --model-uri"),
        ("unlearn", ("models:/clf/3", "-m", "models:/clf/4"), "'models:/clf/3' is given beside -m: give one of them"),
        ("unlearn", ("models:/clf/3", "models:/clf/4"), "Got unexpected extra argument (models:/clf/4)"),
        (
            "unlearn",
            ("models:/clf/3", "--force", "perhaps"),
            "Invalid value for '--force': 'perhaps' is not a valid bool",
        ),
        ("unlearn", (), "Missing option '-m' / '--model-uri'"),
        ("unlearn", ("models:/clf/3", "--no-seed"), "No such option '--no-seed'"),
        ("unlearn", ("models:/clf/3", "--seed"), "Option '--seed' requires an argument"),
        ("methods", ("models:/clf/3",), "Got unexpected extra argument (models:/clf/3)"),
        ("policy", ("shwo",), "'shwo' is not 'show'"),
    ],
)
def test_what_is_refused(command, typed, sentence):
    with pytest.raises(click.UsageError) as caught:
        given(command, *typed)
    assert sentence in caught.value.format_message().replace("No such option:", "No such option")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_its_options_in_groups_and_an_example_that_destroys_nothing(command):
    shown = cli.commands[command].get_help(click.Context(cli.commands[command], info_name=command))
    headings = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[-1] == "What is printed:" and len(headings) == len(set(headings))
    assert "--yes" not in COMMANDS[command].example and "--override" not in COMMANDS[command].example


def test_quiet_leaves_results_warnings_and_errors(capsys):
    console.be_quiet(True)
    try:
        console.note("Note: this and that.")
        console.note("Warning: mind the gap.")
    finally:
        console.be_quiet(False)
    console.note("Note: again.")
    assert capsys.readouterr().err == "Warning: mind the gap.\nNote: again.\n"


def test_quiet_ends_with_its_command(capsys):
    for typed, notes in ((["-q"], False), ([], True)):
        cli.commands["methods"].make_context("methods", typed)
        console.note("Note: heard.")
        assert ("heard" in capsys.readouterr().err) == notes


class TestHyperparameters:
    def test_pairs(self):
        assert parse_params("alpha=8,epochs=5") == {"alpha": 8, "epochs": 5}
        assert parse_params(" lr = 0.1 , balanced = true , name = a b ") == {"lr": 0.1, "balanced": True, "name": "a b"}
        assert parse_params("scrub.alpha=0.5,lotus.epochs=5") == {"scrub": {"alpha": 0.5}, "lotus": {"epochs": 5}}
        assert parse_params('{"alpha": 8}') == {"alpha": 8}

    def test_a_file_whose_name_has_the_sign(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a=b.yaml").write_text("alpha: 3")
        assert parse_params("a=b.yaml") == {"alpha": 3}

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("alpha=8,epochs", "'epochs' is not NAME=VALUE"),
            ("alpha=8,", "'' is not NAME=VALUE"),
            ("=8", "'=8' is not NAME=VALUE"),
            ("alpha=8,alpha=9", "'alpha' is given twice"),
            ("a=1,a.b=2", "'a' is given a value and values inside of it"),
            ("a=[1", "the value of 'a' cannot be read"),
        ],
    )
    def test_what_is_not(self, text, sentence):
        with pytest.raises(UnlearnError) as caught:
            parse_params(text)
        assert sentence in str(caught.value) and spelled("params", text) in str(caught.value)


def test_the_policy_that_is_printed_is_that_of_a_review(tmp_path):
    """It can be edited and given as it is."""
    run = [sys.executable, "-m", "mlflow_unlearn", "policy", "show"]
    first = subprocess.run(run, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert yaml.safe_load(first.stdout)["name"] == "default"
    path = tmp_path / "policy.yaml"
    path.write_text(first.stdout)
    assert read_policy(str(path)).sha256 == Policy().sha256
    path.write_text("two_person: true")
    again = subprocess.run([*run, "--policy", str(path)], capture_output=True, text=True)
    assert yaml.safe_load(again.stdout)["two_person"] and yaml.safe_load(again.stdout)["minimum"]["test"] == 100


def test_completion_knows_commands_and_options():
    words = {"COMP_WORDS": "mlflow-unlearn unlearn --mod", "COMP_CWORD": "2"}
    program = "from mlflow_unlearn.cli import cli; cli(prog_name='mlflow-unlearn')"
    asked = {**os.environ, **words, "_MLFLOW_UNLEARN_COMPLETE": "bash_complete"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=asked)
    assert done.stdout.split() == ["plain,--model-uri"], done.stderr
