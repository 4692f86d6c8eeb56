"""The evidence record of what a command has made: every field from what was read, measured and stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from mlflow_unlearn.api import Result
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.predictions import evaluate_split
from mlflow_unlearn.evidence.provenance import Provenance
from mlflow_unlearn.evidence.record import (
    EXACT_LIMITS,
    LIMITS,
    ClassRow,
    DataRecord,
    Evidence,
    Exactness,
    Figures,
    Histogram,
    Learning,
    Measured,
    RequestRecord,
    ResultRecord,
    RunRecord,
    SampleSet,
    SourceRecord,
    sha256,
)
from mlflow_unlearn.metrics.accuracy import accuracy
from mlflow_unlearn.metrics.catalog import METRICS
from mlflow_unlearn.metrics.divergence import rf_js_divergence
from mlflow_unlearn.metrics.outputs import (
    MetricInputs,
    Outputs,
    SplitOutputs,
    concatenate_outputs,
    select_samples,
    without_classes,
)
from mlflow_unlearn.metrics.reading import read_after
from mlflow_unlearn.metrics.suite import Metrics, compute_metrics
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.digests import file_digests
from mlflow_unlearn.registry.identity import whoami
from mlflow_unlearn.registry.network import persistently
from mlflow_unlearn.registry.system import system_facts
from mlflow_unlearn.registry.versions import read_artifact
from mlflow_unlearn.report.description import worded
from mlflow_unlearn.session.lineage import lineage, previous, request_record
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.session.view import ASSUMED, RECORDED

BINS = 30
_DRAWN = ("forget", "retain", "test")


@dataclass(frozen=True)
class VersionCandidate:
    """What one command has made and measured, before it is registered.

    Attributes:
        provenance: how the weights came about.
        result: of the unlearning.
        outputs: of ``original``, ``unlearned`` and, where there is one, ``gold``.
        columns: their metrics.
        incomplete: why a wholly forgotten class counts as not forgotten.
    """

    provenance: Provenance
    result: Result
    outputs: Mapping[str, Outputs]
    columns: Mapping[str, Metrics]
    incomplete: str | None = None


def build(
    session: Session,
    run_id: str,
    candidate: VersionCandidate,
    *,
    name: str,
    model_id: str | None,
    files: dict[str, str],
) -> Evidence:
    """The record, but for the number of the version, which the registry has yet to give: see `numbered`.

    Args:
        session: the source version, opened.
        run_id: of the command.
        candidate: what was made and measured.
        name: of the registered model.
        model_id: of the new LoggedModel.
        files: SHA-256 by path, as stored.
    """
    version, view = session.version, session.view
    before = previous(version)
    by_request, union = _measured_apart(session, candidate)
    columns = {model: measured(metrics) for model, metrics in candidate.columns.items()}
    requests = [
        record.model_copy(update={"metrics": by_request.get(record.id, {})})
        for record in [*(earlier.record for earlier in session.earlier), *map(_details, _filed(session))]
    ]
    return Evidence(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        made_by=whoami(),
        run=RunRecord(
            id=run_id,
            config_sha256=_config_digest(run_id),
            experiment_id=persistently(partial(session.client.get_run, run_id)).info.experiment_id,
        ),
        source=SourceRecord(
            uri=version.uri,
            model_id=version.model_id,
            weights_sha256=weights_digest(session.module),
            evidence_sha256=before[1] if before is not None else None,
            files=file_digests(version.path),
            loading_ran_code=bool(session.code),
            code=session.code,
        ),
        result=ResultRecord(
            name=name,
            version="",
            model_id=model_id,
            weights_sha256=weights_digest(candidate.result.model),
            files=files,
        ),
        lineage=lineage(before),
        request_ids=[request.id for request in session.requests],
        requests=requests,
        data=_data(session),
        provenance=candidate.provenance,
        learning=Learning(
            history=[dict(epoch) for epoch in candidate.result.history],
            final=dict(candidate.result.final),
            warnings=list(candidate.result.warnings),
            seconds=candidate.result.seconds,
        ),
        metrics=columns,
        reading=read_after(columns["unlearned"].membership, columns["original"].membership),
        union=union,
        incomplete=candidate.incomplete,
        exactness=(exactness := _exactness(session, candidate)),
        limits=EXACT_LIMITS if exactness.trained_without else LIMITS,
        definitions={key: metric.definition for key, metric in METRICS.items()},
        figures=_figures(candidate.outputs, view.classes),
        hardware={"device": str(session.hardware.device), "precision": session.hardware.precision},
        system=system_facts(),
    )


def _exactness(session: Session, candidate: VersionCandidate) -> Exactness:
    """What the method claims; of an ensemble that another one has changed, that it ends what could be claimed."""
    old = session.version.record
    if candidate.result.exactness is not None:
        return candidate.result.exactness.model_copy(update={"checkpoints": len(candidate.result.kept)})
    if old is None or old.shards is None or old.shards.ended_by is not None:
        return Exactness()
    return Exactness(
        covers=(
            f"The source version could be unlearned exactly, shard by shard; {candidate.provenance.method} has changed "
            "all of its weights and has ended that: this version is approximate, and so is what is made from it, "
            "but by retraining."
        )
    )


def numbered(draft: Evidence, version: str) -> Evidence:
    """The record of the version that the registry has made of it."""
    result = draft.result.model_copy(update={"version": version})
    requests = [
        request.model_copy(update={"carried_out_by": result.uri}) if request.id in draft.request_ids else request
        for request in draft.requests
    ]
    return worded(draft.model_copy(update={"result": result, "requests": requests}))


def measured(metrics: Metrics) -> Measured:
    """As it is stored."""
    return Measured(values=dict(metrics), not_computed=metrics.missing, counts=metrics.counts)


def _config_digest(run_id: str) -> str:
    return sha256(read_artifact(run_id, "config.yaml"))


def _data(session: Session) -> DataRecord:
    source = session.view.source

    def described(manifest: Manifest) -> SampleSet:
        return SampleSet(samples=len(manifest.ids), sha256=manifest.digest)

    earlier = session.manifest(session.forgotten_before) if session.earlier else None
    if earlier is not None and session.salt is not None:
        earlier = earlier.hashed(session.salt)
    return DataRecord(
        source=source.spec,
        digest=source.digest,
        transform=session.view.transform,
        classes=list(session.view.classes),
        salt=session.salt,
        forget=described(session.forget_manifest),
        retain=described(session.manifest(session.retain)),
        val=described(Manifest(source.val.ids)),
        test=described(Manifest(source.test.ids)),
        forgotten_before=None if earlier is None else described(earlier),
        split=source.split,
        trained_on=_trained_on(session),
    )


def _trained_on(session: Session) -> str:
    manifest = session.version.training_manifest
    if manifest is None:
        return ASSUMED
    known = len(manifest.ids)
    lost = known - len(session.forget) - len(session.retain)
    return RECORDED if not lost else f"{RECORDED}; {lost} of its {known} samples are no longer in the training split"


def _filed(session: Session) -> Sequence[forget_requests.ForgetRequest]:
    known = {earlier.record.id for earlier in session.earlier}
    return [request for request in session.requests if request.id not in known]


def _details(request: forget_requests.ForgetRequest) -> RequestRecord:
    return request_record(request.id, request.run_id, by="")


def _measured_apart(
    session: Session, candidate: VersionCandidate
) -> tuple[dict[str, dict[str, Measured]], dict[str, Measured]]:
    """Metrics of each request, and of all that was ever forgotten, where these are not the forget set itself."""
    if len(session.requests) + len(session.earlier) < 2:
        return {}, {}
    models: dict[str, nn.Module] = {"original": session.module, "unlearned": candidate.result.model}
    seed = candidate.provenance.seed
    test = candidate.outputs["original"]["test"]
    by_request: dict[str, dict[str, Measured]] = {}
    union: dict[str, Measured] = {}
    before = session.forgotten_before
    for model, module in models.items():
        outputs = candidate.outputs[model]

        def measure(forget: SplitOutputs, outputs: Outputs = outputs) -> Measured:
            return measured(compute_metrics({**outputs, "forget": forget}, original_test=test, seed=seed))

        for id, samples in session.samples_of_requests().items():
            if not samples.any():
                continue  # they have left the data source
            by_request.setdefault(id, {})[model] = measure(select_samples(outputs["forget"], samples))
        if not len(before):
            continue
        dataset = session.view.dataset(
            session.view.source.train.subset(before), session.module, "what was forgotten before", False
        )
        module = session.hardware.place(module)
        earlier = evaluate_split(
            module, dataset, session.hardware, keep_probabilities=True, description=f"{model}, earlier requests"
        )
        for request in session.earlier:
            samples = np.isin(before, request.indices)
            if not samples.any():
                continue
            by_request.setdefault(request.record.id, {})[model] = measure(select_samples(earlier, samples))
        only = ~np.isin(before, session.forget)
        union[model] = measure(concatenate_outputs([outputs["forget"], select_samples(earlier, only)]))
    return by_request, union


def _figures(outputs: Mapping[str, Outputs], classes: Sequence[str]) -> Figures:
    highest = float(np.log(len(classes)))
    removed = MetricInputs(outputs["original"]).removed
    drawn = {model: without_classes(own, removed) for model, own in outputs.items()}
    return Figures(
        entropy=_histogram(drawn, "entropies", 0.0, highest),
        confidence=_histogram(drawn, "confidences", 0.0, 1.0),
        classes=[_class_row(outputs, index, name) for index, name in enumerate(classes)],
    )


def _histogram(outputs: Mapping[str, Outputs], name: str, low: float, high: float) -> Histogram:
    edges = np.linspace(low, high, BINS + 1)
    shares: dict[str, dict[str, list[float]]] = {}
    for model, sets in outputs.items():
        for role in _DRAWN:
            values = np.clip(getattr(sets[role], name), low, high)
            counts, _ = np.histogram(values, edges)
            shares.setdefault(role, {})[model] = (counts / max(1, counts.sum())).round(6).tolist()
    return Histogram(edges=edges.round(6).tolist(), shares=shares)


def _class_row(outputs: Mapping[str, Outputs], index: int, name: str) -> ClassRow:
    original = outputs["original"]
    forget, test = (original[role].labels == index for role in ("forget", "test"))
    unseen = forget.any() and test.any() and bool((original["retain"].labels == index).any())

    def of_models(value: Any, defined: bool) -> dict[str, float]:
        return {model: float(value(sets)) for model, sets in outputs.items()} if defined else {}

    return ClassRow(
        name=name,
        forget=int(forget.sum()),
        test=int(test.sum()),
        acc_test=of_models(lambda s: accuracy(s["test"].predictions, s["test"].labels, test), bool(test.any())),
        rf_jsd=of_models(
            lambda s: rf_js_divergence(s["forget"].class_sums, original["test"].class_sums, [index]), unseen
        ),
    )
