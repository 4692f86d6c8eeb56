"""`audit`: attack a version as strongly as the models at hand allow, with a control for each attack."""

import sys
from dataclasses import replace

import mlflow
from torch import nn

from mlflow_unlearn import config
from mlflow_unlearn.auditing.audit import Audit, AuditGold, check_auditable
from mlflow_unlearn.auditing.known_cheat import known_cheat
from mlflow_unlearn.auditing.references import ReferenceTrainer
from mlflow_unlearn.auditing.relearning import CAP, LARGEST
from mlflow_unlearn.console import note
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.errors import Refused
from mlflow_unlearn.evidence.audit import AUDIT_FILE
from mlflow_unlearn.evidence.record import read_evidence
from mlflow_unlearn.evidence.review import MODEL_URI_TAG
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.dataset_inputs import log_source_model
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.versions import Version
from mlflow_unlearn.report import audit_table
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.canaries import canaries_of
from mlflow_unlearn.session.checks import check_outputs
from mlflow_unlearn.session.gold import SawForgotten, open_retrained
from mlflow_unlearn.session.measured import open_measured
from mlflow_unlearn.session.recipe import training_recipe
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.session.view import training_mask

CHEAT_SEED = 4000
"""Of the known cheat."""


def audit(options: config.Audit) -> None:
    """Print what every attack says of the version and of each control, and log the record; with ``plan`` what it costs.

    Raises:
        Refused: nothing can be decided, or the forgotten samples are told apart.
    """
    progress = sys.stderr.isatty()
    with tracking.run("audit", options) as run_id, tracking.scratch() as folder:
        client = tracking.client()
        session, original_version = open_measured(client, options, folder, progress=progress)
        log_source_model(client, run_id, session.version.model_id)
        session = _hashed_as_recorded(session, options)
        session.log_manifests()
        own = original_version is session.version
        original = (
            session.module
            if own
            else load_module(original_version, options.architecture, len(session.view.classes), trainable=False)
        )
        check_auditable(session)
        golds, unusable = _golds(session, original, options)
        trains = options.references or options.relearn or options.cheat
        trainer = _trainer(session, original_version, options, run_id) if trains else None
        if options.plan:
            _dry_run(session, trainer, options, models=1 + (not own) + len(golds) + options.cheat)
            return
        audited = Audit(session, original_version.uri, original, golds, unusable, canaries_of(original_version))
        if trainer is not None:
            audited = _with_trained(audited, trainer, options)
        record = audited.record(run_id)
        decision, why = record.decision
        # Before the record, so that none is there that no search finds.
        mlflow.set_tags({"unlearn.audit.decision": decision, MODEL_URI_TAG: session.version.uri})
        mlflow.log_text(record.to_json(), AUDIT_FILE)
        mlflow.log_metrics(audit_table.metrics(record))
        audit_table.show(record)
        if decision != "not told apart":
            raise Refused(f"{session.version.uri}: {decision} ({why}); the record is in run {run_id}")
        print(f"{session.version.uri}: {decision} ({why}; run {run_id}).")


def _golds(session: Session, original: nn.Module, options: config.Audit) -> tuple[list[AuditGold], dict[str, str]]:
    """The gold standards that were named, and those that are none: a control that is not retrained controls nothing."""
    golds: list[AuditGold] = []
    unusable: dict[str, str] = {}
    taken = {weights_digest(session.module): "the audited version", weights_digest(original): "the original"}
    for uri in filter(None, (part.strip() for part in (options.gold_uri or "").split(","))):
        try:
            version, module = open_retrained(session, options, uri)
        except SawForgotten as error:
            unusable[uri] = str(error)
        else:
            digest, record = weights_digest(module), version.record
            if record is None or version.training_manifest is None or record.method not in ("train", "retrain"):
                unusable[uri] = f"{uri} does not record that it was trained anew, and on what: it is no gold standard"
            elif digest in taken:
                unusable[uri] = f"{uri} has the weights of {taken[digest]}: it is not another gold standard"
            else:
                taken[digest] = uri
                golds.append(AuditGold(uri, module, digest))
    for why in unusable.values():
        note(f"Note: {why}; it is left out.")
    return golds, unusable


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


def _hashed_as_recorded(session: Session, options: config.Audit) -> Session:
    """With the salt of the version's evidence, so that its forget set has the digest that the evidence has."""
    if options.forget is not None:
        return session
    try:
        evidence, _ = read_evidence(session.version.path)
    except FileNotFoundError:
        return session
    return session if evidence.data.salt is None else replace(session, salt=evidence.data.salt)


def _dry_run(session: Session, trainer: ReferenceTrainer | None, options: config.Audit, *, models: int) -> None:
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
    dry_run.show(dry_run.estimate(session, workloads, models=models + options.references, record=None))


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
