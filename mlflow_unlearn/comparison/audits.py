"""What an audit says of each model of a comparison, beside what it says of retraining."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from mlflow_unlearn.evidence.audit import DetectionRecord, decide, recorded
from mlflow_unlearn.metrics.attacks.suite import (
    AUDITED,
    GOLD,
    ORIGINAL,
    Target,
    attack_all,
    attack_with_controls,
    references_from,
    share_between,
)

AUDIT_COLUMNS = ("audit_gap", "share_remembered", "told_apart")
"""Of the table, where audits rank; the first one decides."""
_Attacks = Mapping[str, DetectionRecord]


class ComparisonAudit:
    """All golds calibrate the attacks on a model; each gold is held back in turn, and a model read beside these."""

    def __init__(self, original: Target, golds: Sequence[Target]) -> None:
        """Keep them; they are attacked once, with the first model.

        Args:
            original: the positive control.
            golds: at least two.
        """
        self.original, self.golds = original, golds

    def of_model(self, target: Target, seed: int) -> dict[str, float]:
        """`AUDIT_COLUMNS` of a model, as far as they can be told.

        ``audit_gap`` is the largest ``|AUC − mean AUC of the golds held back|`` over the attacks that both allow, and
        ``told_apart`` 1 or 0 by the decision of an audit, not there where that is *not decided*.

        Args:
            target: the model.
            seed: of the attacks.
        """
        own = recorded(attack_all(target, references_from(self.golds), seed=seed)[0])
        decision, _ = decide({**self._controls, AUDITED: own})
        told = {} if decision == "not decided" else {"told_apart": float(decision == "told apart")}
        return {**_gap(own, self._of_golds), **self._share(target, self.golds, seed), **told}

    def of_original(self) -> dict[str, float]:
        """The same of the original, as if nothing had been unlearned."""
        return self.of_model(self.original, 0)

    def of_gold(self, number: int) -> dict[str, float]:
        """The same of a gold, by means of the others."""
        rest = [k for k in range(len(self.golds)) if k != number]
        gap = _gap(self._of_golds[number], [self._of_golds[k] for k in rest])
        return {**gap, **self._share(self.golds[number], [self.golds[k] for k in rest], 0)}

    @cached_property
    def _controls(self) -> dict[str, _Attacks]:
        found, _ = attack_with_controls(self.original, self.original, self.golds, None, seed=0)
        return {name: recorded(one) for name, one in found.items() if name == ORIGINAL or name.startswith(GOLD)}

    @property
    def _of_golds(self) -> list[_Attacks]:
        return [self._controls[f"{GOLD} {k + 1}"] for k in range(len(self.golds))]

    def _share(self, target: Target, golds: Sequence[Target], seed: int) -> dict[str, float]:
        share = share_between(target, self.original, golds, seed=seed)
        return {} if isinstance(share, str) else {"share_remembered": share.value}


def _gap(own: _Attacks, golds: Sequence[_Attacks]) -> dict[str, float]:
    both = [name for name in own if all(name in one for one in golds)]
    gaps = [abs(own[name].auc - float(np.mean([one[name].auc for one in golds]))) for name in both]
    return {"audit_gap": max(gaps)} if gaps else {}
