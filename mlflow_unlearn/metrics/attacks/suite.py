"""Every attack that the models at hand allow: on one of them, and on all with their controls."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics.arrays import Floats
from mlflow_unlearn.metrics.attacks.detection import Detection, detect
from mlflow_unlearn.metrics.attacks.held_back import LEAST_GOLDS, PredictionInterval, margin_gap, spread_of_golds
from mlflow_unlearn.metrics.attacks.iam import remembered
from mlflow_unlearn.metrics.attacks.posterior import predictive_scores
from mlflow_unlearn.metrics.attacks.probe import LEAST, probe
from mlflow_unlearn.metrics.attacks.quantile import exceeded, known_of_samples
from mlflow_unlearn.metrics.attacks.rmia import log_ratios
from mlflow_unlearn.metrics.attacks.share import Share, best_threshold, share_remembered
from mlflow_unlearn.metrics.membership import UNMATCHED, class_matched_weights
from mlflow_unlearn.metrics.outputs import Outputs

ATTACKS = ("margin", "quantile", "probe", "rmia", "iam", "posterior")
"""In the order of what they need: no reference, one, two."""
NO_FEATURES = "the model has no linear last layer whose inputs could be seen"
NO_GOLD = "needs a gold standard: a model retrained without the forget set"
AUDITED, ORIGINAL, GOLD, CHEAT = "audited", "original", "gold", "known cheat"
FEW = "fewer than 10 forgotten samples have a class of the unseen set"


@dataclass(frozen=True)
class Target:
    """A model to be attacked.

    Attributes:
        outputs: on ``forget`` and ``test``.
        features: before its last layer ``[N, F]``, of ``forget`` and ``test``; None where it has none to be seen.
    """

    outputs: Outputs
    features: Mapping[str, npt.NDArray[np.float32]] | None

    def log_odds(self, split: str) -> Floats:
        """Of one split ``[N]``."""
        return self.outputs[split].log_odds


@dataclass(frozen=True)
class References:
    """Log odds under models that did not see a sample, NaN under those that did: ``[K, N]`` of both sets."""

    forget: Floats
    unseen: Floats

    @property
    def least(self) -> int:
        """How many of them left out every sample that any has left out."""
        counts = [(~np.isnan(part)).sum(axis=0) for part in (self.forget, self.unseen)]
        return int(min(part[part > 0].min(initial=len(self.forget)) for part in counts))

    @property
    def usable(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which samples of both sets some reference left out."""
        forget, unseen = (np.asarray((~np.isnan(part)).any(axis=0)) for part in (self.forget, self.unseen))
        return forget, unseen


def references_from(golds: Sequence[Target], halves: References | None = None) -> References | None:
    """Gold standards, which left out every sample, and behind them models that left out half of them."""
    parts = [References(*(np.stack([g.log_odds(s) for g in golds]) for s in ("forget", "test")))] if golds else []
    parts += [halves] if halves is not None else []
    if not parts:
        return None
    return References(*(np.vstack([getattr(part, name) for part in parts]) for name in ("forget", "unseen")))


def attack_with_controls(
    audited: Target, original: Target, golds: Sequence[Target], halves: References | None, *, seed: int
) -> tuple[dict[str, dict[str, Detection]], dict[str, str]]:
    """What each attack says of the audited model, of the original, and of each gold standard held back in turn.

    Args:
        audited: the model that is judged; the original itself where that is audited.
        original: the positive control.
        golds: the negative controls, each attacked by means of the others: a single one by what needs none.
        halves: further references, which left out half of the samples each.
        seed: of halves, folds, permutations and the bootstrap.

    Returns:
        Detections by model (``audited``, ``original``, ``gold 1``, …), then by attack; and of the attacks on the
        audited model that were not measured, why.
    """
    calibrating = references_from(golds, halves)
    found: dict[str, dict[str, Detection]] = {}
    found[AUDITED], missing = attack_all(audited, calibrating, seed=seed)
    found[ORIGINAL] = found[AUDITED] if original is audited else attack_all(original, calibrating, seed=seed)[0]
    for number, gold in enumerate(golds):
        rest = [*golds[:number], *golds[number + 1 :]]
        found[f"{GOLD} {number + 1}"], _ = attack_all(gold, references_from(rest, halves), seed=seed)
    return found, missing


def within_golds(
    found: Mapping[str, Mapping[str, Detection]],
    audited: Target,
    golds: Sequence[Target],
    more: Mapping[str, tuple[float, Sequence[float]]] | None = None,
) -> dict[str, tuple[float, PredictionInterval]]:
    """By metric the audited model's value, and what retrained models differ by among themselves.

    Each gold is measured against the others, and the interval says where one more would lie; the audited model's gap is
    the mean of those against all but one. Metrics: the AUC and, where it is resolved, the true positive rate at 1 %
    false alarms of each attack, :func:`margin_gap`, and what ``more`` has.

    Args:
        found: from `attack_with_controls`.
        audited: the model that is judged.
        golds: at least 4; with fewer nothing comes out.
        more: further metrics by name, of the audited model and of each gold.
    """
    if len(golds) < LEAST_GOLDS:
        return {}
    own, odds = audited.log_odds("forget"), np.stack([gold.log_odds("forget") for gold in golds])
    others = [np.delete(odds, k, axis=0) for k in range(len(golds))]
    gaps = [margin_gap(odds[k], rest) for k, rest in enumerate(others)]
    within = {"margin_gap": (float(np.mean([margin_gap(own, rest) for rest in others])), spread_of_golds(gaps))}
    for attack, one in found[AUDITED].items():
        of_golds = [each[attack] for k in range(len(golds)) if attack in (each := found[f"{GOLD} {k + 1}"])]
        if len(of_golds) < len(golds):
            continue
        within[f"AUC by {attack}"] = (one.auc, spread_of_golds([each.auc for each in of_golds]))
        rates = [each.tail.tpr for each in of_golds if each.tail is not None]
        if one.tail is not None and len(rates) == len(golds):
            within[f"TPR at 1 % FPR by {attack}"] = (one.tail.tpr, spread_of_golds(rates))
    return within | {name: (value, spread_of_golds(values)) for name, (value, values) in (more or {}).items()}


def share_between(audited: Target, original: Target, golds: Sequence[Target], *, seed: int) -> Share | str:
    """:func:`share_remembered` by the log odds of the label.

    What retrained models differ by as a whole is the standard deviation, over the audited model and the golds, of the
    rate at which unseen samples are called member, classes matched: none of these has seen them.

    Args:
        audited: the model that is judged.
        original: trained on the forget set.
        golds: not trained on it.
        seed: of the bootstrap.

    Returns:
        The share, or why there is none.
    """
    if not golds:
        return NO_GOLD
    before, retrained = original.log_odds("forget"), np.stack([gold.log_odds("forget") for gold in golds])
    threshold = best_threshold(before, retrained)
    labels = [audited.outputs[split].labels for split in ("forget", "test")]
    _, weights = class_matched_weights(labels[0], labels[1], len(audited.outputs["test"].class_sums))
    if not weights.any():
        return UNMATCHED
    rates = [np.average(each.log_odds("test") >= threshold, weights=weights) for each in (audited, *golds)]
    return share_remembered(audited.log_odds("forget"), before, retrained, float(np.std(rates, ddof=1)), seed=seed)


def log_likelihood(log_odds: npt.ArrayLike) -> Floats:
    """``log p = −log(1 + exp(−m))`` of log odds m, of any shape; NaN stays.

    >>> log_likelihood([0.0, 800.0]).round(4).tolist()
    [-0.6931, -0.0]
    """
    with np.errstate(invalid="ignore"):  # NaN says that there is none
        values: Floats = -np.logaddexp(0.0, -np.asarray(log_odds, dtype=np.float64))
    return values


def attack_all(
    target: Target, references: References | None, *, seed: int
) -> tuple[dict[str, Detection], dict[str, str]]:
    """What each attack says, and of the others why they were not measured.

    Args:
        target: the model.
        references: that it is not one of; None where there are none.
        seed: of halves, folds, permutations and the bootstrap.
    """
    found: dict[str, Detection] = {}
    missing: dict[str, str] = {}
    labels = target.outputs["forget"].labels, target.outputs["test"].labels
    classes = len(target.outputs["test"].class_sums)
    for name, scored in _scores(target, references, seed):
        if isinstance(scored, str):
            missing[name] = scored
            continue
        scores, samples = scored
        known = [own if part is None else own[part] for own, part in zip(labels, samples, strict=True)]
        # A probe has learned which side members are on: that it is wrong tells nothing.
        one_sided = name == "probe"
        detection = detect(scores[0], scores[1], known[0], known[1], classes, seed=seed, one_sided=one_sided)
        if detection is None:
            missing[name] = FEW
        else:
            found[name] = detection
    return found, missing


_Scored = tuple[tuple[Floats, Floats], tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]]
"""Scores of both sets, and of which of their samples: indices, masks, or None for all."""


def _scores(target: Target, references: References | None, seed: int) -> Iterator[tuple[str, _Scored | str]]:
    forget, unseen = target.log_odds("forget"), target.log_odds("test")
    whole = (None, None)
    yield "margin", ((forget, unseen), whole)
    yield from _by_features(target, seed)
    if references is None:
        yield from ((name, "needs a model that was trained without the samples") for name in ("rmia", "iam"))
        yield "posterior", "needs two models that were trained without the samples"
        return
    samples = references.usable
    of_forget, of_unseen = references.forget[:, samples[0]], references.unseen[:, samples[1]]
    own = forget[samples[0]], unseen[samples[1]]
    likelihoods = [log_likelihood(part) for part in own]
    of_both = [log_likelihood(part) for part in (of_forget, of_unseen)]
    ratios = [log_ratios(p, others) for p, others in zip(likelihoods, of_both, strict=True)]
    yield "rmia", ((ratios[0], ratios[1]), samples)
    # Offline: what the original knows of a sample would tell which ones it was trained on.
    lines = remembered(np.concatenate(likelihoods), np.concatenate(of_both, axis=1), 0.0)
    yield "iam", ((lines[: own[0].size], lines[own[0].size :]), samples)
    if references.least < 2:
        yield "posterior", "needs two models that were trained without the samples"
        return
    labels = [target.outputs[split].labels[part] for split, part in zip(("forget", "test"), samples, strict=True)]
    placed = predictive_scores(
        np.concatenate(own),
        np.concatenate([of_forget, of_unseen], axis=1),
        np.concatenate(labels),
        len(target.outputs["test"].class_sums),
    )
    yield "posterior", ((placed[: own[0].size], placed[own[0].size :]), samples)


def _by_features(target: Target, seed: int) -> Iterator[tuple[str, _Scored | str]]:
    if target.features is None:
        yield from ((name, NO_FEATURES) for name in ("quantile", "probe"))
        return
    features = target.features["forget"], target.features["test"]
    labels = target.outputs["forget"].labels, target.outputs["test"].labels
    classes = len(target.outputs["test"].class_sums)
    scores = exceeded(
        target.log_odds("forget"), target.log_odds("test"), *known_of_samples(*features, *labels, classes), seed=seed
    )
    yield "quantile", (scores, (None, None))
    weights = class_matched_weights(labels[0], labels[1], classes)
    own, unseen = (np.flatnonzero(weight) for weight in weights)
    if min(own.size, unseen.size) < LEAST:
        yield "probe", f"needs {LEAST} forgotten and {LEAST} unseen samples of the same classes"
        return
    probed = probe(features[0][own], features[1][unseen], labels[0][own], labels[1][unseen], classes, seed=seed)
    of_probed = own[probed.forget], unseen[probed.unseen]
    yield "probe", ((probed.scores_forget, probed.scores_unseen), of_probed)
