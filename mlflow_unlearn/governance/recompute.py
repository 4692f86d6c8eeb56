"""The metrics of a version once more, beside those of its evidence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from mlflow.tracking import MlflowClient

from mlflow_unlearn.config import Evaluate
from mlflow_unlearn.console import first_line
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.governance.integrity import Examined, IntegrityFinding
from mlflow_unlearn.governance.retrained import check_trained_anew
from mlflow_unlearn.metrics.catalog import METRICS
from mlflow_unlearn.metrics.suite import compare, compute_metrics
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.versions import Version
from mlflow_unlearn.session.measured import Chosen, open_measured
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.session.view import InputSpec, training_mask

TOLERANCE = 1e-3
"""Between a metric and the same one measured again, on another processor or by other threads."""


def recompute(
    client: MlflowClient, examined: Examined, data: str | None, folder: Path, *, no_code: bool
) -> Iterator[IntegrityFinding]:
    """Measure again, and compare; where anything differs from the evidence, nothing is loaded.

    Args:
        client: of the registry.
        examined: the version and its evidence.
        data: source of the samples; None takes the evidence's.
        folder: for temporary files.
        no_code: refuse what would run code when it is loaded.

    Raises:
        Refused: something would.
    """
    evidence = examined.evidence
    if examined.differences:
        yield IntegrityFinding("metrics", "not checked", "what differs from its evidence is not loaded")
        return
    reading = Evaluate(
        model_uri=examined.uri,
        data=data or evidence.data.source,
        device="cpu",
        seed=evidence.provenance.seed,
        no_code=no_code,
    )

    def choose(version: Version, _: Version, view: InputSpec) -> Chosen:
        """What the requests name and what the version retains: neither asks the source version, which may be gone."""
        named = [forget_requests.read_manifest(client, request_id) for request_id in evidence.request_ids]
        ids = view.source.train.ids
        forget = np.flatnonzero(np.any([manifest.mask(ids) for manifest in named], axis=0))
        if not len(forget):
            raise UnlearnError(f"{view.source.spec!r} no longer has any of the forgotten samples")
        return view, forget, np.flatnonzero(training_mask(version, view.source)), evidence.data.salt

    def opened(original_uri: str | None) -> tuple[Session, Version]:
        chosen = reading.model_copy(update={"original_uri": original_uri})
        return open_measured(client, chosen, folder, progress=False, choose=choose)

    try:
        try:
            session, original = opened(None)
        except Refused:
            raise
        except UnlearnError as error:
            session, original = opened(examined.uri)
            yield IntegrityFinding(
                "metrics of original", "not checked", f"they cannot be measured again: {first_line(error)}"
            )
        before = load_module(original, None, len(session.view.classes), trainable=False)
    except Refused:
        raise
    except UnlearnError as error:
        yield IntegrityFinding("metrics", "not checked", f"they cannot be measured again: {first_line(error)}")
        return
    sets = {"forget": session.forget_manifest, "retain": session.manifest(session.retain)}
    for role, manifest in sets.items():
        if manifest.digest != getattr(evidence.data, role).sha256:
            yield IntegrityFinding("metrics", "differs", f"the {role} set is another one in these data")
    # Not from the cache, which is not evidence.
    own = evaluate_splits(session.module, session.splits, session.hardware, name="unlearned")
    if original is session.version:  # alone: what is relative to the original is left out
        columns = {"unlearned": compute_metrics(own, seed=reading.seed, definitions=evidence.definitions)}
    else:
        outputs = {
            "original": evaluate_splits(before, session.splits, session.hardware, name="original"),
            "unlearned": own,
        }
        columns = compare(outputs, seed=reading.seed, definitions=evidence.definitions)
    # A later release may have changed one.
    unknown = {k for k, n in evidence.definitions.items() if k in METRICS and n > METRICS[k].definition}
    if unknown:
        reason = f"this release does not know the definitions of {', '.join(sorted(unknown))}"
        yield IntegrityFinding("definitions", "not checked", reason)
    for model, metrics in columns.items():
        expected = {key: value for key, value in evidence.metrics[model].values.items() if key not in unknown}
        shared = {key: abs(value - expected[key]) for key, value in metrics.items() if key in expected}
        if not shared:
            yield IntegrityFinding(f"metrics of {model}", "not checked", "none of them is measured again")
            continue
        worst = max(shared, key=lambda key: shared[key])
        outcome: Literal["same", "differs"] = "same" if shared[worst] <= TOLERANCE else "differs"
        largest = f"largest difference: {shared[worst]:.2g}, of {worst}"
        message = f"{len(shared)} of {len(expected)} measured again; {largest}"
        yield IntegrityFinding(f"metrics of {model}", outcome, message)
    apart = [request.id for request in evidence.requests if request.metrics] + ["their union"] * bool(evidence.union)
    if rest := [*(["gold"] if "gold" in evidence.metrics else []), *apart]:
        yield IntegrityFinding("other metrics", "not checked", f"those of {', '.join(rest)} are not measured again")
    yield from check_trained_anew(session, evidence)
