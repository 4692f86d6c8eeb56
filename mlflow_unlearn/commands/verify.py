"""`verify`: does a version still agree with its evidence?"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_unlearn import config
from mlflow_unlearn.errors import Refused, UnlearnError, first_line
from mlflow_unlearn.evidence.record import (
    FOLDER,
)
from mlflow_unlearn.governance.integrity import (
    PROMOTION,
    PROMOTION_TAG,
    Examined,
    Finding,
    examine,
    same,
)
from mlflow_unlearn.registry import forget_requests, tracking
from mlflow_unlearn.registry.versions import (
    Version,
    read_artifact,
)
from mlflow_unlearn.report import table

if TYPE_CHECKING:
    from mlflow_unlearn.session.session import Chosen, Session
    from mlflow_unlearn.session.view import InputSpec


GUARDED = "champion"
"""The alias that nobody should move but `promote`; those that it has moved before are guarded as well."""
TOLERANCE = 1e-3
"""Between a metric and the same one measured again, on another processor or by other threads."""


def verify(options: config.Verify) -> None:
    """Check everything, print it, and refuse if anything differs."""
    with tracking.looking() as client, tracking.scratch() as folder:
        examined = examine(client, options.model_uri, folder, key=options.key)
        findings = [*examined.findings, *_aliases(client, examined)]
        if options.recompute:
            findings += _recomputed(client, examined, options, folder)
    table.show_findings(examined.uri, [(f.part, f.outcome, f.told) for f in findings])
    different = [finding for finding in findings if finding.outcome == "differs"]
    if different:
        raise Refused(
            f"{examined.uri} does not agree with its evidence: {'; '.join(f'{f.part}: {f.told}' for f in different)}"
        )
    same = sum(finding.outcome == "same" for finding in findings)
    rest = f", {len(findings) - same} not checked" if same < len(findings) else ""
    print(f"{examined.uri} agrees with its evidence ({same} checks{rest}).")


def _aliases(client: MlflowClient, examined: Examined) -> Iterator[Finding]:
    """An alias that was moved by hand is not prevented, but seen."""
    name = examined.registered.name
    versions = client.search_model_versions(f"name='{name}'")
    guarded = {key.removeprefix(PROMOTION_TAG) for v in versions for key in v.tags if key.startswith(PROMOTION_TAG)}
    tags = {str(version.version): version.tags for version in versions}
    for alias in examined.registered.aliases:
        part, key = f"alias {alias}", PROMOTION_TAG + alias
        told = examined.registered.tags.get(key)
        later = [number for number, theirs in tags.items() if _promoted_at(theirs.get(key)) > _promoted_at(told)]
        if alias not in {*guarded, GUARDED}:
            yield Finding(part, "not checked", "`promote` has never moved this alias")
        elif told is None:
            yield Finding(part, "differs", "it was moved by hand: no promotion of this version is recorded")
        elif later:
            told = f"it was moved back by hand: version {', '.join(later)} was promoted later"
            yield Finding(part, "differs", told)
        else:
            yield _same_promotion(part, told, examined)
    # An alias that `promote` gave to this version, and that a version without a later promotion has now.
    for alias, number in client.get_registered_model(name).aliases.items():
        key = PROMOTION_TAG + alias
        told = examined.registered.tags.get(key)
        if told is None or alias in examined.registered.aliases:
            continue
        if _promoted_at(tags[str(number)].get(key)) <= _promoted_at(told):
            yield Finding(f"alias {alias}", "differs", f"it was moved by hand from here to version {number}")


def _promoted_at(told: str | None) -> str:
    """ISO time in UTC, as the tag of a promotion has it; empty without one."""
    try:
        return str(json.loads(told or "{}").get("at", ""))
    except (ValueError, AttributeError):
        return ""


def _same_promotion(part: str, told: str, examined: Examined) -> Finding:
    expected = {
        "uri": examined.uri,
        "weights_sha256": examined.evidence.result.weights_sha256,
        "evidence_sha256": examined.sha256,
    }
    try:
        promotion = json.loads(told)
        recorded = json.loads(read_artifact(promotion["run_id"], f"{FOLDER}/{PROMOTION}"))
    except (ValueError, KeyError, TypeError, MlflowException, OSError) as error:
        hidden = isinstance(error, MlflowException) and error.error_code == "PERMISSION_DENIED"
        told = f"the record of its promotion cannot be read ({first_line(error)})"
        return Finding(part, "not checked" if hidden else "differs", told)
    if promotion != recorded:
        return Finding(part, "differs", "the tag of its promotion is not what the promotion's run recorded")
    for name, value in expected.items():
        if promotion.get(name) != value:
            return same(part, promotion.get(name), value, f"the {name} that was promoted")
    told = f"promoted by {promotion.get('by')} at {promotion.get('at')}"
    if promotion.get("override"):
        told += f", in spite of the verdict: {promotion['override']}"
    return Finding(part, "same", told)


def _recomputed(client: MlflowClient, examined: Examined, options: config.Verify, folder: Path) -> Iterator[Finding]:
    """The metrics once more; where anything differs, nothing is loaded."""
    # Here and not above: whoever only compares digests must not wait for them.
    from mlflow_unlearn.engine.predictions import read_splits
    from mlflow_unlearn.metrics.suite import compare, compute_metrics
    from mlflow_unlearn.registry.flavor import load_module
    from mlflow_unlearn.session.session import open_measured
    from mlflow_unlearn.session.view import training_mask

    evidence = examined.evidence
    if examined.differences:
        yield Finding("metrics", "not checked", "what differs from its evidence is not loaded")
        return
    reading = config.Evaluate(
        model_uri=examined.uri,
        data=options.data or evidence.data.source,
        device="cpu",
        seed=evidence.method.hyperparameters.get("seed", 0),
    )

    def choose(version: Version, _: Version, view: "InputSpec") -> "Chosen":
        """What the requests name and what the version retains: neither asks the source version, which may be gone."""
        named = [forget_requests.read_manifest(client, request_id) for request_id in evidence.request_ids]
        ids = view.source.train.ids
        forget = np.flatnonzero(np.any([manifest.mask(ids) for manifest in named], axis=0))
        if not len(forget):
            raise UnlearnError(f"{view.source.spec!r} has none of the forgotten samples any more")
        return view, forget, np.flatnonzero(training_mask(version, view.source)), evidence.data.salt

    def opened(original_uri: str | None) -> "tuple[Session, Version]":
        chosen = reading.model_copy(update={"original_uri": original_uri})
        return open_measured(client, chosen, folder, progress=False, choose=choose)

    try:
        try:
            session, original = opened(None)
        except UnlearnError as error:
            session, original = opened(examined.uri)
            yield Finding("metrics of original", "not checked", f"they cannot be measured again: {first_line(error)}")
        before = load_module(original, None, len(session.view.classes), trainable=False)
    except UnlearnError as error:
        yield Finding("metrics", "not checked", f"they cannot be measured again: {first_line(error)}")
        return
    sets = {"forget": session.forget_manifest, "retain": session.manifest(session.retain)}
    for role, manifest in sets.items():
        if manifest.digest != getattr(evidence.data, role).sha256:
            yield Finding("metrics", "differs", f"the {role} set is another one in these data")
    # Not from the cache, which is no evidence.
    own = read_splits(session.module, session.splits, session.hardware, name="unlearned")
    if original is session.version:  # alone: what is relative to the original is left out
        columns = {"unlearned": compute_metrics(own, seed=reading.seed)}
    else:
        readings = {
            "original": read_splits(before, session.splits, session.hardware, name="original"),
            "unlearned": own,
        }
        columns = compare(readings, seed=reading.seed)
    for model, metrics in columns.items():
        expected = evidence.metrics[model].values
        shared = {key: abs(value - expected[key]) for key, value in metrics.items() if key in expected}
        worst = max(shared, key=lambda key: shared[key])
        outcome: Literal["same", "differs"] = "same" if shared[worst] <= TOLERANCE else "differs"
        told = f"{len(shared)} of {len(expected)} measured again; largest difference: {shared[worst]:.2g}, of {worst}"
        yield Finding(f"metrics of {model}", outcome, told)
    apart = [request.id for request in evidence.requests if request.metrics] + ["their union"] * bool(evidence.union)
    if rest := [*(["gold"] if "gold" in evidence.metrics else []), *apart]:
        yield Finding("other metrics", "not checked", f"those of {', '.join(rest)} are not measured again")
