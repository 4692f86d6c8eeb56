"""One audit: the models, what each attack says of each, and the record."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import takewhile

import numpy as np
import numpy.typing as npt
from torch import nn

from mlflow_unlearn.auditing.references import Reference, as_references
from mlflow_unlearn.auditing.relearning import CAP, relearning
from mlflow_unlearn.auditing.retained import retained_samples
from mlflow_unlearn.data.canaries import Canaries
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.predictions import attack_target, evaluate_split
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.audit import (
    CENSORED,
    RELEARNING,
    AuditFigures,
    AuditRecord,
    CanaryRecord,
    ManyRecord,
    ReferenceRecord,
    RelearnRecord,
    SampleRecord,
    ShareRecord,
    WithinRecord,
    recorded,
)
from mlflow_unlearn.evidence.record import sha256
from mlflow_unlearn.metrics.arrays import Floats
from mlflow_unlearn.metrics.attacks.canaries import e_value, sign_test
from mlflow_unlearn.metrics.attacks.detection import RATES, Detection, auc_interval
from mlflow_unlearn.metrics.attacks.held_back import LEAST_GOLDS
from mlflow_unlearn.metrics.attacks.iam import remembered
from mlflow_unlearn.metrics.attacks.many import LEAST_MODELS, klom, relabelled, u_lira
from mlflow_unlearn.metrics.attacks.share import Share
from mlflow_unlearn.metrics.attacks.suite import (
    AUDITED,
    CHEAT,
    GOLD,
    ORIGINAL,
    References,
    Target,
    attack_all,
    attack_with_controls,
    log_likelihood,
    references_from,
    share_between,
    within_golds,
)
from mlflow_unlearn.metrics.membership import class_matched_weights
from mlflow_unlearn.registry.identity import whoami
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.spelling import spelled

LEAST_UNSEEN = 100
WORST = 10
BINS = 20


@dataclass(frozen=True)
class AuditGold:
    """A gold standard by its version's URI, with the digest of its weights."""

    uri: str
    module: nn.Module
    sha256: str


@dataclass(frozen=True)
class Audit:
    """What an audit has to work with.

    Attributes:
        session: with the audited version as its module.
        original_uri: of the version before unlearning.
        original: its module; that of the session where the audited version is the original.
        golds: that have seen no forgotten sample.
        unusable: URIs that were given as gold standards and are none, and why.
        canaries: of the original's training.
        references: trained on halves.
        cheat: a model that has forgotten nothing and looks as if, to be caught; None if it was not asked for.
        alike: modules of versions that were made as the audited one, with other seeds.
        relearn: peak learning rate of the original's training, by which samples are learned again; None: they are not.
    """

    session: Session
    original_uri: str
    original: nn.Module
    golds: Sequence[AuditGold]
    unusable: Mapping[str, str] = field(default_factory=dict)
    canaries: Canaries | None = None
    references: Sequence[Reference] = ()
    cheat: nn.Module | None = None
    relearn: float | None = None
    alike: Sequence[nn.Module] = ()

    def record(self, run_id: str) -> AuditRecord:
        """Run every attack and control.

        Args:
            run_id: of the audit.
        """
        start = time.perf_counter()
        session = self.session
        weights, forget = weights_digest(session.module), session.forget_manifest.digest
        # Nobody chooses the seed of halves, folds and permutations, or would choose it until the version passes.
        seed = int(sha256(f"{weights} {session.manifest(session.forget).digest}".encode())[:8], 16)
        audited = self._target(session.module, "audited version")
        original = audited if self.original is session.module else self._target(self.original, "original")
        golds = [self._target(gold.module, f"gold {number + 1}") for number, gold in enumerate(self.golds)]
        halves = as_references(self.references, session.forget) if self.references else None
        found, missing = attack_with_controls(audited, original, golds, halves, seed=seed)
        if self.cheat is not None:
            cheat = self._target(self.cheat, CHEAT)
            found[CHEAT], _ = attack_all(cheat, references_from(golds, halves), seed=seed)
        relearned = self._relearned(original, seed, missing)
        modules = self._modules
        targets = dict(zip(modules, [audited, *([original] if ORIGINAL in modules else []), *golds], strict=True))
        share = share_between(audited, original, golds, seed=seed)
        calibrating = references_from(golds, halves)
        scores, ids = self._by_sample(audited, original, calibrating)
        order = np.argsort(-scores, kind="stable")[:WORST]
        by_model = {AUDITED: scores, ORIGINAL: _remembered(original, original, calibrating)[0]}
        for k, gold in enumerate(golds):
            rest = references_from([*golds[:k], *golds[k + 1 :]], halves)
            by_model[f"{GOLD} {k + 1}"] = _remembered(gold, original, rest)[0]
        coins = self._coins(audited, original)
        of_golds = [name for name in by_model if name.startswith(GOLD)]
        more = {}
        if scores.size and len(golds) >= LEAST_GOLDS:
            more["completeness"] = 1 - float(scores.mean()), [1 - float(by_model[name].mean()) for name in of_golds]
        if relearned and len(golds) >= LEAST_GOLDS:
            ratios = {name: float(np.log(one.ratio)) for name, one in relearned.items()}
            if {AUDITED, *of_golds} <= ratios.keys():
                more["log ratio of relearning"] = ratios[AUDITED], [ratios[name] for name in of_golds]
        return AuditRecord(
            run_id=run_id,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            by=whoami(),
            uri=session.version.uri,
            weights_sha256=weights,
            original_uri=self.original_uri,
            original_sha256=weights_digest(self.original),
            transform=session.view.transform,
            forget_sha256=forget,
            data_sha256=session.view.source.digest,
            seed=seed,
            tier=0 if calibrating is None else min(calibrating.least, 2),
            references=[
                *(ReferenceRecord(uri=g.uri, sha256=g.sha256, kind="gold") for g in self.golds),
                *(
                    ReferenceRecord(uri=f"runs:/{r.run_id}", sha256=r.sha256, kind="reference", epochs=r.epochs)
                    for r in self.references
                ),
            ],
            unusable=dict(self.unusable),
            attacks={
                model: recorded(one, [test[model].p_value for test in (coins, relearned) if model in test])
                for model, one in found.items()
            },
            canaries=coins,
            relearning=relearned,
            many=self._many(audited, golds, missing, seed),
            retained=retained_samples(session, modules, targets, self._names, seed=seed),
            not_measured=missing,
            share_remembered=None if isinstance(share, str) else _share_record(share),
            share_missing=share if isinstance(share, str) else "",
            completeness=1 - float(scores.mean()) if scores.size else None,
            remembered_p95=float(np.quantile(scores, 0.95)) if scores.size else None,
            drawn=_figures(found, by_model),
            within_golds={
                metric: WithinRecord(value=value, low=interval.low, high=interval.high)
                for metric, (value, interval) in within_golds(found, audited, golds, more).items()
            },
            worst=[SampleRecord(id=ids[i], remembered=float(scores[i])) for i in order],
            two_versions_auc=None if audited is original else _two_versions(audited, original),
            seconds=time.perf_counter() - start,
        )

    @property
    def _modules(self) -> dict[str, nn.Module]:
        """By name: audited, original where that is another one, golds."""
        own = {AUDITED: self.session.module}
        before = {} if self.original is self.session.module else {ORIGINAL: self.original}
        return own | before | {f"{GOLD} {number + 1}": gold.module for number, gold in enumerate(self.golds)}

    def _names(self, samples: npt.NDArray[np.int64]) -> list[str]:
        """Ids of training samples, in their order, hashed where the request hides them."""
        train, salt = self.session.view.source.train, self.session.salt
        ids = [train.ids[index] for index in samples]
        # One at a time, since a manifest is sorted.
        return ids if salt is None else [Manifest((name,)).hashed(salt).ids[0] for name in ids]

    def _target(self, module: nn.Module, name: str) -> Target:
        return attack_target(module, self.session.splits, self.session.hardware, name=name)

    def _relearned(self, original: Target, seed: int, missing: dict[str, str]) -> dict[str, RelearnRecord]:
        """By model; what cannot be measured goes to ``missing``."""
        session = self.session
        if self.relearn is None:
            return {}
        made = relearning(original, session.splits, self.relearn, session.hardware, seed=seed)
        if isinstance(made, str):
            missing[RELEARNING] = made
            return {}
        modules = self._modules | ({} if self.cheat is None else {CHEAT: self.cheat})
        measured = {name: made.of(module, name) for name, module in modules.items()}
        found = {name: one for name, one in measured.items() if not isinstance(one, str)}
        for name, why in measured.items():
            if isinstance(why, str):
                missing[RELEARNING if name == AUDITED else f"{RELEARNING}, {name}"] = why
        own = found.get(AUDITED)
        if own is not None and own.censored > CENSORED:
            missing[RELEARNING] = f"{own.censored:.0%} of the parts were not learned again in {CAP} epochs"
        if ORIGINAL not in modules and own is not None:
            found = {AUDITED: own, ORIGINAL: own, **found}
        return found

    def _many(self, audited: Target, golds: Sequence[Target], missing: dict[str, str], seed: int) -> ManyRecord | None:
        """What the method gives away, where there are models enough; else ``missing`` says so, if it was asked for."""
        if not self.alike:
            return None
        if min(1 + len(self.alike), len(golds)) < LEAST_MODELS:
            had = f"there are {1 + len(self.alike)} and {len(golds)}"
            missing["u-lira, klom"] = f"need {LEAST_MODELS} versions made alike and {LEAST_MODELS} golds: {had}"
            return None
        made = [audited, *(self._target(module, "version made alike") for module in self.alike)]
        odds = [np.stack([model.log_odds("forget") for model in kind]) for kind in (made, golds)]
        lira, far = float(u_lira(*odds).mean()), _p95_of_klom(*odds)
        by_lot = relabelled(lambda a, b: float(u_lira(a, b).mean()), *odds, seed=seed)
        low, high = np.quantile(by_lot, [0.025, 0.975])
        return ManyRecord(
            unlearned=len(made),
            golds=len(golds),
            u_lira=lira,
            u_lira_low=float(low),
            u_lira_high=float(high),
            klom_p95=far,
            klom_p95_null=float(np.quantile(relabelled(_p95_of_klom, *odds, seed=seed), 0.95)),
        )

    def _coins(self, audited: Target, original: Target) -> dict[str, CanaryRecord]:
        """The test on the pairs whose trained twin is in the forget set, by its log odds and its ghost's."""
        session, train = self.session, self.session.view.source.train
        places = {name: index for index, name in enumerate(train.ids)}
        rows, known = {index: row for row, index in enumerate(session.forget.tolist())}, set(session.retain.tolist())
        # In the order that was committed to, as far as all are forgotten: someone who picks twins by how they behave
        # would leave others out.
        tranches = takewhile(
            lambda pair: places.get(pair.twin) not in known, self.canaries.pairs if self.canaries else ()
        )
        pairs = [
            (rows[places[pair.twin]], places[pair.ghost])
            for pair in tranches
            if places.get(pair.twin) in rows and pair.ghost in places
        ]
        if not pairs:
            return {}
        twins, ghosts = (np.array(column) for column in zip(*pairs, strict=True))
        dataset = session.view.dataset(train.subset(ghosts), session.module, "the ghosts", session.hardware.progress)
        found: dict[str, CanaryRecord] = {}
        for name, module, target in ((AUDITED, session.module, audited), (ORIGINAL, self.original, original)):
            if found and module is session.module:
                found[name] = found[AUDITED]
                continue
            model = session.hardware.place(copy.deepcopy(module))
            unseen = evaluate_split(model, dataset, session.hardware, description=f"{name} on ghosts").log_odds
            own = target.log_odds("forget")[twins]
            if (test := sign_test(own, unseen)) is not None:
                signs = np.sign(own - unseen).astype(int)
                found[name] = CanaryRecord(**test._asdict(), e_value=e_value(signs[signs != 0].tolist()))
        return found

    def _by_sample(
        self, audited: Target, original: Target, references: References | None
    ) -> tuple[Floats, tuple[str, ...]]:
        """How far each forgotten sample is remembered, and its id, of those that a reference left out."""
        scores, samples = _remembered(audited, original, references)
        return scores, tuple(self._names(self.session.forget[samples]))


def _p95_of_klom(unlearned: Floats, retrained: Floats) -> float:
    return float(np.quantile(klom(unlearned, retrained), 0.95))


def check_auditable(session: Session) -> None:
    """Before hours are spent on it.

    Raises:
        UnlearnError: there are too few unseen samples, or a single class.
    """
    if len(session.view.classes) < 2:
        raise UnlearnError("the version has a single class, so its outputs reveal nothing about single samples")
    if (unseen := len(session.view.source.test)) < LEAST_UNSEEN:
        raise UnlearnError(
            f"{unseen} unseen samples are too few to audit by: give {spelled('data')} with {LEAST_UNSEEN}"
        )


def _remembered(
    target: Target, original: Target, references: References | None
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """How far each sample that a reference left out is remembered, and which these are; none without a reference."""
    if references is None:
        return np.zeros(0), np.zeros(len(target.log_odds("forget")), dtype=np.bool_)
    samples = references.usable[0]
    if not samples.any():
        return np.zeros(0), samples
    own, before = (log_likelihood(each.log_odds("forget")[samples]) for each in (target, original))
    return remembered(own, log_likelihood(references.forget[:, samples]), before), samples


def _figures(found: Mapping[str, Mapping[str, Detection]], by_model: Mapping[str, Floats]) -> AuditFigures:
    before = found[ORIGINAL]
    attack = max(before, key=lambda name: before[name].auc) if before else ""
    return AuditFigures(
        attack=attack,
        curves={model: list(one[attack].curve) for model, one in found.items() if attack in one and model != CHEAT},
        rates=list(RATES),
        remembered={
            model: (np.histogram(scores, BINS, (0.0, 1.0))[0] / scores.size).tolist()
            for model, scores in by_model.items()
            if scores.size
        },
    )


def _share_record(share: Share) -> ShareRecord:
    return ShareRecord(**{name: getattr(share, name) for name in ShareRecord.model_fields})


def _two_versions(audited: Target, original: Target) -> float | None:
    """AUC of ``m_original − m_audited`` between forgotten and unseen samples, for someone who has both."""
    forget, unseen = (original.log_odds(split) - audited.log_odds(split) for split in ("forget", "test"))
    labels = [audited.outputs[split].labels for split in ("forget", "test")]
    matched, weights = class_matched_weights(labels[0], labels[1], len(audited.outputs["test"].class_sums))
    return auc_interval(forget[matched > 0], unseen, weights).auc if matched.sum() > 1 else None
