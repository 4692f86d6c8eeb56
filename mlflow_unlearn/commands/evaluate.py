"""`evaluate`: measure a version."""

import sys
from typing import Any

from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import say
from mlflow_unlearn.evidence.record import Measured
from mlflow_unlearn.governance.evidence_builder import measured
from mlflow_unlearn.governance.publish import log_metrics
from mlflow_unlearn.metrics.suite import compare
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.report import table
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.gold import open_gold
from mlflow_unlearn.session.measured import evaluate_measured, open_measured
from mlflow_unlearn.spelling import command_line


class EvaluateResult(CommandResult):
    """What the models are like."""

    run_id: str
    uri: str = Field(description="The version that was measured.")
    original_uri: str = Field(description="What it was measured against; itself, if it came from no other.")
    gold_uri: str | None
    metrics: dict[str, Measured] = Field(description="By model: original, unlearned, gold; empty with plan=true.")
    plan: dry_run.Estimate | None = Field(None, description="With plan=true.")

    def next_step(self, options: Any) -> str | None:
        """To judge what was unlearned."""
        return command_line("review", "--model-uri", self.uri) if "unlearned" in self.metrics else None


def evaluate(options: config.Evaluate) -> EvaluateResult:
    """Measure a version, the version that it came from, and a gold standard, side by side."""
    progress = sys.stderr.isatty()
    with tracking.prepared("evaluate", options) as run, tracking.scratch() as folder:
        client = tracking.client()
        session, original_version = open_measured(client, options, folder, progress=progress)
        version, gold = session.version, open_gold(session, options)
        run_id = session.begin(run, plan=options.plan)
        uris = {"uri": version.uri, "original_uri": original_version.uri, "gold_uri": options.gold_uri}
        if options.plan:
            models = 1 + (original_version is not version) + (options.gold_uri is not None)
            plan = dry_run.show(dry_run.estimate(session, [], models=models, record=None))
            return EvaluateResult(run_id=run_id, **uris, metrics={}, plan=plan)
        outputs, name = evaluate_measured(session, original_version, options, gold)
        columns = compare(outputs, seed=options.seed)
        log_metrics(columns, model_ids={"original": original_version.model_id, name: version.model_id})
        table.show(columns)
        say(f"Measured {version.uri} (run {run_id}); nothing was registered.")
        return EvaluateResult(run_id=run_id, **uris, metrics={name: measured(own) for name, own in columns.items()})
