"""The model evaluator ``unlearning``: ``mlflow.models.evaluate(uri, manifest, model_type="unlearning", …)``.

It measures a PyTorch classifier as the command ``evaluate`` does, on the samples that a table names. MLflow loads this
module for every evaluation of every user: what takes time to import is imported where it is used.
"""

import json
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models.evaluation import EvaluationArtifact, EvaluationResult, ModelEvaluator

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from matplotlib.figure import Figure
    from mlflow.models import EvaluationDataset
    from mlflow.models.evaluation import EvaluationMetric
    from mlflow.pyfunc import PyFuncModel

    from mlflow_unlearn.config import Evaluate
    from mlflow_unlearn.data.source import Source
    from mlflow_unlearn.evidence.audit import AuditRecord
    from mlflow_unlearn.metrics.outputs import Outputs
    from mlflow_unlearn.metrics.suite import Metrics
    from mlflow_unlearn.registry.versions import Version
    from mlflow_unlearn.session.measured import Chosen
    from mlflow_unlearn.session.view import InputSpec

    Indices = npt.NDArray[np.int64]
    Mask = npt.NDArray[np.bool_]

MODEL_TYPE = "unlearning"
OPTIONS = (
    *("data", "split", "original_uri", "gold_uri", "transform", "classes", "architecture", "model_uri"),
    *("device", "precision", "num_workers", "seed", "force", "audit"),
)
"""Keys of ``evaluator_config``: options of the command ``evaluate``, and ``audit``."""

_PART_OF = {"forget": "training", "retain": "training", "val": "validation", "test": "test"}
_LOWEST_DRAWN = 1e-6


class UnlearningEvaluator(ModelEvaluator):  # type: ignore[misc]
    """Metrics and figures of a model that had to forget samples."""

    @classmethod
    def can_evaluate(
        cls, *, model_type: str | None, evaluator_config: Mapping[str, object] | None = None, **kwargs: object
    ) -> bool:
        """Only its own model type: MLflow asks every evaluator about every user's evaluation."""
        return model_type == MODEL_TYPE

    def evaluate(
        self,
        *,
        model_type: str,
        dataset: "EvaluationDataset",
        run_id: str,
        evaluator_config: Mapping[str, object] | None,
        model: "PyFuncModel | None" = None,
        model_id: str | None = None,
        extra_metrics: "list[EvaluationMetric] | None" = None,
        custom_artifacts: list[Callable[..., object]] | None = None,
        predictions: str | None = None,
        **kwargs: object,
    ) -> EvaluationResult:
        """Measure the model on the samples of the table ``dataset`` and log metrics and artifacts to the run.

        Args:
            model_type: ``"unlearning"``.
            dataset: a table of samples, see `read_table`.
            run_id: of the run to log to.
            evaluator_config: options of the command ``evaluate``, by the names in `OPTIONS`.
            model: as MLflow has loaded it.
            model_id: of the model, where MLflow was given one.
            extra_metrics: not taken.
            custom_artifacts: not taken.
            predictions: not used.
            **kwargs: what MLflow passes besides.

        Raises:
            MlflowException: the table, the configuration or the model are not usable.
        """
        from mlflow_unlearn.errors import UnlearnError
        from mlflow_unlearn.registry import tracking

        if extra_metrics or custom_artifacts:
            raise _refusal(f"model_type={MODEL_TYPE!r} takes no extra_metrics and no custom_artifacts: leave them out")
        try:
            with tracking.scratch() as folder:
                table = read_table(dataset)
                given = dict(evaluator_config or {})
                golds = _gold_uris(given)
                options = _options(given | ({"gold_uri": golds[0]} if golds else {}), model, model_id)
                measured = _measure(table, options, folder, run_id, golds if given.get("audit") else None)
                artifacts = _log_artifacts(measured, run_id, folder)
        except UnlearnError as error:
            raise _refusal(str(error)) from error
        metrics = {key: float(value) for key, value in measured.own.items()}
        if measured.audit is not None:
            from mlflow_unlearn.report import audit_table

            metrics |= audit_table.metrics(measured.audit)
        # With a model_id MLflow logs them itself; on SQLite it does not get the id of a registered version.
        if model_id is None:
            mlflow.log_metrics(metrics, run_id=run_id, model_id=measured.model_id)
        return EvaluationResult(metrics=metrics, artifacts=artifacts, run_id=run_id)


@dataclass(frozen=True)
class _Evaluation:
    """What was measured of which models, by the names ``original``, ``unlearned`` and ``gold``.

    Attributes:
        uris: of the models that are there.
        outputs: their outputs.
        columns: their metrics, each against the others.
        name: of the evaluated model: ``original`` where it came from no other.
        model_id: of the evaluated model, where it has one.
        audit: what attacks say, where it was asked for.
    """

    uris: Mapping[str, str]
    outputs: Mapping[str, "Outputs"]
    columns: Mapping[str, "Metrics"]
    name: str
    model_id: str | None
    audit: "AuditRecord | None" = None

    @property
    def own(self) -> "Metrics":
        """Metrics of the evaluated model."""
        return self.columns[self.name]


def _refusal(sentence: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(sentence)


# The table of samples


def read_table(dataset: "EvaluationDataset") -> "pd.DataFrame":
    """The user's table with the columns ``id``, ``split`` and, where there are labels, ``label``.

    Raises:
        MlflowException: a column is missing, a split is unknown, an id is there twice, or nothing is to be forgotten.
    """
    import pandas as pd

    table = dataset.features_data
    if not isinstance(table, pd.DataFrame):
        raise _refusal(
            f"the data of model_type={MODEL_TYPE!r} is a {type(table).__name__}: give a pandas DataFrame with the "
            "columns id and split"
        )
    if dataset.has_targets:
        table = table.assign(label=dataset.labels_data)
    for column in ("id", "split"):
        if column not in table.columns:
            there = ", ".join(map(repr, table.columns))
            raise _refusal(f"the data has no column {column!r}: its columns are {there}, but id and split are required")
    table = table[[name for name in ("id", "split", "label") if name in table.columns]]
    table = table.astype({"id": str, "split": str})
    if unknown := sorted(set(table["split"]) - set(_PART_OF)):
        raise _refusal(f"the data names the splits {_shortlist(unknown)}: valid values: {', '.join(_PART_OF)}")
    if twice := sorted(set(table["id"][table["id"].duplicated()])):
        raise _refusal(f"the data lists ids twice: {_shortlist(twice)}: each sample belongs to one split")
    if not (table["split"] == "forget").any():
        raise _refusal("the data has no row of the split 'forget': name the samples that are to be forgotten")
    return table


def _shortlist(items: Iterable[str]) -> str:
    from mlflow_unlearn.errors import shortlist

    return shortlist(items)


def find_rows(table: "pd.DataFrame", source: "Source") -> dict[str, "Indices"]:
    """Split → sorted indices ``[N]`` into its part of the source, for the splits that the table names.

    Raises:
        MlflowException: an id is unknown or in another part, or a label is another one.
    """
    import numpy as np
    import pandas as pd

    parts = {"training": source.train, "validation": source.val, "test": source.test}
    locations = pd.concat(
        pd.DataFrame({"part": name, "row": np.arange(len(part)), "class": part.labels}, index=list(part.ids))
        for name, part in parts.items()
    )
    unknown = table["id"][~table["id"].isin(locations.index)]
    if len(unknown):
        raise _refusal(f"the data names ids that {source.spec!r} doesn't have: {_shortlist(unknown)}")
    found = locations.loc[table["id"]].reset_index(names="id").assign(split=table["split"].to_numpy())
    wrong = found[found["part"] != found["split"].map(_PART_OF)]
    if len(wrong):
        first = wrong.iloc[0]
        raise _refusal(
            f"the data names {first['id']!r} as {first['split']}, and it is in the {first['part']} part of "
            f"{source.spec!r} ({len(wrong)} such rows): forget and retain are training samples"
        )
    if "label" in table.columns:
        _check_labels(found.assign(label=table["label"].astype(str).to_numpy()), source.classes)
    return {name: np.sort(rows["row"].to_numpy(np.int64)) for name, rows in found.groupby("split")}


def _check_labels(found: "pd.DataFrame", classes: tuple[str, ...]) -> None:
    """Labels may be names of classes, or else their numbers in the source.

    Raises:
        MlflowException: one is not the source's.
    """
    named = found["label"].isin(classes).all()
    right = found["class"].map(lambda index: classes[index] if named else str(index))
    wrong = found.assign(right=right)[found["label"] != right]
    if len(wrong):
        first = wrong.iloc[0]
        raise _refusal(
            f"the data labels {first['id']!r} as {first['label']!r} and the data source as {first['right']!r} "
            f"({len(wrong)} such rows): correct the label, or leave the column out"
        )


# The models


def _options(config: Mapping[str, object], model: "PyFuncModel | None", model_id: str | None) -> "Evaluate":
    """``evaluator_config`` as the command's options, with the URI of the model that MLflow has loaded.

    Raises:
        MlflowException: an unknown key, a value that is not usable, or a model without a URI.
    """
    from pydantic import ValidationError

    from mlflow_unlearn.config import Evaluate
    from mlflow_unlearn.errors import did_you_mean

    for key in config:
        if key not in OPTIONS:
            raise _refusal(f"unknown key {key!r} in evaluator_config: {did_you_mean(key, OPTIONS)}")
    config = {key: value for key, value in config.items() if key != "audit"}
    try:
        return Evaluate.model_validate({**config, "model_uri": _uri(model, model_id, config.get("model_uri"))})
    except ValidationError as error:
        first = error.errors()[0]
        raise _refusal(
            f"evaluator_config: {first['loc'][0]} = {first['input']!r} is not usable: {first['msg'].lower()}"
        ) from error


def _gold_uris(config: Mapping[str, object]) -> list[str]:
    """Several only for an audit: metrics are measured against the first one.

    Raises:
        MlflowException: ``audit`` is no boolean, or there are several without it.
    """
    from mlflow_unlearn.auditing.opening import listed

    audit, given = config.get("audit", False), config.get("gold_uri")
    if not isinstance(audit, bool):
        raise _refusal(f"evaluator_config: audit = {audit!r} is not usable: give True or False")
    uris = listed(given) if isinstance(given, str) else []
    if len(uris) > 1 and not audit:
        raise _refusal(f"gold_uri names {len(uris)} models, and metrics are measured against one: audit=True takes all")
    return uris


def _uri(model: "PyFuncModel | None", model_id: str | None, given: object) -> str:
    """By the MLmodel: what MLflow passes beside a model without an id may be the id of another one."""
    metadata = getattr(model, "metadata", None)
    own = model_id if model is None else getattr(metadata, "model_id", None)
    uri = None
    if own is not None:
        uri = f"models:/{own}"
    elif metadata is not None and metadata.run_id is not None:
        uri = f"runs:/{metadata.run_id}/{metadata.artifact_path}"
    if uri is not None and given is not None:
        raise _refusal(f"model_uri = {given!r} in evaluator_config is for a model without an id, and this is {uri}")
    if uri is None and given is None:
        raise _refusal(
            "the evaluated model has neither an id nor a run, so its files are not found: give its URI once more as "
            "model_uri in evaluator_config"
        )
    return str(uri or given)


def _measure(
    table: "pd.DataFrame", options: "Evaluate", folder: Path, run_id: str, golds: list[str] | None
) -> _Evaluation:
    """Open the models and the data, evaluate each model and compute every metric; with a list of golds, audit it."""
    from mlflow_unlearn.auditing.opening import open_audit
    from mlflow_unlearn.metrics.suite import compare
    from mlflow_unlearn.registry import tracking
    from mlflow_unlearn.session.gold import open_gold
    from mlflow_unlearn.session.measured import evaluate_measured, open_measured

    client, progress = tracking.client(), sys.stderr.isatty()
    session, original = open_measured(client, options, folder, progress=progress, choose=partial(_chosen, table))
    outputs, name = evaluate_measured(session, original, options, open_gold(session, options))
    uris = {"original": original.uri, name: session.version.uri, "gold": str(options.gold_uri)}
    shown = {model: uris[model] for model in outputs}
    audit = None
    if golds is not None:
        # A table does not say whether a request hides its ids.
        session = replace(session, salt=session.salt or secrets.token_hex(16))
        audit = open_audit(session, original, options, golds).record(run_id)
    metrics = compare(outputs, seed=options.seed)
    return _Evaluation(shown, outputs, metrics, name, session.version.model_id, audit)


def _chosen(table: "pd.DataFrame", version: "Version", original: "Version", view: "InputSpec") -> "Chosen":
    """The input spec of the named validation and test samples, and the forgotten and retained training samples.

    A split without a row has all the samples that it can have.

    Raises:
        MlflowException: a sample was not trained on.
    """
    from mlflow_unlearn.data.forget import retained
    from mlflow_unlearn.session.view import training_mask

    source = view.source
    rows = find_rows(table, source)
    trained = training_mask(original, source)
    # What the version was not trained on, or forgot before, is not a retain sample, even where the original knows it.
    kept = trained & training_mask(version, source)
    retain = rows.get("retain", retained(kept, rows["forget"]))
    _check_trained(rows["forget"], trained, source, "forget", original.uri)
    _check_trained(retain, kept, source, "retain", version.uri)
    held_out = {name: getattr(source, name).subset(rows[name]) for name in ("val", "test") if name in rows}
    return replace(view, source=replace(source, **held_out)), rows["forget"], retain, None


def _check_trained(rows: "Indices", trained: "Mask", source: "Source", split: str, uri: str) -> None:
    never = [source.train.ids[row] for row in rows if not trained[row]]
    if never:
        raise _refusal(
            f"the data names samples as {split} that {uri} wasn't trained on, or forgot earlier: {_shortlist(never)}"
        )


# Artifacts


def _log_artifacts(measured: _Evaluation, run_id: str, folder: Path) -> dict[str, EvaluationArtifact]:
    """The table before and after, what was not computed and why, and the entropies as a figure."""
    from mlflow.models.evaluation.artifacts import (
        CsvEvaluationArtifact,
        ImageEvaluationArtifact,
        JsonEvaluationArtifact,
    )
    from mlflow.tracking import MlflowClient
    from mlflow.tracking.artifact_utils import get_artifact_uri
    from PIL import Image

    out = folder / MODEL_TYPE
    out.mkdir()
    table, details = _before_and_after(measured), _details(measured)
    table.to_csv(out / "before_and_after.csv", index=False)
    (out / "measured.json").write_text(json.dumps(details, indent=2, ensure_ascii=False), encoding="utf-8")
    entropy_figure(measured.outputs).savefig(out / "entropies.png", dpi=120)
    with Image.open(out / "entropies.png") as file:
        image = file.copy()
    if measured.audit is not None:
        (out / "audit.json").write_text(measured.audit.to_json(), encoding="utf-8")
    MlflowClient().log_artifacts(run_id, str(out), MODEL_TYPE)

    def uri(name: str) -> str:
        return str(get_artifact_uri(run_id, f"{MODEL_TYPE}/{name}"))

    audit = measured.audit
    audited = {} if audit is None else {"audit": JsonEvaluationArtifact(uri("audit.json"), audit.model_dump())}
    return audited | {
        "before_and_after": CsvEvaluationArtifact(uri("before_and_after.csv"), table),
        "measured": JsonEvaluationArtifact(uri("measured.json"), details),
        "entropies": ImageEvaluationArtifact(uri("entropies.png"), image),
    }


def _before_and_after(measured: _Evaluation) -> "pd.DataFrame":
    import pandas as pd

    from mlflow_unlearn.metrics.catalog import METRICS

    columns = measured.columns
    keys = [key for key in METRICS if any(key in metrics for metrics in columns.values())]
    models = {name: [metrics.get(key) for key in keys] for name, metrics in columns.items()}
    return pd.DataFrame({"metric": keys, **models, "meaning": [METRICS[key].meaning for key in keys]})


def _details(measured: _Evaluation) -> dict[str, object]:
    from mlflow_unlearn.report.table import readings

    return {
        "evaluated": measured.name,
        "models": dict(measured.uris),
        "counts": measured.own.counts,
        "metrics": {name: dict(metrics) for name, metrics in measured.columns.items()},
        "missing": {name: metrics.missing for name, metrics in measured.columns.items()},
        "reading": readings(measured.columns),
    }


def entropy_figure(outputs: Mapping[str, "Outputs"]) -> "Figure":
    """Distribution of the entropies (nats), one panel per model: forgotten samples should look like test samples."""
    import numpy as np
    from matplotlib.figure import Figure

    # Without pyplot, whose state and backend are the user's; such a figure is drawn by Agg.
    figure = Figure(figsize=(4.5 * len(outputs), 3.6), layout="constrained")
    panels = figure.subplots(1, len(outputs), squeeze=False, sharex=True, sharey=True)[0]
    styles = {"forget": ("C3", "-"), "retain": ("C0", "--"), "test": ("C7", ":")}
    for panel, (name, sets) in zip(panels, outputs.items(), strict=True):
        for split, (colour, line) in styles.items():
            values = np.sort(np.maximum(sets[split].entropies, _LOWEST_DRAWN))
            fractions = np.arange(1, len(values) + 1) / len(values)
            label = f"{split} ({len(values)})"
            panel.step(values, fractions, where="post", color=colour, linestyle=line, label=label)
        panel.set(title=name, xlabel="entropy of the outputs (nats)", xscale="log", ylim=(0, 1))
    panels[0].set_ylabel("fraction of samples with at most this entropy")
    panels[0].legend()
    return figure
