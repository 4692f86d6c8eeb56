"""Watches a method at work in the real loop: its phases, what their losses saw, and the student before and after."""

from dataclasses import dataclass, field, replace

import torch
from toy import CPU, original, splits, state

from mlflow_unlearn.engine.loop import Outcome, RunOptions, run
from mlflow_unlearn.methods import Batch, Method, Phase


@dataclass
class Watched:
    """One phase as it happened; ``batches`` hold no gradients."""

    phase: Phase
    before: dict[str, torch.Tensor]
    batches: list[Batch] = field(default_factory=list)
    after: dict[str, torch.Tensor] = field(default_factory=dict)

    def column(self, name: str) -> torch.Tensor:
        """One attribute of all batches, sample by sample."""
        return torch.cat([getattr(batch, name) for batch in self.batches])


def watch(method: Method, model=None, sets=None, seed=0, **options) -> tuple[Outcome, list[Watched]]:
    """Run ``method`` as `unlearn` would; it cannot tell that it is watched."""
    seen: list[Watched] = []
    inner = method.plan

    def noted(phase, record):
        def loss(batch):
            record.batches.append(replace(batch, logits=batch.logits.detach()))
            return phase.loss(batch)

        return replace(phase, loss=loss)

    def plan(workspace):
        running = inner(workspace)
        try:
            phase = next(running)
            while True:
                seen.append(Watched(phase, state(workspace.model)))
                stats = yield noted(phase, seen[-1])
                seen[-1].after = state(workspace.model)
                phase = running.send(stats)
        except StopIteration as stop:
            return stop.value

    method.plan = plan
    outcome = run(model or original(), method, vars(sets or splits()), CPU, RunOptions(seed, **options))
    return outcome, seen
