"""One audit: the models, what each attack says of each, and the record."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from torch import nn

from mlflow_unlearn.audit.attacks import References, Target, attack_all, log_likelihood
from mlflow_unlearn.audit.references import Reference, as_references
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.features import last_features
from mlflow_unlearn.engine.predictions import evaluate_split
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.audit import (
    AUDITED,
    GOLD,
    ORIGINAL,
    AuditRecord,
    DetectionRecord,
    ReferenceRecord,
    SampleRecord,
    ShareRecord,
    recorded,
)
from mlflow_unlearn.evidence.record import sha256
from mlflow_unlearn.metrics.arrays import Floats
from mlflow_unlearn.metrics.attacks.detection import detect
from mlflow_unlearn.metrics.attacks.iam import remembered
from mlflow_unlearn.metrics.attacks.share import best_threshold, share_remembered
from mlflow_unlearn.metrics.membership import class_matched_weights
from mlflow_unlearn.registry.identity import whoami
from mlflow_unlearn.session.session import Session

LEAST_UNSEEN = 100
WORST = 10
NO_GOLD = "needs a gold standard: give gold_uri="


@dataclass(frozen=True)
class AuditGold:
    """A gold standard by its version's URI."""

    uri: str
    module: nn.Module


@dataclass(frozen=True)
class Audit:
    """What an audit has to work with.

    Attributes:
        session: with the audited version as its module.
        original_uri: of the version before unlearning.
        original: its module; that of the session where the audited version is the original.
        golds: that have seen no forgotten sample.
        references: trained on halves.
        unusable: URIs that were given as gold standards and are none, and why.
    """

    session: Session
    original_uri: str
    original: nn.Module
    golds: Sequence[AuditGold]
    references: Sequence[Reference]
    unusable: Mapping[str, str] = field(default_factory=dict)

    def record(self, run_id: str) -> AuditRecord:
        """Run every attack and control.

        Args:
            run_id: of the audit.

        Raises:
            UnlearnError: there are too few unseen samples, or a single class.
        """
        start = time.perf_counter()
        session = self.session
        weights, forget = weights_digest(session.module), session.forget_manifest.digest
        # Nobody chooses the seed of halves, folds and permutations, or would choose it until the version passes.
        seed = int(sha256(f"{weights} {session.manifest(session.forget).digest}".encode())[:8], 16)
        if len(session.view.classes) < 2:
            raise UnlearnError("the version knows a single class: there is nothing that its outputs could give away")
        if (unseen := len(session.view.source.test)) < LEAST_UNSEEN:
            raise UnlearnError(f"{unseen} unseen samples are too few to audit by: give data= with {LEAST_UNSEEN}")
        audited = self._target(session.module, "audited version")
        original = audited if self.original is session.module else self._target(self.original, "original")
        golds = [self._target(gold.module, f"gold {number + 1}") for number, gold in enumerate(self.golds)]
        calibrating = self._references(golds)
        found = {AUDITED: (audited, calibrating), ORIGINAL: (original, calibrating)}
        if len(golds) > 1:
            for number, gold in enumerate(golds):
                rest = golds[:number] + golds[number + 1 :]
                found[f"{GOLD} {number + 1}"] = (gold, self._references(rest))
        attacks: dict[str, dict[str, DetectionRecord]] = {}
        missing: dict[str, str] = {}
        for name, (target, references) in found.items():
            detections, absent = attack_all(target, references, seed=seed)
            attacks[name] = recorded(detections)
            missing |= absent if name == AUDITED else {}
        share = _share(audited, original, golds, seed)
        scores, ids = self._by_sample(audited, original, calibrating)
        order = np.argsort(-scores, kind="stable")[:WORST]
        return AuditRecord(
            run_id=run_id,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            by=whoami(),
            uri=session.version.uri,
            weights_sha256=weights,
            original_uri=self.original_uri,
            forget_sha256=forget,
            data_sha256=session.view.source.digest,
            seed=seed,
            tier=min(calibrating.least, 2),
            references=[
                *(ReferenceRecord(uri=g.uri, sha256=weights_digest(g.module), kind="gold") for g in self.golds),
                *(ReferenceRecord(uri=f"runs:/{r.run_id}", sha256=r.sha256, kind="reference") for r in self.references),
            ],
            unusable=dict(self.unusable),
            attacks=attacks,
            not_measured=missing,
            share_remembered=None if isinstance(share, str) else share,
            share_missing=share if isinstance(share, str) else "",
            completeness=1 - float(scores.mean()) if scores.size else None,
            remembered_p95=float(np.quantile(scores, 0.95)) if scores.size else None,
            worst=[SampleRecord(id=ids[i], remembered=float(scores[i])) for i in order],
            two_versions_auc=None if audited is original else _two_versions(audited, original, seed),
            seconds=time.perf_counter() - start,
        )

    def _target(self, module: nn.Module, name: str) -> Target:
        """One pass over the forget and the test set, which leaves outputs and features."""
        hardware = self.session.hardware
        model = hardware.place(module)
        outputs, features = {}, {}
        for split in ("forget", "test"):
            with last_features(model) as caught:
                data = getattr(self.session.splits, split)
                outputs[split] = evaluate_split(model, data, hardware, description=f"{name} on {split}")
            if caught:
                features[split] = np.concatenate([part.numpy() for part in caught])
        return Target(outputs, features or None)

    def _references(self, golds: Sequence[Target]) -> References:
        """AuditGold standards have left out every sample, the others half of them."""
        parts = [References(*(np.stack([g.log_odds(s) for g in golds]) for s in ("forget", "test")))] if golds else []
        parts += [as_references(self.references, self.session)] if self.references else []
        if not parts:
            sizes = len(self.session.forget), len(self.session.view.source.test)
            return References(*(np.empty((0, size)) for size in sizes))
        return References(*(np.vstack([getattr(p, name) for p in parts]) for name in ("forget", "unseen")))

    def _by_sample(self, audited: Target, original: Target, references: References) -> tuple[Floats, tuple[str, ...]]:
        """How far each forgotten sample is remembered, and its id, of those that a reference left out."""
        samples = references.usable[0] if references.least else np.zeros(0, dtype=np.bool_)
        if not samples.any():
            return np.zeros(0), ()
        own, before = (log_likelihood(each.log_odds("forget")[samples]) for each in (audited, original))
        scores = remembered(own, log_likelihood(references.forget[:, samples]), before)
        session = self.session
        plain = session.manifest(session.forget[samples])
        # Hashed one at a time, since a manifest is sorted.
        hidden = [Manifest((i,)).hashed(session.salt).ids[0] if session.salt is not None else i for i in plain.ids]
        return scores, tuple(hidden)


def _share(audited: Target, original: Target, golds: Sequence[Target], seed: int) -> ShareRecord | str:
    if not golds:
        return NO_GOLD
    own, before = audited.log_odds("forget"), original.log_odds("forget")
    retrained = np.stack([gold.log_odds("forget") for gold in golds])
    # What one gold standard differs by from another: by the rates of unseen samples under it and the audited model.
    threshold = best_threshold(before, retrained)
    _, weights = class_matched_weights(
        audited.outputs["forget"].labels, audited.outputs["test"].labels, len(audited.outputs["test"].class_sums)
    )
    rates = (
        [float(np.average(each.log_odds("test") >= threshold, weights=weights)) for each in (audited, golds[0])]
        if weights.any()
        else [0.0, 0.0]
    )
    found = share_remembered(own, before, retrained, abs(rates[0] - rates[1]) / np.sqrt(2), seed=seed)
    if isinstance(found, str):
        return found
    return ShareRecord(**{name: getattr(found, name) for name in ShareRecord.model_fields})


def _two_versions(audited: Target, original: Target, seed: int) -> float | None:
    """AUC of ``m_original − m_audited`` between forgotten and unseen samples, for someone who has both."""
    parts = [original.log_odds(split) - audited.log_odds(split) for split in ("forget", "test")]
    labels = [audited.outputs[split].labels for split in ("forget", "test")]
    found = detect(parts[0], parts[1], labels[0], labels[1], len(audited.outputs["test"].class_sums), seed=seed)
    return None if found is None else found.auc
