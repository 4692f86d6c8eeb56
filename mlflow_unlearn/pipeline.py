"""The whole flow, command by command: read this file first."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities.model_registry import ModelVersion

from mlflow_unlearn import config, forget_requests, tracking
from mlflow_unlearn.compute import isolated_rng
from mlflow_unlearn.data.datasets import Augmented
from mlflow_unlearn.data.forget import resolve_forget, retained
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.sources import load_source
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.evaluation import Metrics, read, read_splits, residual_accuracy
from mlflow_unlearn.job import (
    Job,
    View,
    check_alike,
    check_outputs,
    console,
    make_splits,
    new_record,
    open_gold,
    open_job,
    open_view,
    parse_params,
    pick_hardware,
    training_mask,
)
from mlflow_unlearn.loop import Epoch
from mlflow_unlearn.loop import run as run_method
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.methods.retrain import Retrain
from mlflow_unlearn.metrics.accuracy import accuracy
from mlflow_unlearn.models import build_model, weights_digest
from mlflow_unlearn.registry import Record, check_name, example_images, load_module, open_version, register
from mlflow_unlearn.report import table
from mlflow_unlearn.report.evidence import describe, evidence
from mlflow_unlearn.unlearning import Result
from mlflow_unlearn.unlearning import unlearn as unlearn_model

INCOMPLETE = 0.05
"""Accuracy on wholly forgotten classes above which class unlearning is called incomplete."""


def unlearn(options: config.Unlearn) -> None:
    """Carry out the pending requests of a version: open, measure, unlearn, measure again, register, mark done."""
    progress = sys.stderr.isatty()
    with tracking.run("unlearn", options) as run_id, tracking.scratch() as folder:
        client = tracking.client()
        name = check_name(options.register_as) if options.register_as else None
        params = parse_params(options.params)
        get_method(options.method)(params)  # a misspelt hyperparameter is told before anything is loaded
        job = open_job(client, run_id, options, folder, progress=progress)
        name = target_name(job, name)
        gold_module = open_gold(client, options.gold_uri, job.view, job.retain, job.splits.test, folder, options)
        job.log_manifests()

        original = job.read_original(force=options.force)
        job = job.filed(options)
        result = unlearn_model(
            job.module,
            job.splits,
            method=options.method,
            params=params,
            seed=options.seed,
            device=job.hardware.device,
            precision=job.hardware.precision,
            num_workers=options.num_workers,
            progress=progress,
            on_epoch=log_epoch,
        )
        mlflow.log_params({f"unlearn.params.{key}": value for key, value in result.params.items()})
        log_final(result)
        if weights_digest(result.model) == weights_digest(job.module):
            raise NothingToUnlearn(nothing_to_unlearn(result.final))

        readings = read_splits(result.model, job.splits, job.hardware, name="unlearned")
        gold = None if gold_module is None else read_splits(gold_module, job.splits, job.hardware, name="gold")
        columns = {
            "original": job.measure(original, original, gold, options.seed),
            "unlearned": job.measure(readings, original, gold, options.seed),
        }
        if gold is not None:
            columns["gold"] = job.measure(gold, original, gold, options.seed)
        recipe = {**result.params, "seed": options.seed}
        publish(job, run_id, name, result, options.method, recipe, columns, residual_accuracy(readings), options)


def publish(
    job: Job,
    run_id: str,
    name: str,
    result: Result,
    method: str,
    recipe: dict[str, Any],
    columns: Mapping[str, Metrics],
    residual: float | None,
    options: config.Reads,
) -> ModelVersion:
    """Log the metrics, register the new version with its evidence, mark the requests done, and show the table.

    ``residual`` is the accuracy that is left on wholly forgotten classes, if there are any.
    """
    log_metrics(columns)
    after = columns["unlearned"]
    tags = {
        "unlearn.method": method,
        "unlearn.source_uri": job.version.uri,
        "unlearn.request_ids": ",".join(request.id for request in job.requests),
        "unlearn.run_id": run_id,
    }
    if residual is not None and residual > INCOMPLETE:
        tags["unlearn.incomplete"] = f"accuracy {residual:.4f} on the wholly forgotten part of the forget set"
        console.print(f"Warning: the class is not forgotten: {tags['unlearn.incomplete']}; see docs/method.md.")
    record = new_record(job, options, method, recipe)
    version = register(
        job.client,
        result.model,
        name,
        record,
        job.manifest(job.retain),
        folder=job.folder,
        source=job.version,
        tags=tags,
        metrics=after,
        description=describe(job, method, recipe, columns),
    )
    uri = f"models:/{name}/{version.version}"
    tracking.log_json(evidence(job, run_id, uri, method, recipe, result, columns), "evidence.json")
    forget_requests.mark_done(job.client, job.requests, uri)
    table.show(columns)
    print(f"Registered {name} version {version.version} from {job.version.uri}.")
    if job.version.model_id is None:
        print(f"Note: {job.version.uri} has no LoggedModel: its lineage is in the tags and in evidence.json alone.")
    return version


def train(options: config.Train) -> None:
    """Train a classifier on the source's training part, less what is excluded, and register it."""
    progress = sys.stderr.isatty()
    with tracking.run("train", options) as run_id, tracking.scratch() as folder:
        client = tracking.client()
        check_name(options.name)
        source = load_source(options.data)
        kept = np.arange(len(source.train))
        if options.exclude is not None:
            spec = options.exclude
            if len(spec) == 12 and not Path(spec).exists() and ":" not in spec:
                spec = f"request:{spec}"
            everything = np.ones(len(source.train), dtype=np.bool_)
            excluded = resolve_forget(
                spec, source, everything, lambda request: forget_requests.read_manifest(client, request)
            )
            kept = retained(everything, excluded)
        view = View(source, options.transform, source.classes, None)
        module_for_transform = None
        if options.transform == "timm":
            # The configuration is the architecture's: it does not depend on the images.
            module_for_transform = build_model(options.architecture, len(source.classes), (3, 224, 224))
        dataset = view.dataset(source.train.subset(kept), module_for_transform, "the training set", progress)
        first = dataset[0][0]
        shape = (int(first.shape[0]), int(first.shape[1]), int(first.shape[2]))
        view = View(source, options.transform, source.classes, shape)
        with isolated_rng(options.seed):
            module = build_model(options.architecture, len(source.classes), shape)
        unseen = {
            role: view.dataset(part, module, f"the {role} set", progress)
            for role, part in (("val", source.val), ("test", source.test))
        }
        training = dataset if options.augment == "none" else Augmented(dataset, options.augment)
        hardware = pick_hardware(module, dataset, options, progress)
        recipe = {key: getattr(options, key) for key in ("epochs", "lr", "batch_size", "weight_decay")}
        outcome = run_method(
            module, Retrain(recipe), {"retain": training}, seed=options.seed, hardware=hardware, on_epoch=log_epoch
        )
        metrics = {}
        for role, data in {"retain": dataset, **unseen}.items():
            reading = read(outcome.model.to(hardware.device), data, hardware, description=f"evaluating {role}")
            metrics[f"acc_{role}"] = accuracy(reading.predictions, reading.labels)
        manifest = Manifest(tuple(source.train.ids[i] for i in kept))
        tracking.log_manifests(source.spec, {"retain": manifest.digest}, {"retain": len(manifest.ids)})
        version = register(
            client,
            outcome.model,
            options.name,
            Record(
                architecture=options.architecture,
                num_classes=len(source.classes),
                image_shape=shape,
                transform=options.transform,
                classes=source.classes,
                data=source.spec,
                method="train",
                recipe={**recipe, "augment": options.augment, "seed": options.seed, "exclude": options.exclude},
            ),
            manifest,
            folder=folder,
            example=example_images([dataset[i][0] for i in range(2)]),
            serialization=options.serialization,
            tags={"unlearn.method": "train", "unlearn.run_id": run_id},
            metrics=metrics,
            description=f"`{options.architecture}` trained on {len(kept)} samples of `{source.spec}`"
            + (f", without `{options.exclude}` (a gold standard)." if options.exclude else "."),
        )
        mlflow.log_metrics(metrics)
        shown = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        print(f"Registered {options.name} version {version.version}: {len(kept)} training samples, {shown}.")


def request(options: config.Request) -> None:
    """File a forget request: its manifest in a run of its own, its state on the version."""
    with tracking.run("request", options) as run_id, tracking.scratch() as folder:
        client = tracking.client()
        version = open_version(client, options.model_uri, folder)
        if version.name is None:
            raise UnlearnError(
                f"{version.uri} is no registered version and cannot carry a request: "
                "register it, or give forget= to unlearn"
            )
        data = options.data or (version.record.data if version.record is not None else None)
        if data is None:
            raise UnlearnError(f"{version.uri} does not record its data source: give data=, e.g. folder:PATH")
        source = load_source(data)
        forget = resolve_forget(
            options.forget,
            source,
            training_mask(version, source),
            lambda request_id: forget_requests.read_manifest(client, request_id),
        )
        manifest = Manifest(tuple(source.train.ids[i] for i in forget))
        details = {
            "spec": options.forget,
            "data": source.spec,
            "reason": options.reason,
            "requester": options.requester,
            "hash_ids": options.hash_ids,
        }
        filed, new = forget_requests.file_request(client, version, manifest, details, folder=folder)
        if new:
            tracking.log_manifests(source.spec, {"forget": manifest.digest}, {"forget": len(forget)})
            print(
                f"Filed request {filed.id}: {len(forget)} samples of {version.uri} are to be forgotten (run {run_id})."
            )
        else:
            state = "is pending" if filed.pending else f"was carried out by {', '.join(filed.done_by)}"
            print(f"Request {filed.id} was filed before and {state}.")


def evaluate(options: config.Evaluate) -> None:
    """Measure a version, the version that it came from, and a gold standard, side by side."""
    progress = sys.stderr.isatty()
    with tracking.run("evaluate", options) as run_id, tracking.scratch() as folder:
        client = tracking.client()
        version = open_version(client, options.model_uri, folder)
        tracking.log_source_model(client, run_id, version.model_id)
        recorded = version.record.source_uri if version.record is not None else None
        original_uri = options.original_uri or recorded
        original_version = version if original_uri is None else open_version(client, original_uri, folder)
        view = open_view(version, options)
        if original_version is not version:
            check_alike(original_version, view)
        mask = training_mask(original_version, view.source)
        forget = evaluated_forget_set(client, version, original_version, view, mask, options)
        # What the version has not been trained on, or forgot before, is no retain sample, whatever the original knows.
        retain = retained(mask & training_mask(version, view.source), forget)
        module = load_module(version, options.architecture, len(view.classes), trainable=False)
        splits = make_splits(view, module, forget, retain, progress)
        check_outputs(module, splits.test, view.classes, version.uri)
        hardware = pick_hardware(module, splits.test, options, progress)
        job = Job(client, version, module, view, splits, forget, retain, (), hardware, folder)
        job.log_manifests()
        readings = job.read_original(force=options.force)
        original, columns = readings, {}
        if original_version.uri != version.uri:
            original_module = load_module(original_version, options.architecture, len(view.classes), trainable=False)
            original = read_splits(original_module, splits, hardware, name="original")
        gold_module = open_gold(client, options.gold_uri, view, job.retain, splits.test, folder, options)
        gold = None if gold_module is None else read_splits(gold_module, splits, hardware, name="gold")
        columns["original"] = job.measure(original, original, gold, options.seed)
        if original_version.uri != version.uri:
            columns["unlearned"] = job.measure(readings, original, gold, options.seed)
        if gold is not None:
            columns["gold"] = job.measure(gold, original, gold, options.seed)
        log_metrics(columns)
        table.show(columns)
        print(f"Measured {version.uri} (run {run_id}); nothing was registered.")


def tune(options: config.Tune) -> None:
    """Search hyperparameters; the search itself is in `tune`."""
    from mlflow_unlearn.tune import search

    search(options)


def data(options: config.Data) -> None:
    """Print counts by split and class, and digests."""
    source = load_source(options.data)
    table.show_source(source)


def evaluated_forget_set(
    client: Any, version: Any, original: Any, view: View, mask: np.ndarray[Any, Any], options: config.Evaluate
) -> np.ndarray[Any, Any]:
    """The spec's samples, else those that the version was made to forget, else those of its pending requests."""

    def read_request(request_id: str) -> Manifest:
        return forget_requests.read_manifest(client, request_id)

    ids: tuple[str, ...] = version.record.request_ids if version.record is not None else ()
    if not ids:
        own, _ = forget_requests.of_version(version)
        ids = tuple(filed.id for filed in own if filed.pending)
    specs = [options.forget] if options.forget is not None else [f"request:{request_id}" for request_id in ids]
    if not specs:
        raise UnlearnError(f"{version.uri} carried out no forget request and none is pending: give forget=")
    return np.unique(np.concatenate([resolve_forget(spec, view.source, mask, read_request) for spec in specs]))


def target_name(job: Job, register_as: str | None) -> str:
    """The name to register under.

    Raises:
        UnlearnError: the source is no registered version and no name is given.
    """
    name = register_as or job.version.name
    if name is None:
        raise UnlearnError(f"{job.version.uri} is no registered version: give register_as=, the name to register under")
    return name


def nothing_to_unlearn(final: Mapping[str, float]) -> str:
    """Why a run that left the weights as they were is no unlearning."""
    shown = {"acc_forget": "acc_forget", "acc_val": "A_u"}
    return (
        "nothing to unlearn: the model knows these samples no better than unseen ones "
        f"({', '.join(f'{name} {final[key]:.4f}' for key, name in shown.items() if key in final)})"
    )


def log_epoch(epoch: Epoch) -> None:
    """One epoch's record as metrics with a step; LoTUS's constant acc_val is logged as a_u."""
    values = {("a_u" if key == "acc_val" else key): value for key, value in epoch.items() if key != "epoch"}
    mlflow.log_metrics(values, step=int(epoch["epoch"]))


def log_final(result: Result) -> None:
    """What is known of the returned model, one step after the last epoch; seconds of the whole."""
    values = {key: value for key, value in result.final.items() if key in ("acc_forget", "delta")}
    mlflow.log_metrics(values, step=len(result.history))
    mlflow.log_metric("unlearn_seconds", result.seconds)


def log_metrics(columns: Mapping[str, Metrics]) -> None:
    """Metrics with the model's prefix; what was not computed is a tag with the reason."""
    for name, metrics in columns.items():
        mlflow.log_metrics({f"{name}.{key}": value for key, value in metrics.items()})
        # Without a wholly forgotten class nobody misses acc_test_forgotten.
        told = {
            k: v
            for k, v in metrics.missing.items()
            if k != "acc_test_forgotten" or metrics.counts["wholly_forgotten_classes"]
        }
        mlflow.set_tags({f"unlearn.missing.{name}.{key}": reason for key, reason in told.items()})
    counts = next(iter(columns.values())).counts
    mlflow.log_metrics({f"count.{key}": float(value) for key, value in counts.items()})


COMMANDS: dict[str, Callable[[Any], None]] = {
    "train": train,
    "request": request,
    "unlearn": unlearn,
    "tune": tune,
    "evaluate": evaluate,
    "data": data,
}
__all__ = ["COMMANDS"]
