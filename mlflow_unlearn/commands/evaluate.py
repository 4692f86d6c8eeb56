"""`evaluate`: measure a version."""

import sys

from mlflow_unlearn import config
from mlflow_unlearn.governance.publish import log_metrics
from mlflow_unlearn.metrics.suite import compare
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.dataset_inputs import log_source_model
from mlflow_unlearn.report import table
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.measured import evaluate_measured, open_measured


def evaluate(options: config.Evaluate) -> None:
    """Measure a version, the version that it came from, and a gold standard, side by side."""
    progress = sys.stderr.isatty()
    with tracking.run("evaluate", options) as run_id, tracking.scratch() as folder:
        client = tracking.client()
        session, original_version = open_measured(client, options, folder, progress=progress)
        version = session.version
        log_source_model(client, run_id, version.model_id)
        session.log_manifests()
        if options.plan:
            models = 1 + (original_version is not version) + (options.gold_uri is not None)
            dry_run.show(dry_run.estimate(session, [], models=models, record=None))
            return
        outputs, name = evaluate_measured(session, original_version, options)
        columns = compare(outputs, seed=options.seed)
        log_metrics(columns, model_ids={"original": original_version.model_id, name: version.model_id})
        table.show(columns)
        print(f"Measured {version.uri} (run {run_id}); nothing was registered.")
