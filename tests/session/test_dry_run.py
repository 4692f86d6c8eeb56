"""A dry run estimates time, memory and disk, and changes nothing."""

import json
import re
from pathlib import Path

import mlflow
import pytest
from stores import FORGET

from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.session import Session

UNLEARN = ("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET)


def bytes_below(uri: str) -> int:
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


VERSION = "disk: the new version"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("command", "more", "rows"),
    [
        ("unlearn", (), ("lotus", "measure 1 more", VERSION)),
        ("unlearn", ("--method", "retrain"), ("retrain", VERSION)),
        ("tune", ("--n-trials", "7"), ("lotus, 4 times", "transpose, 3 times", "measure 8 more", VERSION)),
        ("tune", ("--n-trials", "7", "--space", '{"alpha": [1, 4]}'), ("lotus, 7 times",)),
        ("tune", ("--n-trials", "7", "--sampler", "grid"), ("lotus, 7 times",)),
        ("tune", ("--n-trials", "2", "--space", '{"transpose": {"epochs": 1}}'), ("lotus", "transpose")),
        ("compare", ("--methods", "finetune,ssd"), ("retrain, 3 times", "finetune, 3 times", "ssd", "measure 9 more")),
        ("evaluate", (), ("measure the original", "metrics")),
    ],
)
def test_it_predicts_and_changes_nothing(store, cli, command, more, rows):
    before = store.everything_registered()
    done = cli(command, *UNLEARN[1:], *more, "--plan", "true")
    assert done.code == 0, done.err
    assert store.everything_registered() == before
    for row in (*rows, "time, in all", "memory, at the peak"):
        assert re.search(rf"{row} .*[0-9.]+ (s|min|h|MB|GB)", done.out), row
    assert "Nothing was unlearned, filed or registered." in done.out
    [run] = [run for run in store.runs() if run.data.params.get("unlearn.plan") == "True"]
    assert run.info.status == "FINISHED" and run.data.metrics["plan.seconds"] > 0


@pytest.mark.slow
def test_the_disk_is_what_version_and_cache_take(store, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "cache"))
    planned = cli(*UNLEARN, "--plan", "true")
    assert planned.code == 0, planned.err
    predicted = store.runs()[0].data.metrics["plan.disk_bytes"]
    assert cli(*UNLEARN).code == 0
    kept = sum(path.stat().st_size for path in (tmp_path / "cache" / "outputs").glob("*.safetensors"))
    assert kept > 0
    evidence = bytes_below(f"runs:/{store.tags('2')['unlearn.run_id']}/evidence")
    assert predicted == pytest.approx(bytes_below("models:/clf/2") + evidence + kept, rel=0.15)


def test_bad_input_is_refused_before_anything_is_timed(store, cli):
    done = cli(*UNLEARN, "--plan", "true", "--params", '{"alhpa": 1}')
    assert done.code == 2 and "unknown hyperparameter 'alhpa'" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slow", "batch", "epochs", "expected"),
    [
        # samples and epochs: a first try, the smaller share, the larger one, and again with an epoch more
        (1e9, 32, 3, [(30, 1), (90, 1), (270, 1), (270, 2)]),
        (1e9, 32, 1, [(30, 1), (90, 1), (270, 1)]),
        (0, 32, 3, [(30, 1), (30, 1), (90, 1), (90, 2)]),
        (0, 180, 1, [(30, 1), (60, 1), (180, 1)]),  # no less than a batch
    ],
)
def test_what_is_slow_is_timed_on_less(store, cli, monkeypatch, slow, batch, epochs, expected):
    tried = []
    unlearn = Session.unlearn

    def watched(session, method, params, options, splits):
        tried.append((len(splits.forget) + len(splits.retain), params["epochs"]))
        return unlearn(session, method, params, options, splits=splits)

    monkeypatch.setattr(Session, "unlearn", watched)
    monkeypatch.setattr(dry_run, "SLOW", slow)
    monkeypatch.setattr(dry_run, "ENOUGH", 0)  # each once
    params = {"epochs": epochs, "batch_size": batch}
    done = cli(*UNLEARN, "--plan", "true", "--method", "finetune", "--params", json.dumps(params))
    assert done.code == 0, done.err
    assert tried[: len(expected)] == expected  # then those of the other ways
