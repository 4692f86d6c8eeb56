"""Every file and tag that belongs to a version, changed one at a time: found by `verify`, or named as uncovered.

The changes are made by going through what is stored, so that a new file or tag is among them without a word here. What
may stay unseen is what docs/governance.md lists, read from that page.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatch
from pathlib import Path

import pytest
from chains import changed, flipped, folder_of
from stores import call

from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.governance.aliases import check_aliases
from mlflow_unlearn.governance.approval import check_reviews
from mlflow_unlearn.governance.integrity import examine
from mlflow_unlearn.registry import tracking

VERSION = "3"
URI = f"models:/clf/{VERSION}"
DOCS = Path(__file__).parents[2] / "docs" / "governance.md"
FORGED = {
    "unlearn.warning": "none",
    "unlearn.prefix": "layer4",
    "unlearn.incomplete": "no",
    "unlearn.study": "mine",
    "unlearn.trial": "1",
    "unlearn.selection": "the best",
    "unlearn.n_trials": "100",
    "unlearn.metric.avg_gap": "0.0",
    "unlearn.verdict.2": "pass",
    "unlearn.review.99": '{"verdict": "pass", "run_id": "none", "sha256": "0"}',
    "unlearn.promotion.champion": '{"run_id": "none", "at": "2999"}',
    "unlearn.promotion.canary": '{"run_id": "none", "at": "2000"}',
    "unlearn.request.abcdefabcdef": 'pending {"of": "models:/clf/3", "run_id": "none"}',
    "unlearn.request.fedcbafedcba": 'pending {"of": "models:/clf/1", "run_id": "none"}',
    "unlearn.retired": '{"by": "x", "at": "y", "reason": "z"}',
    "unlearn.endpoint.shop": "https://example.org",
    "unlearn.anything": "x",
    "unlearn-approved": "yes",
    "validation_status": "approved",
}

Change = tuple[str, Callable[[], AbstractContextManager[None]]]


@pytest.fixture(scope="module")
def reviewed(chain):
    """Version 3: one request fulfilled by it, one later by version 4, reviewed twice, promoted."""
    for policy in ("strict.yaml", "lenient.yaml"):
        call("review", "--model-uri", URI, "--policy", policy)
    done = call("promote", "--model-uri", URI)
    assert done.code == 0, done.err
    return chain


def uncovered() -> list[str]:
    """Patterns of the first column of the table under "What verify does not see"."""
    section = DOCS.read_text(encoding="utf-8").split("### What `verify` does not see")[1].split("\n#")[0]
    return [name for row in re.findall(r"^\| (.*?) \|", section, re.M) for name in re.findall("`(.*?)`", row)]


def changes(store) -> Iterator[Change]:
    folder = folder_of(VERSION)
    # MLflow writes it whenever somebody reads the version in place, and another test may have done so.
    (folder / "registered_model_meta").unlink(missing_ok=True)
    client = store.client
    found = client.get_model_version("clf", VERSION)
    model = client.get_logged_model(found.model_id or found.source.removeprefix("models:/"))
    runs = {"run": found.tags["unlearn.run_id"]}
    for request in found.tags["unlearn.request_ids"].split(","):
        runs["request's run"] = store.requests("2")[request][1]["run_id"]
    last = max(key for key in found.tags if key.startswith("unlearn.review."))
    for what, key in (("review's run", last), ("promotion's run", "unlearn.promotion.champion")):
        runs[what] = re.search(r'"run_id": "(\w+)"', found.tags[key]).group(1)
    roots = {"version": folder}
    for what, run_id in runs.items():
        roots[what] = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))

    for what, root in roots.items():
        folders = {root} | {path for path in root.rglob("*") if path.is_dir()}
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            name = f"{what}: {path.relative_to(root).as_posix()}"
            yield f"{name} changed", lambda path=path: flipped(path)
            yield f"{name} deleted", lambda path=path: changed(path, None)
        for inside in sorted(folders):
            where = inside.relative_to(root).as_posix()
            added = inside / "added.txt"
            yield f"{what}: {where}/added.txt added", lambda added=added: changed(added, b"x")

    for name, value in found.tags.items():
        yield f"version tag: {name} changed", lambda n=name, v=value: tag(client, n, v + "0")
        yield f"version tag: {name} deleted", lambda n=name: tag(client, n, None)
    for name, value in FORGED.items():
        if name not in found.tags:
            yield f"version tag: {name} added", lambda n=name, v=value: tag(client, n, v)
    for text in ("All is well.", "", (found.description or "")[:-1], f"PASS. {found.description}"):
        yield f"version: description {text[:8]!r}… changed", lambda t=text: described(client, t)
    yield "version: description extended", lambda: described(client, f"{found.description}\n\nMind the gap.")

    for what, run_id in runs.items():
        tags = client.get_run(run_id).data.tags
        for name, value in tags.items():
            yield f"{what}, tag: {name} changed", lambda r=run_id, n=name, v=value: run_tag(client, r, n, v + "0")
        yield f"{what}, tag: unlearn.x added", lambda r=run_id: run_tag(client, r, "unlearn.x", "x")
    for name, value in {**model.tags, "unlearn.x": "x"}.items():
        yield f"LoggedModel, tag: {name} changed", lambda n=name, v=value: model_tag(client, model.model_id, n, v + "0")


@contextmanager
def tag(client, name: str, value: str | None) -> Iterator[None]:
    before = client.get_model_version("clf", VERSION).tags.get(name)
    _set(client, name, value)
    try:
        yield
    finally:
        _set(client, name, before)


def _set(client, name: str, value: str | None) -> None:
    if value is None:
        client.delete_model_version_tag("clf", VERSION, name)
    else:
        client.set_model_version_tag("clf", VERSION, name, value)


@contextmanager
def described(client, text: str) -> Iterator[None]:
    before = client.get_model_version("clf", VERSION).description
    client.update_model_version("clf", VERSION, description=text)
    try:
        yield
    finally:
        client.update_model_version("clf", VERSION, description=before)


@contextmanager
def run_tag(client, run_id: str, name: str, value: str) -> Iterator[None]:
    before = client.get_run(run_id).data.tags.get(name)
    client.set_tag(run_id, name, value)
    try:
        yield
    finally:
        client.delete_tag(run_id, name) if before is None else client.set_tag(run_id, name, before)


@contextmanager
def model_tag(client, model_id: str, name: str, value: str) -> Iterator[None]:
    before = client.get_logged_model(model_id).tags.get(name)
    client.set_logged_model_tags(model_id, {name: value})
    try:
        yield
    finally:
        if before is None:
            client.delete_logged_model_tag(model_id, name)
        else:
            client.set_logged_model_tags(model_id, {name: before})


def differences(client, folder: Path) -> list[str]:
    """As `verify` has them."""
    folder.mkdir()
    try:
        examined = examine(client, URI, folder)
        findings = [*examined.findings, *check_reviews(examined), *check_aliases(client, examined)]
    except (Refused, UnlearnError) as error:
        return [str(error)]
    return [f"{one.part}: {one.message}" for one in findings if one.outcome == "differs"]


@pytest.mark.nightly
def test_every_change_is_found_or_named_as_uncovered(reviewed, tmp_path):
    client = tracking.client()
    assert differences(client, tmp_path / "before") == []
    patterns, used = uncovered(), set()
    made, unseen, allowed = 0, [], []
    for number, (name, change) in enumerate(changes(reviewed)):
        with change():
            found = differences(client, tmp_path / str(number))
        made += 1
        named = {pattern for pattern in patterns if fnmatch(name, pattern)}
        if not found:
            (allowed if named else unseen).append(name)
            used |= named
    assert differences(client, tmp_path / "after") == [], "every change was taken back"
    assert not unseen, "\n".join(unseen)
    assert used == set(patterns), f"nothing of this stays unseen, so the page need not say so: {set(patterns) - used}"
    assert made >= 60, made
    print(f"{made} changes, {made - len(allowed)} found, {len(allowed)} named as uncovered")
