"""The file of `listen`, and what is refused before anything listens."""

import re
import textwrap
from pathlib import Path

import pytest
from listeners import CHAIN, SECRET, VARIABLE

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.events.rules import ModelRule, read_file


def write(folder, text):
    path = folder / "listen.yaml"
    path.write_text(text)
    return str(path)


def test_a_file_with_its_defaults(tmp_path, monkeypatch):
    file = read_file(write(tmp_path, CHAIN))
    assert (file.workers, file.attempts, file.replay_window, file.max_body) == (1, 3, 300.0, 1_000_000)
    assert file.folder == tmp_path and file.queue_path == tmp_path / "queue.sqlite"
    monkeypatch.setenv(VARIABLE, SECRET)
    assert file.read_secret() == SECRET.encode()


def test_the_first_rule_that_answers_counts(tmp_path):
    file = read_file(
        write(
            tmp_path,
            """
secret: env:S
models:
  - {name: "clf-test", when: [request], then: [tune]}
  - {name: "clf*", when: [request, "alias:champ*"], then: [unlearn]}
  - {name: "*", when: [version], then: [verify]}
""",
        )
    )

    def then(*event):
        rule = file.rule(*event)
        return rule and rule.then

    assert then("clf-test", "request", "") == ("tune",)
    assert then("clf", "request", "") == ("unlearn",)
    assert then("clf", "alias", "champion") == ("unlearn",)
    assert then("clf", "alias", "staging") is None
    assert then("clf", "version", "") == ("verify",)
    assert then("other", "request", "") is None


def test_options_become_arguments_of_the_shell():
    rule = ModelRule(
        name="clf",
        when=("version",),
        then=("audit", "compare"),
        options={
            "audit": {"references": 2, "relearn": True, "forget": None},
            "compare": {"methods": ["lotus", "ssd"], "params": {"ssd": {"alpha": 1.0}}},
        },
    )
    assert rule.arguments("audit") == ["--references", "2", "--relearn", "true", "--forget", ""]
    assert rule.arguments("compare") == ["--methods", "lotus,ssd", "--params", '{"ssd": {"alpha": 1.0}}']


def test_the_files_in_the_documentation_are_usable(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
    found = [
        textwrap.dedent(block) for block in re.findall(r"^ *```yaml\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    ]
    rules = [block for block in found if "models:" in block]
    assert len(rules) == 2
    for block in rules:
        assert read_file(write(tmp_path, block if "secret:" in block else f"secret: env:S\n{block}")).models


HEAD = "secret: env:S\nmodels:\n  - "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", "is not YAML: line 1"),
        ("- a", "holds no names with values"),
        ("models: [{name: clf, when: [request], then: [unlearn]}]", "the key 'secret' is missing"),
        ("secret: hunter2\nmodels: []", "secret: the secret does not belong in the file: write env:NAME"),
        ("secret: env:S\nmodels: []", "models = .*: tuple should have at least 1 item"),
        ("secret: env:S\nworkerz: 2\nmodels: []", "there is no key 'workerz'; did you mean 'workers'"),
        ("secret: env:S\nworkers: true\nmodels: []", "workers.*true and false are not numbers"),
        (HEAD + "{nam: clf, when: [request], then: [unlearn]}", "there is no key 'models.0.nam'; did you mean 'name'"),
        (HEAD + "{name: clf, wen: [request], when: [request], then: [unlearn]}", "no key 'models.0.wen'; did you mean"),
        (
            HEAD + "{name: clf, when: [requests], then: [unlearn]}",
            "'requests' is not an event: valid values: 'request'",
        ),
        (HEAD + "{name: clf, when: ['alias:'], then: [unlearn]}", "'alias:' is not an event"),
        (
            HEAD + "{name: clf, when: [request], then: [unlern]}",
            "no command 'unlern' about a version; did you mean 'unl",
        ),
        (HEAD + "{name: clf, when: [request], then: [methods]}", "there is no command 'methods' about a version"),
        (
            HEAD + "{name: clf, when: [request], then: [audit]}",
            "then begins with 'audit': on a request, begin with unl",
        ),
        (
            HEAD + "{name: clf, when: [version], then: [audit], despite: [review]}",
            "despite names 'review', which is not",
        ),
        (
            HEAD + "{name: clf, when: [request], then: [unlearn, review, retire]}",
            "then has 'retire' after 'unlearn': it would retire the new version",
        ),
        (
            HEAD + "{name: clf, when: [version], then: [audit], options: {review: {}}}",
            "options names 'review', which is",
        ),
        (
            HEAD + "{name: clf, when: [version], then: [request], options: {request: {reason: asked}}}",
            "request needs the option 'forget': give it under options.request",
        ),
        (
            HEAD + "{name: clf, when: [request], then: [unlearn], options: {unlearn: {metod: ssd}}}",
            "unlearn has no option 'metod'; did you mean 'method'",
        ),
        (
            HEAD + "{name: clf, when: [request], then: [unlearn], options: {unlearn: {until: soon}}}",
            "options.unlearn.until = 'soon': input should be 'once' or 'pass'",
        ),
        (
            HEAD + "{name: clf, when: [request], then: [unlearn], options: {unlearn: {model_uri: models:/clf/1}}}",
            "options.unlearn names model_uri, which comes from the event",
        ),
        (
            HEAD + "{name: clf, when: [request], then: [unlearn], options: {unlearn: {plan: true}}}",
            "options.unlearn.plan = 'true' would leave the request pending",
        ),
        (
            HEAD + "{name: clf, when: [request], then: [tune], options: {tune: {register: none}}}",
            "options.tune.register = 'none' would leave the request pending",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(UnlearnError, match=f"^config=.*listen.yaml .*{message}") as refused:
        read_file(write(tmp_path, text))
    assert "hunter2" not in str(refused.value)


def test_no_file_and_no_secret(tmp_path, monkeypatch):
    with pytest.raises(UnlearnError, match=r"^config=.*none.yaml cannot be read \(No such file"):
        read_file(str(tmp_path / "none.yaml"))
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UnlearnError, match=f"^there is no environment variable '{VARIABLE}'"):
        read_file(write(tmp_path, CHAIN)).read_secret()
