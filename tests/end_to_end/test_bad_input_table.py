"""Bad values for every option of every command: a sentence on one line, exit code 2, and a registry as it was."""

import sqlite3
import time
import typing
from contextlib import closing

import pytest
from stores import DATA

from mlflow_unlearn.config import COMMANDS, options

V1, V2 = ("--model-uri", "models:/clf/1"), ("--model-uri", "models:/clf/2")
NEEDED = {"model_uri": "models:/clf/1", "forget": "random:5", "data": DATA, "name": "new", "config": "listen.yaml"}
"""Good values of the options that a command requires."""
ELSE = {"request": {"model_uri": "models:/clf/1"}, "locate": {"forget": "class:3"}}
"""Of those that one command wants otherwise."""

LONG = "9" * 5000
NUMBERS = ("x", "true", "nan", "[1]", "-9", LONG, "1e999")
BY_KIND = {int: (*NUMBERS, "1.5"), float: (*NUMBERS, "-inf"), bool: ("maybe", "2", LONG), "choice": ("x", "TRUE", LONG)}

DEEP = 20_000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD_YAML = {
    "bomb": BOMB,
    "deep": "[" * DEEP,
    "nested": "{a: " * DEEP,
    "twice": "alpha: 2\nalpha: 3",
    "digits": f"alpha: {LONG}",
    "tabs": "alpha:\n\t- 1",
    "nan": "alpha: .nan",
    "infinite": "alpha: -.inf",
    "date": "alpha: 2026-01-01",
    "key": "1: 2",
    "yes": "on: 2",
    "two": "alpha: 1\n---\nalpha: 2",
    "object": "!!python/object/apply:os.getcwd []",
    "list": "- 1",
    "text": "alpha",
    "empty": "",
    "nul": "alpha: \0",
    "latin": "alpha: é".encode("latin-1"),
    "utf16": "alpha: 0".encode("utf-16"),
    "mark": "\ufeffalpha: -1",
    "large": "#" * 300_000,
    "unknown": "alhpa: 1",
    "broken": "alpha: [1",
}
BAD_JSON = {
    "deep": '{"alpha": ' + "[" * DEEP + "]" * DEEP + "}",
    "nested": '{"a":' * DEEP + "1" + "}" * DEEP,
    "twice": '{"alpha": 2, "alpha": 3}',
    "twice inside": '{"alpha": {"low": 1, "low": 2}}',
    "digits": '{"alpha": ' + LONG + "}",
    "decimals": '{"alpha": 0.' + LONG + "}",
    "nan": '{"alpha": NaN}',
    "infinite": '{"alpha": -Infinity}',
    "overflow": '{"alpha": 1e999}',
    "mark": '\ufeff{"alpha": -1}',
    "cut": '{"alpha": 1',
    "tail": '{"alpha": 1} x',
    "quotes": "{'alpha': 1}",
    "list": "[1]",
    "unknown": '{"alhpa": 1}',
}
BAD_PARAMS = {
    "method": '{"method": 5}',
    "methods": '{"method": ["lotus"]}',
    "no method": '{"method": "lotos"}',
    "prefix": '{"prefix": true}',
    "true": '{"alpha": true}',
    "true epochs": '{"epochs": true}',
    "fraction": '{"epochs": 1.5}',
    "null": '{"epochs": null}',
    "inside": '{"params": 5}',
    "text": '{"alpha": "two"}',
    "object": '{"alpha": {"low": 1}}',
}
BAD_SPACE = {
    "empty": '{"alpha": {}}',
    "no choice": '{"alpha": []}',
    "true": '{"alpha": {"low": true, "high": 2}}',
    "true choice": '{"alpha": [true, 2]}',
    "order": '{"alpha": [2, 1]}',
    "text": '{"alpha": ["one", 2]}',
    "object": '{"alpha": {"low": 1, "high": {}}}',
    "step": '{"alpha": {"low": 1, "high": 16, "step": 0}}',
    "tiny step": '{"alpha": {"low": 1, "high": 16, "step": 1e-300}}',
    "log": '{"alpha": {"low": 0, "high": 16, "log": true}}',
    "null": '{"alpha": null}',
    "key": '{"alpha": {"low": 1, "hihg": 2}}',
    "prefix": '{"prefix": "no such layer"}',
}
BAD_POLICIES = {
    "rule": "rules: [{metric: acc_tset, at_least: 0}]",
    "true bound": "rules: [{metric: acc_test, at_least: true}]",
    "no bound": "rules: [{metric: acc_test}]",
    "true size": "minimum: {forget: true}",
    "size": "minimum: {forgotten: 3}",
    "schema": "schema_version: true",
    "name": "name: [a]",
    "required": "required: [everything]",
    "membership": "membership: {accept: residual}",
    "infinite": "rules: [{metric: acc_test, at_least: .inf}]",
}
BAD_URIS = (
    "",
    "clf",
    "models:/clf",
    "models:/clf/0",
    "models:/clf@nope",
    "models:/nope/1",
    "models:/clf/" + LONG,
    "a\nb",
)
BAD_SOURCES = {
    "": "",
    "unknown": "digit",
    "tail": "digits:x",
    "seed": f"digits,seed={LONG}",
    "no seed": "digits,seed=-1",
    "fraction": "digits,train=0%",
    "long fraction": f"digits,train={LONG}",
    "nan": "digits,train=nan",
    "folder": "folder:nowhere",
    "a file": "folder:empty.yaml",
    "shards": "shards:nowhere",
    "table": "csv:nowhere.csv",
    "home": "folder:~nobody-at-all/x",
    "device": "csv:/dev/zero",
    "a folder": "csv:.",
    "latin": "csv:latin.yaml",
    "columns": "csv:list.yaml",
    "labels": "csv:labels.csv",
    "nul": "csv:nul.yaml",
    "dataset": "torchvision:MINST@.",
    "root": "torchvision:MNIST@nowhere",
    "module": "python:nowhere:f",
    "function": "python:os:nothing",
    "no function": "python:os",
    "long": "folder:" + "x" * 5000,
}
BAD_FORGETS = {
    "": "",
    "nowhere": "nowhere.txt",
    "folder": ".",
    "home": "~nobody-at-all/x",
    "device": "/dev/zero",
    "count": f"random:{LONG}",
    "share": f"random:{LONG}%",
    "seed": f"random:5,seed={LONG}",
    "fraction": "random:1.5",
    "negative": "random:-1",
    "all": "random:100%",
    "class": f"class:{LONG}",
    "no class": "class:x",
    "group": "group:a=1",
    "half": "group:a",
    "request": "request:x",
    "latin": "latin.yaml",
    "unknown": "list.yaml",
    "long": "long.txt",
    "nul": "nul.yaml",
    "name": "x" * 5000,
}
BAD = {
    # What the sentence has to name, where the option's own name is not in it.
    "sign_key": ("nowhere.pem", "empty.yaml", "."),
    "key": ("nowhere.pem", "empty.yaml", "."),
    "gold_uri": ("", "models:/nope/1", "clf")[1:],
    "register_as": ("a/b", "a:b", " " * 3 + "/"),
    "name": ("", "a/b", "a:b"),
    "path": ("nowhere/x", "empty.yaml"),
    "architecture": ("resnet81", "timm:nothing", "nowhere:f", "os:getcwd:x", "torchvision:x"),
    "transform": ("imagnet", "python:nowhere:f", "python:os", "timm"),
    "classes": ("a,b", "latin.yaml", "large.yaml"),
    "device": ("gpu", "meta", "cuda:99", "cpu:x"),
    "prefix": ("no.such.layer", "0.9"),
    "methods": ("", "lotos", ",,"),
    "method": ("", "lotos", "LOTUS"),
    "seeds": ("0", "x", LONG, "1,1", "-1", "1.5", "[", "1000000"),
    "storage": (
        "optuna.db",
        "sqlite://",
        "sqlite:////nowhere/x.db",
        "env:NOTHING",
        "env:",
        "redis://x",
        "journal:/dev/null/x",
    ),
    "alias": ("", "latest", "v1", "a b/c", "x" * 300),
    "aliases": ("nobody", "a@b"),
    "ids": ("nowhere/x.csv", "."),
    "exclude": ("nowhere.txt", "0123456789ab", "request:x", "random:200%"),
    "original_uri": ("models:/nope/1", "clf"),
}
SKIP = {"debug", "reason", "requester", "approver", "override", "study"}
"""Any text is good."""


def kind_of(field) -> object:
    inner = typing.get_args(field.annotation)
    if typing.get_origin(field.annotation) is typing.Literal:
        return "choice"
    found = [kind for kind in (field.annotation, *inner, *(k for each in inner for k in typing.get_args(each)))]
    return next((kind for kind in (bool, int, float) if kind in found), str)


def line(command: str, **given: str) -> tuple[str, ...]:
    """A command line with what the command requires."""
    required = {name: NEEDED[name] for name, field in options(COMMANDS[command]).items() if field.is_required()}
    required |= ELSE.get(command, {})
    return (command, *(part for k, v in {**required, **given}.items() for part in (f"--{k.replace('_', '-')}", v)))


def usage():
    """Cases that are refused before anything is opened."""
    for command, config in COMMANDS.items():
        yield f"{command}: unknown option", (*line(command), "--no-such-option", "1")
        yield f"{command}: argument", (*line(command), "argument")
        for name, field in options(config).items():
            if field.is_required():
                given = line(command)
                place = given.index(f"--{name.replace('_', '-')}")
                yield f"{command}: no {name}", given[:place] + given[place + 2 :]
            for value in BY_KIND.get(kind_of(field), ()):
                yield f"{command}: {name} = {value[:9]}", line(command, **{name: value})


def contents():
    """Cases whose value has to be read."""
    for name in BAD_YAML:
        yield f"unlearn: params {name}.yaml", line("unlearn", params=f"{name}.yaml")
    for name in ("bomb", "twice", "latin"):
        yield f"review: policy {name}.yaml", ("review", *V2, "--policy", f"{name}.yaml")
        yield f"promote: policy {name}.yaml", ("promote", *V2, "--policy", f"{name}.yaml")
        yield f"compare: params {name}.yaml", line("compare", params=f"{name}.yaml", forget="random:5")
        yield f"tune: space {name}.yaml", line("tune", space=f"{name}.yaml", forget="random:5")
    for name in BAD_POLICIES:
        yield f"review: policy {name}", ("review", *V2, "--policy", f"policy {name}.yaml")
    for name, text in {**BAD_JSON, **BAD_PARAMS}.items():
        yield f"unlearn: params {name}", line("unlearn", params=text)
    for name in ("true", "tiny step", "prefix"):
        yield f"tune: space {name}", line("tune", space=BAD_SPACE[name], forget="random:5")
    for name, spec in BAD_SOURCES.items():
        yield f"data: {name}", line("data", data=spec)
    for name, spec in BAD_FORGETS.items():
        yield f"request: {name}", line("request", forget=spec)


def values():
    """Cases for each option that takes a text, at each command that has it, and whether another one had it before."""
    seen: dict[str, set[str]] = {}
    for command, config in COMMANDS.items():
        for name, field in options(config).items():
            if name in SKIP or kind_of(field) is not str:
                continue
            for value in BAD.get(name, ()):
                # It takes a tenth to a quarter of a second until some values are reached: by default at one command.
                at_another = value in seen.setdefault(name, set())
                seen[name].add(value)
                more = {"model_uri": "models:/clf/2"} if command in ("promote", "review", "verify") else {}
                more |= {"model_uri": "models:/clf/4"} if name == "key" else {}  # the signed one
                more |= {"forget": "random:5"} if "forget" in options(config) and command not in ELSE else {}
                yield f"{command}: {name} = {value[:20]}", line(command, **{**more, name: value}), at_another
        if "model_uri" in options(config):
            for uri in BAD_URIS if command in ("verify", "exposure", "retire") else BAD_URIS[3:6]:
                yield f"{command}: model_uri = {uri[:20]!r}", line(command, model_uri=uri), False


CONTENTS = [*contents(), *((name, case) for name, case, at_another in values() if not at_another)]
BY_DEFAULT = [*usage(), *CONTENTS[::3]]
REPEATED = [
    *(case for number, case in enumerate(CONTENTS) if number % 3),
    *((name, case) for name, case, at_another in values() if at_another),
    *((f"tune: space {name} again", line("tune", space=text, forget="random:5")) for name, text in BAD_SPACE.items()),
    *((f"review: policy {name}.yaml again", ("review", *V2, "--policy", f"{name}.yaml")) for name in BAD_YAML),
]


@pytest.fixture(scope="module")
def files(chain):
    """In the working folder: a good store, and files with nothing good in them."""
    more = {f"policy {name}.yaml": text for name, text in BAD_POLICIES.items()}
    more |= {"labels.csv": "path,label\na.png,\n", "long.txt": "x" * 200_000}
    for name, text in {**{f"{name}.yaml": text for name, text in BAD_YAML.items()}, **more}.items():
        (chain.folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return chain


TABLES = (
    "registered_models",
    "registered_model_tags",
    "registered_model_aliases",
    "model_versions",
    "model_version_tags",
)


def registry(store) -> dict[str, list[tuple]]:
    """All that is registered, the models that runs have logged and not deleted, and the runs that have not ended."""
    questions = {table: f"SELECT * FROM {table} ORDER BY 1, 2, 3" for table in TABLES}
    questions["models"] = "SELECT model_id FROM logged_models WHERE lifecycle_stage = 'active' ORDER BY 1"
    questions["running"] = "SELECT run_uuid FROM runs WHERE status = 'RUNNING'"
    with closing(sqlite3.connect(store.folder / "mlflow.db")) as database:
        return {name: database.execute(question).fetchall() for name, question in questions.items()}


def test_there_are_enough_of_them():
    assert len(BY_DEFAULT) >= 300 and len(dict([*BY_DEFAULT, *REPEATED])) == len(BY_DEFAULT) + len(REPEATED)
    assert {name.partition(":")[0] for name, _ in BY_DEFAULT} == set(COMMANDS)


@pytest.mark.parametrize("arguments", [case for _, case in BY_DEFAULT], ids=[name for name, _ in BY_DEFAULT])
def test_bad_input(files, cli, arguments):
    check(files, cli, arguments)


@pytest.mark.nightly
@pytest.mark.parametrize("arguments", [case for _, case in REPEATED], ids=[name for name, _ in REPEATED])
def test_bad_input_at_another_command(files, cli, arguments):
    check(files, cli, arguments)


def check(files, cli, arguments):
    before, started = registry(files), time.monotonic()
    outcome = cli(*arguments)
    assert outcome.code == 2, (outcome.code, outcome.err[-500:])
    assert time.monotonic() - started < 10
    assert "Traceback" not in outcome.err and outcome.out == ""
    *notes, sentence = outcome.err.splitlines()
    assert sentence.startswith("Error: ") and len(sentence) < 2000
    assert "no pending forget request" not in sentence  # which is what a bad value of `unlearn` comes before
    assert all(note.startswith(("Note: ", "Usage: ", "Try ", "Warning: ")) or not note for note in notes), notes
    assert registry(files) == before and not before["running"]
