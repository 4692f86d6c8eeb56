"""What a study refuses before any trial, and how it is interrupted."""

import os
import signal
import threading

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from mlflow_unlearn import config
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.tuning.runner import StudyRunner, first_interrupt_waits, open_study, worthwhile
from mlflow_unlearn.tuning.space import search_space
from mlflow_unlearn.tuning.storage import LeaderLock, count, open_storage, retry


class Trials:
    """Stands for the objective; ``failing`` trials fail before one succeeds."""

    def __init__(self, options, storage, failing: int) -> None:
        self.options, self.failing, self.parent, self.command_run = options, failing, "run", "run"
        self.space = search_space(["finetune"], "cnn", ["none"], {})
        self.study = open_study(storage, options, self.space, "clf-1", "run")

    def __call__(self, trial: optuna.Trial) -> float:
        self.failing -= 1
        if self.failing >= 0:
            raise UnlearnError("its process has died")
        return 0.0


class SplitLike:
    """Labels, and predictions of which the first ``right`` are right."""

    def __init__(self, right: int, size: int = 10) -> None:
        self.labels = np.zeros(size, np.int64)
        self.predictions = (np.arange(size) >= right).astype(np.int64)
        self.entropies = np.linspace(0.5, 1.0, size) if right < 9 else np.linspace(0.0, 0.5, size)
        self.margins = np.linspace(-0.5, 0.5, size) if right < 9 else np.linspace(0.5, 1.5, size)


def test_a_study_keeps_its_mode():
    storage = optuna.storages.InMemoryStorage()
    space = search_space(["lotus"], "cnn", ["none"], {})
    options = config.Tune(model_uri="models:/clf/1", study="ours")
    first = open_study(storage, options, space, "clf-1", "0123456789")
    assert open_study(storage, options, space, "clf-1", "another").study_name == first.study_name == "ours"
    with pytest.raises(UnlearnError, match="study 'ours' was started with another mode"):
        open_study(storage, options.model_copy(update={"mode": "pareto"}), space, "clf-1", "0123456789")


class TestTheTask:
    """What the trials of one study have in common, which is recorded with the study."""

    TASK = {"seed": 0, "pixels_sha256": "a", "model_code_sha256": "b", "method_code_sha256": "c", "threads": 2}

    def take_over(self, tmp_path, **changes):
        """Lead the study with this task."""
        options = config.Tune(model_uri="models:/clf/1", study="ours", storage=f"sqlite:///{tmp_path / 'trials.db'}")
        objective = Trials(options, open_storage(options.storage, lambda *_: None), 0)
        objective.study.set_user_attr("parent_run_id", None)
        lock = LeaderLock(options.storage, objective.study)
        task = {key: value for key, value in {**self.TASK, **changes}.items() if value != "left out"}
        try:
            next(StudyRunner(objective, lock, task).work(), None)
        finally:
            lock.release()

    @pytest.mark.parametrize(
        ("changes", "different"),
        [
            ({"pixels_sha256": "z"}, "pixels_sha256"),
            ({"method_code_sha256": "z"}, "method_code_sha256"),
            ({"threads": 3}, r"threads \(2, here 3\)"),
            ({"seed": 1, "model_code_sha256": "z"}, "seed, model_code_sha256"),
        ],
    )
    def test_another_one_is_refused(self, tmp_path, changes, different):
        self.take_over(tmp_path)
        with pytest.raises(UnlearnError, match=f"^study 'ours' was started with another {different}: continue it with"):
            self.take_over(tmp_path, **changes)

    def test_what_an_earlier_release_did_not_record_is_named(self, tmp_path, capsys):
        self.take_over(tmp_path, pixels_sha256="left out", threads="left out")
        assert "Note: study" not in capsys.readouterr().err
        self.take_over(tmp_path)
        assert "an earlier release, which did not record pixels_sha256, threads:" in capsys.readouterr().err
        self.take_over(tmp_path)
        assert "Note: study" not in capsys.readouterr().err

    def test_what_cannot_be_told_is_named(self, tmp_path, capsys):
        self.take_over(tmp_path, pixels_sha256=None)
        assert "Note: it is unknown what pixels_sha256 is, and so whether study 'ours'" in capsys.readouterr().err


def test_a_study_without_a_name_is_called_after_the_version_and_the_run():
    space = search_space(["lotus"], "cnn", ["none"], {})
    study = open_study(optuna.storages.InMemoryStorage(), config.Tune(model_uri="m"), space, "clf-1", "0123456789")
    assert study.study_name == "clf-1-01234567"


def test_lotus_has_nothing_to_find_where_the_forget_set_is_known_no_better(capsys):
    known, unknown = SplitLike(9), SplitLike(5)
    learned, not_learned = ({"forget": a, "retain": known, "val": b} for a, b in ((known, unknown), (unknown, known)))
    assert worthwhile(["lotus", "scrub"], learned) == ["lotus", "scrub"]
    assert worthwhile(["scrub"], not_learned) == ["scrub"]
    # It is LoTUS's rule, and the others search on.
    assert worthwhile(["scrub", "lotus"], not_learned) == ["scrub"]
    assert "lotus is left out of the study: the model knows these samples no better" in capsys.readouterr().err
    with pytest.raises(NothingToUnlearn, match="^nothing to unlearn: "):
        worthwhile(["lotus"], not_learned)


def test_the_first_interrupt_waits_and_the_second_does_not(capsys):
    stop, before = threading.Event(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), first_interrupt_waits(stop, []):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(5)
    assert "Ctrl-C again stops at once" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_where_a_trial_has_failed_it_may_be_queued_again_a_moment_later(tmp_path, monkeypatch, failing):
    """So a worker looks twice; where none has failed there is nothing to wait for."""
    options = config.Tune(model_uri="models:/clf/1", n_trials=2, storage=f"sqlite:///{tmp_path / 'trials.db'}")
    objective = Trials(options, open_storage(options.storage, lambda *_: None), failing)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            retry(objective.study, objective.study.trials[0])

    monkeypatch.setattr("time.sleep", pause)
    lock = LeaderLock(options.storage, objective.study)
    try:
        assert len(list(StudyRunner(objective, lock, {}).work())) == 2
    finally:
        lock.release()
    assert count(objective.study, TrialState.COMPLETE) == 2
    assert len(pauses) == 2 * failing
