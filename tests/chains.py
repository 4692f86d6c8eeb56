"""A chain of three requests on digits, and ways to change what is stored of it for a moment."""

import hashlib
import json
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path

import mlflow
from stores import Outcome, call

from mlflow_unlearn.evidence.record import SIGNATURE, Evidence, read_evidence
from mlflow_unlearn.evidence.review import read_chain
from mlflow_unlearn.evidence.signing import public_key, sign
from mlflow_unlearn.report.card import model_card
from mlflow_unlearn.report.description import described, people_tags

QUICK = '{"epochs": 3, "lr": 0.003}'
LENIENT = """
name: lenient
rules: [{metric: acc_test, at_least: 0.1}]
membership: null
minimum: {forget: 2}
"""
STRICT = "name: strict\nrules: [{metric: acc_test, at_least: 1.1}]\nmembership: null\n"


def folder_of(version: str, name: str = "clf") -> Path:
    """Where the files of a version really lie."""
    model_id = mlflow.models.get_model_info(f"models:/{name}/{version}").model_id
    location = mlflow.MlflowClient().get_logged_model(model_id).artifact_location
    return Path(location.removeprefix("file://"))


def evidence_of(version: str) -> Evidence:
    return read_evidence(folder_of(version))[0]


@contextmanager
def flipped(path: Path):
    """One byte of a file is another one inside the block."""
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if content else b"x")
    try:
        yield
    finally:
        path.write_bytes(content)


def review(version: str, policy: str = "lenient.yaml") -> Outcome:
    return call("review", "--model-uri", f"models:/clf/{version}", "--policy", policy)


@contextmanager
def changed(path: Path, content: bytes | None):
    """A file has another content inside the block, or is gone."""
    before = path.read_bytes() if path.exists() else None
    try:
        path.unlink() if content is None else path.write_bytes(content)
        yield
    finally:
        path.unlink(missing_ok=True) if before is None else path.write_bytes(before)


@contextmanager
def tagged(chain, version: str, **tags: str):
    """A version has these tags inside the block."""
    before = chain.tags(version)
    names = {name.replace("__", "."): value for name, value in tags.items()}
    try:
        for name, value in names.items():
            chain.client.set_model_version_tag("clf", version, name, value)
        yield
    finally:
        for name in names:
            if name in before:
                chain.client.set_model_version_tag("clf", version, name, before[name])
            else:
                chain.client.delete_model_version_tag("clf", version, name)


@contextmanager
def rewritten(chain, version: str, edited: Evidence):
    """What somebody with EDIT on a version and its run can do: the record is another one wherever it is named."""
    run = Path(chain.client.get_run(edited.run.id).info.artifact_uri.removeprefix("file://"))
    real = evidence_of(version)
    tags = {"unlearn.evidence_sha256": edited.sha256, **edited.tags()}
    with ExitStack() as stack:
        stack.callback(lambda: restate(chain, version, real))
        for folder in (folder_of(version), run):
            stack.enter_context(changed(folder / "evidence" / "evidence.json", edited.to_json().encode()))
            stack.enter_context(changed(folder / "evidence" / "model_card.md", model_card(edited).encode()))
        stack.enter_context(tagged(chain, version, **tags))
        restate(chain, version, edited)
        yield


def restate(chain, version: str, evidence: Evidence) -> None:
    """What people read of a version is of this record and of the last review in its tags."""
    last = read_chain(chain.tags(version)).last
    chain.client.update_model_version("clf", version, description=described(evidence, last))
    for name, value in people_tags(evidence, last).items():
        chain.client.set_model_version_tag("clf", version, name, value)


@contextmanager
def resigned(chain, version: str, edited: Evidence, key: Path):
    """What somebody with EDIT and a key of their own can do: the record is another one, and rightly signed by them."""
    mine = edited.model_copy(update={"public_key": public_key(str(key))})
    run = Path(chain.client.get_run(edited.run.id).info.artifact_uri.removeprefix("file://"))
    folders = [folder / "evidence" for folder in (folder_of(version), run)]
    with rewritten(chain, version, mine), changed(folders[0] / SIGNATURE, b""), changed(folders[1] / SIGNATURE, b""):
        sign(folders[0], str(key))
        shutil.copy(folders[0] / SIGNATURE, folders[1])
        yield


def last_review(chain, version: str) -> tuple[int, str, Path]:
    """Number, run and file of the last review."""
    n = max(int(k.rpartition(".")[2]) for k in chain.tags(version) if k.startswith("unlearn.review."))
    run_id = json.loads(chain.tags(version)[f"unlearn.review.{n}"])["run_id"]
    location = chain.client.get_run(run_id).info.artifact_uri.removeprefix("file://")
    return n, run_id, Path(location) / "evidence" / f"review-{n}.json"


@contextmanager
def reviewed_otherwise(chain, version: str, verdict: dict):
    """With EDIT on the version and its last review's run: the review has another verdict wherever it is stored."""
    n, run_id, path = last_review(chain, version)
    before = chain.client.get_run(run_id).data.tags
    forged = json.dumps(json.loads(path.read_text()) | {"verdict": verdict}).encode()
    head = f"{n} {hashlib.sha256(forged).hexdigest()}"
    told = json.loads(chain.tags(version)[f"unlearn.review.{n}"]) | {"sha256": head.split()[1], "verdict": "pass"}
    tags = {f"unlearn__review__{n}": json.dumps(told), "unlearn__reviews": head, "unlearn__verdict": "pass"}
    for key, value in (("unlearn.reviews", head), ("unlearn.verdict", "pass")):
        chain.client.set_tag(run_id, key, value)
    try:
        with changed(path, forged), tagged(chain, version, **tags):
            restate(chain, version, evidence_of(version))
            yield
    finally:
        restate(chain, version, evidence_of(version))
        for key in ("unlearn.reviews", "unlearn.verdict"):
            chain.client.set_tag(run_id, key, before[key])


@contextmanager
def forged_review(chain, version: str):
    """The last review says that the signature holds."""
    verdict = json.loads(last_review(chain, version)[2].read_text())["verdict"]
    *checks, last = verdict["checks"]
    checks.append(last | {"outcome": "pass", "value": "true", "note": "signed"})
    with reviewed_otherwise(chain, version, verdict | {"checks": checks}):
        yield
