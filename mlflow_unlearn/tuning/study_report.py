"""What a study leaves to look at: the table, `study.json`, `best.yaml` and figures."""

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import optuna
import torch
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape
from rich.table import Table

from mlflow_unlearn.report.fit import show_table
from mlflow_unlearn.tuning.space import TrialConfig
from mlflow_unlearn.tuning.winner import broken, front

FOLDER = "tune"


def show(study: optuna.Study, winner: FrozenTrial | None, objective: str) -> None:
    """Print one row a trial."""
    trials = study.get_trials(deepcopy=False)
    fronts = len(study.directions) > 1
    title = f"study {study.study_name}, by {objective}{' and acc_val' if fronts else ''}"
    table = Table(title=escape(title))
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    for column in ("trial", *names, objective, *(["acc_val"] if fronts else []), "constraints"):
        table.add_column(column, justify="left" if column == "constraints" else "right")
    feasible = [trial for trial in trials if trial.state == TrialState.COMPLETE and not broken(trial)]
    on_front = {trial.number for trial in front(feasible)} if fronts else set()
    for trial in trials:
        marks = ["best"] if winner is not None and trial.number == winner.number else []
        marks += ["front"] if trial.number in on_front else []
        complete = trial.state == TrialState.COMPLETE
        values = [f"{value:.4f}" for value in trial.values] if complete else ["–"] * len(study.directions)
        constraints = (", ".join(broken(trial)) or "met") if complete else trial.state.name.lower()
        number = f"{trial.number} ({', '.join(marks)})" if marks else str(trial.number)
        table.add_row(number, *(_formatted(trial.params.get(name, "–")) for name in names), *values, constraints)
    show_table(table, drop=[*reversed(names), "constraints"])


def log(
    study: optuna.Study,
    description: Mapping[str, Any],
    winner: FrozenTrial | None = None,
    chosen: TrialConfig | None = None,
) -> None:
    """Keep the study as artifacts of the active run: ``tune/study.json``, ``tune/best.yaml``, figures, a CSV table.

    Args:
        study: with its trials.
        description: what the study is about, its ``objective`` and ``seed`` among it.
        winner: the best trial, if there is one.
        chosen: its config.
    """
    record = {
        "study": study.study_name,
        **description,
        "winner": None if winner is None else winner.number,
        "trials": [_record(trial) for trial in study.get_trials(deepcopy=False)],
    }
    mlflow.log_dict(record, f"{FOLDER}/study.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's table warns of its own experimental columns.
        mlflow.log_text(study.trials_dataframe().to_csv(index=False), f"{FOLDER}/trials.csv")
    if winner is not None and chosen is not None:
        head = (
            f"# Trial {winner.number} of study {study.study_name}.\n"
            "# The same weights again, on the same machine with as many threads:\n"
            f"#   OMP_NUM_THREADS={torch.get_num_threads()} mlflow run . -e unlearn -P model_uri=… -P params=best.yaml "
            f"-P seed={description['seed']}\n"
        )
        mlflow.log_text(head + yaml.safe_dump(chosen.to_yaml(), sort_keys=False), f"{FOLDER}/best.yaml")
    _figures(study, description["objective"])


def _record(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "params": trial.params,
        "values": trial.values,
        "constraints": trial.constraints,
        "broken": broken(trial),
        "penalised_values": {str(step): value for step, value in trial.intermediate_values.items()},
        "retry_of": trial.system_attrs.get("failed_trial"),
        **trial.user_attrs,
    }


def _figures(study: optuna.Study, objective: str) -> None:
    """PNG by matplotlib; interactive pages too where plotly is installed."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(complete) < 2:
        return  # nothing to see
    fronts = len(study.directions) > 1
    target: Callable[[FrozenTrial], float] | None = (lambda trial: float(trial.values[0])) if fronts else None
    options: dict[str, Any] = {"target": target, "target_name": objective}
    varied = len({trial.values[0] for trial in complete}) > 1 and any(
        len({str(trial.params.get(name)) for trial in complete}) > 1 for name in complete[0].params
    )
    names = ("optimization_history", "slice", "parallel_coordinate", *(["param_importances"] if varied else []))
    plots = dict.fromkeys(names, options)
    if fronts:
        plots["pareto_front"] = {"target_names": [objective, "acc_val"]}
    from matplotlib import pyplot  # not needed when a command starts

    interactive = importlib.util.find_spec("plotly") is not None
    with warnings.catch_warnings(), pyplot.rc_context():
        # Optuna's figures warn that they are experimental, once each.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)
        for name, given in plots.items():
            axes = getattr(optuna.visualization.matplotlib, f"plot_{name}")(study, **given)
            figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
            figure.set_size_inches(10, 5)
            mlflow.log_figure(figure, f"{FOLDER}/{name}.png")
            pyplot.close(figure)
            if interactive:
                page = getattr(optuna.visualization, f"plot_{name}")(study, **given)
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / f"{name}.html"
                    page.write_html(path)
                    mlflow.log_artifact(str(path), FOLDER)


def _formatted(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
