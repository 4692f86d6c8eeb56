"""Options as they are declared, and the texts that some of them take."""

import pytest
from pydantic import ValidationError

from mlflow_unlearn.config import COMMANDS, Evaluate, Train, Tune, options, parse_params, parse_seeds
from mlflow_unlearn.errors import UnlearnError


def test_the_commands_are_the_classes():
    assert list(COMMANDS) == (
        "train request unlearn tune evaluate audit compare review promote verify requests exposure locate manifest "
        "retire dossier listen methods new-method policy data".split()
    )
    for name, command in COMMANDS.items():
        assert command.example.startswith(f"mlflow-unlearn {name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_required_options_come_first_and_format_and_debug_last(name):
    listed = options(COMMANDS[name])
    required = [field.is_required() for field in listed.values()]
    assert required == sorted(required, reverse=True) and list(listed)[-2:] == ["format", "debug"]
    assert all(field.description for field in listed.values())


def test_an_empty_value_is_one_that_is_not_given():
    given = Evaluate.model_validate({"model_uri": "models:/clf/1", "data": "", "num_workers": ""})
    assert given.data is None and given.num_workers is None
    assert Tune.model_validate({"model_uri": "models:/clf/1", "register": "none"}).register_ == "none"


@pytest.mark.parametrize("wrong", [{"lr": float("nan")}, {"epochs": 0}, {"augment": "flip"}, {"learning_rate": 1}])
def test_what_is_out_of_bounds_or_unknown_is_refused(wrong):
    good = {"data": "digits", "name": "clf"}
    assert Train.model_validate(good).lr == 0.05
    with pytest.raises(ValidationError):
        Train.model_validate(good | wrong)


def test_seeds_are_counted_or_listed():
    assert parse_seeds("2") == [0, 1] and parse_seeds("5,") == [5] and parse_seeds(" [7, 0] ") == [7, 0]
    assert len(parse_seeds("1000")) == 1000


@pytest.mark.parametrize("text", ["", "0", "-1", "1001", "a", "1,1", "1,-1", "2.5", "[]", f"{2**32},"])
def test_seeds_that_are_not_usable(text):
    with pytest.raises(UnlearnError, match="^seeds=.* is not usable: give a number"):
        parse_seeds(text)


def test_params_come_from_json_or_from_a_file(tmp_path):
    (tmp_path / "p.yaml").write_text("alpha: 2\nlr: 1e-4\n")
    assert parse_params(None) == {} and parse_params(' {"alpha": 2}') == {"alpha": 2}
    assert parse_params(str(tmp_path / "p.yaml")) == {"alpha": 2, "lr": "1e-4"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"alpha": 2', "^space= cannot be parsed: Expecting"),
        ("{a: 1}", "^space= cannot be parsed"),
        ("no.yaml", "^space=no.yaml is neither NAME=VALUE, a JSON object nor a YAML file .No such file"),
        ("empty.yaml", "^space= file 'empty.yaml' holds nothing, not names with values"),
        ("list.yaml", "^space= file 'list.yaml' holds a list, not names with values"),
        ("broken.yaml", "^space= file 'broken.yaml' cannot be parsed"),
    ],
)
def test_params_that_are_not_usable(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    for name, content in (("empty", ""), ("list", "[1]"), ("broken", "a: [1")):
        (tmp_path / f"{name}.yaml").write_text(content)
    with pytest.raises(UnlearnError, match=message):
        parse_params(text, "space")
