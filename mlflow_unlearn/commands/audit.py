"""`audit`: attack a version as strongly as the models at hand allow, with a control for each attack."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlflow
from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.auditing.audit import Audit
from mlflow_unlearn.auditing.known_cheat import known_cheat
from mlflow_unlearn.auditing.opening import listed, open_audit
from mlflow_unlearn.auditing.references import ReferenceTrainer
from mlflow_unlearn.auditing.relearning import CAP, LARGEST
from mlflow_unlearn.console import note, say
from mlflow_unlearn.errors import NotPassed
from mlflow_unlearn.evidence.audit import AUDIT_FILE, AuditRecord, Decision
from mlflow_unlearn.evidence.review import MODEL_URI_TAG
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.versions import Version
from mlflow_unlearn.report import audit_table
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.checks import check_outputs
from mlflow_unlearn.session.measured import open_measured
from mlflow_unlearn.session.recipe import training_recipe
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.session.view import training_mask
from mlflow_unlearn.spelling import command_line

CHEAT_SEED = 4000
"""Of the known cheat."""
_MORE_REFERENCES = 16
"""As docs/audit.md recommends them."""


class AuditOutcome(CommandResult):
    """Whether the forgotten samples are told apart, and by what."""

    run_id: str
    uri: str = Field(description="The audited version.")
    decision: Decision | None = Field(None, description="Null with plan=true.")
    why: str | None = Field(None, description="In words.")
    audit: AuditRecord | None = Field(None, description="As stored with the run: attacks by model, with p-values.")
    plan: dry_run.Estimate | None = Field(None, description="With plan=true.")

    def next_step(self, options: Any) -> str | None:
        """To judge it, in the light of the audit."""
        return command_line("review", "--model-uri", self.uri) if self.audit is not None else None


def audit(options: config.Audit) -> AuditOutcome:
    """Print what every attack says of the version and of each control, and log the record; with ``plan`` what it costs.

    Raises:
        NotPassed: nothing can be decided, or the forgotten samples are told apart.
    """
    progress = sys.stderr.isatty()
    with tracking.prepared("audit", options) as run, tracking.scratch() as folder:
        client = tracking.client()
        session, original_version = open_measured(client, options, folder, progress=progress)
        opened = open_audit(session, original_version, options, listed(options.gold_uri), listed(options.alike_uri))
        session = opened.session
        run_id = session.begin(run, plan=options.plan)
        trains = options.references or options.relearn or options.cheat
        trainer = _trainer(session, original_version, options, run_id) if trains else None
        if options.plan:
            models = 2 - (opened.original is session.module) + len(opened.golds) + len(opened.alike) + options.cheat
            plan = _dry_run(session, trainer, options, models=models)
            return AuditOutcome(run_id=run_id, uri=session.version.uri, plan=plan)
        record = (opened if trainer is None else _with_trained(opened, trainer, options)).record(run_id)
        decision, why = record.decision
        # Before the record, so that none is there that no search finds.
        mlflow.set_tags({"unlearn.audit.decision": decision, MODEL_URI_TAG: session.version.uri})
        mlflow.log_text(record.to_json(), AUDIT_FILE)
        mlflow.log_metrics(audit_table.metrics(record))
        audit_table.show(record)
        found = AuditOutcome(run_id=run_id, uri=session.version.uri, decision=decision, why=why, audit=record)
        if decision != "not told apart":
            sentence = f"{session.version.uri}: {decision} ({why}); the record is in run {run_id}"
            raise NotPassed(sentence, found, _ways_out(options, session.version.uri, decision))
        say(f"{session.version.uri}: {decision} ({why}; run {run_id}).")
        return found


def _ways_out(options: config.Audit, uri: str, decision: Decision) -> Iterator[str]:
    """What can be done about a version that is not found as if retrained, each ready to paste."""
    if decision == "not decided" and options.references < _MORE_REFERENCES:
        golds = () if options.gold_uri is None else ("--gold-uri", options.gold_uri)
        more = ("--references", str(_MORE_REFERENCES))
        yield command_line("audit", "--model-uri", uri, *golds, *more, remark="trains them, with which more is decided")
    remark = "judges the version in the light of this audit, and names what can be done"
    yield command_line("review", "--model-uri", uri, remark=remark)


def _with_trained(audit: Audit, trainer: ReferenceTrainer, options: config.Audit) -> Audit:
    """With what has to be trained for it."""
    original, training = trainer.session, trainer.training
    cheat = None
    if options.cheat:
        splits = trainer.recipe.splits(original.splits)
        cheat = known_cheat(original.module, splits, training, original.hardware, seed=CHEAT_SEED)
    return replace(
        audit,
        references=trainer.by(options.recipe).references(options.references) if options.references else [],
        cheat=cheat,
        relearn=training.lr if options.relearn else None,
    )


def _dry_run(
    session: Session, trainer: ReferenceTrainer | None, options: config.Audit, *, models: int
) -> dry_run.Estimate:
    """As if no reference had been trained before; each sees half of the training set."""
    workloads = []
    if trainer is not None:
        recipe, half = trainer.recipe, trainer.by(options.recipe).recipe
        workloads = [dry_run.Workload("retrain", half.params, 0, half, options.references // 2)]
        workloads += [dry_run.Workload("retrain", recipe.params, 0, recipe, int(options.cheat), "known cheat")]
        workloads = [one for one in workloads if one.times]
        session = trainer.session
    if options.relearn:
        note(f"Note: relearning takes up to {2 * LARGEST * CAP} samples more for each model, which are not counted.")
    return dry_run.show(dry_run.estimate(session, workloads, models=models + options.references, record=None))


def _trainer(session: Session, original: Version, options: config.Audit, run_id: str) -> ReferenceTrainer:
    source = session.view.source
    module = load_module(original, options.architecture, len(session.view.classes))
    shape = check_outputs(module, session.splits.test, session.view.classes, original.uri)
    trained = replace(session, module=module, version=original, view=replace(session.view, shape=shape))
    recipe = training_recipe(trained, options)
    mask = training_mask(original, source)
    everything = session.view.dataset(source.train, module, "the training set", session.hardware.progress)
    experiment = mlflow.get_run(run_id).info.experiment_id
    return ReferenceTrainer(trained, recipe, everything, mask.nonzero()[0], experiment)
