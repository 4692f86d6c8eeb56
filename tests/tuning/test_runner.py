"""What a study refuses before any trial, and how it is interrupted."""

import os
import signal
import threading

import numpy as np
import optuna
import pytest

from mlflow_unlearn import config
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.tuning.runner import check_worthwhile, first_interrupt_waits, open_study
from mlflow_unlearn.tuning.space import search_space


class SplitLike:
    """Labels, and predictions of which the first ``right`` are right."""

    def __init__(self, right: int, size: int = 10) -> None:
        self.labels = np.zeros(size, np.int64)
        self.predictions = (np.arange(size) >= right).astype(np.int64)


def test_a_study_keeps_its_mode():
    storage = optuna.storages.InMemoryStorage()
    space = search_space(["lotus"], "cnn", ["none"], None)
    options = config.Tune(model_uri="models:/clf/1", study="ours")
    first = open_study(storage, options, space, "clf-1", "0123456789")
    assert open_study(storage, options, space, "clf-1", "another").study_name == first.study_name == "ours"
    with pytest.raises(UnlearnError, match="study 'ours' was started with another mode"):
        open_study(storage, options.model_copy(update={"mode": "pareto"}), space, "clf-1", "0123456789")


def test_a_study_without_a_name_is_called_after_the_version_and_the_run():
    space = search_space(["lotus"], "cnn", ["none"], None)
    study = open_study(optuna.storages.InMemoryStorage(), config.Tune(model_uri="m"), space, "clf-1", "0123456789")
    assert study.study_name == "clf-1-01234567"


def test_lotus_has_nothing_to_find_where_the_forget_set_is_known_no_better():
    known, unknown = SplitLike(9), SplitLike(5)
    check_worthwhile(["lotus", "scrub"], {"forget": known, "retain": known, "val": unknown})
    check_worthwhile(["scrub"], {"forget": unknown, "retain": known, "val": known})
    with pytest.raises(NothingToUnlearn, match="^nothing to unlearn: "):
        check_worthwhile(["scrub", "lotus"], {"forget": unknown, "retain": known, "val": known})


def test_the_first_interrupt_waits_and_the_second_does_not(capsys):
    stop, before = threading.Event(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), first_interrupt_waits(stop, []):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(5)
    assert "Ctrl-C again stops at once" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
