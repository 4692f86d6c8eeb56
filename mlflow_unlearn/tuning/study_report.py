"""What a study leaves to look at: the table, `study.json`, `best.yaml` and figures."""

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import optuna
import torch
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape
from rich.table import Table

from mlflow_unlearn.console import stdout
from mlflow_unlearn.tuning.space import Setting
from mlflow_unlearn.tuning.winner import broken, front

FOLDER = "tune"


def show(study: optuna.Study, winner: FrozenTrial | None, objective: str) -> None:
    """Print one row a trial."""
    trials = study.get_trials(deepcopy=False)
    fronts = len(study.directions) > 1
    title = f"study {study.study_name}, by {objective}{' and acc_val' if fronts else ''}"
    table = Table(title=escape(title), title_justify="left")
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    for column in ("trial", *names, objective, *(["acc_val"] if fronts else []), "constraints"):
        table.add_column(column, justify="right")
    feasible = [trial for trial in trials if trial.state == TrialState.COMPLETE and not broken(trial)]
    on_front = {trial.number for trial in front(feasible)} if fronts else set()
    for trial in trials:
        marks = ["best"] if winner is not None and trial.number == winner.number else []
        marks += ["front"] if trial.number in on_front else []
        complete = trial.state == TrialState.COMPLETE
        values = [f"{value:.4f}" for value in trial.values] if complete else ["–"] * len(study.directions)
        verdict = (", ".join(broken(trial)) or "met") if complete else trial.state.name.lower()
        number = f"{trial.number} ({', '.join(marks)})" if marks else str(trial.number)
        table.add_row(number, *(_told(trial.params.get(name, "–")) for name in names), *values, verdict)
    stdout(160).print(table)


def log(
    study: optuna.Study, winner: FrozenTrial | None, setting: Setting | None, facts: Mapping[str, Any], seed: int
) -> None:
    """Keep the study as artifacts of the active run: ``tune/study.json``, ``tune/best.yaml``, figures, a CSV table."""
    trials = study.get_trials(deepcopy=False)
    told = {
        "study": study.study_name,
        **facts,
        "winner": None if winner is None else winner.number,
        "trials": [_record(trial) for trial in trials],
    }
    mlflow.log_dict(told, f"{FOLDER}/study.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's frame warns of its own experimental columns.
        mlflow.log_text(study.trials_dataframe().to_csv(index=False), f"{FOLDER}/trials.csv")
    if winner is not None and setting is not None:
        mlflow.log_text(best_yaml(study, winner, setting, seed), f"{FOLDER}/best.yaml")
    _figures(study, facts["objective"])


def best_yaml(study: optuna.Study, winner: FrozenTrial, setting: Setting, seed: int) -> str:
    """The winner's setting as ``unlearn`` takes it with ``params=``."""
    command = f"mlflow run . -e unlearn -P model_uri=… -P params=best.yaml -P seed={seed}"
    head = (
        f"# Trial {winner.number} of study {study.study_name}.\n"
        "# The same weights again, on the same machine with as many threads:\n"
        f"#   OMP_NUM_THREADS={torch.get_num_threads()} {command}\n"
    )
    return head + yaml.safe_dump(setting.to_yaml(), sort_keys=False)


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
        return  # of one trial there is nothing to see
    fronts = len(study.directions) > 1
    target: Callable[[FrozenTrial], float] | None = (lambda trial: float(trial.values[0])) if fronts else None
    options: dict[str, Any] = {"target": target, "target_name": objective}
    varied = len({trial.values[0] for trial in complete}) > 1 and any(
        len({str(trial.params.get(name)) for trial in complete}) > 1 for name in complete[0].params
    )
    plots: dict[str, dict[str, Any]] = {
        "optimization_history": options,
        "slice": options,
        "parallel_coordinate": options,
        **({"param_importances": options} if varied else {}),
        **({"pareto_front": {"target_names": [objective, "acc_val"]}} if fronts else {}),
    }
    from matplotlib import pyplot  # what no command needs at its start

    interactive = importlib.util.find_spec("plotly") is not None
    with _quiet(), pyplot.rc_context():
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's figures warn that they are experimental, once each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
