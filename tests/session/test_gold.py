"""The gold standard."""

from dataclasses import replace

import numpy as np
import pytest
import toy

from mlflow_unlearn import config
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.session.gold import open_gold

OPTIONS = config.Evaluate(model_uri="models:/clf/1", gold_uri="models:/clf/1")


@pytest.fixture
def session(opened, store, tmp_path):
    return replace(opened, client=store.client, folder=tmp_path)


def test_none_is_named(session):
    assert open_gold(session, config.Evaluate(model_uri="models:/clf/1")) is None


def test_a_model_that_never_saw_the_forget_set(session):
    gold = open_gold(replace(session, retain=np.arange(270)), OPTIONS)
    assert toy.same(toy.state(gold), toy.state(session.module))


def test_a_model_that_saw_it(session):
    with pytest.raises(
        UnlearnError, match="trained on 54 samples .* it is not a gold standard; train one with exclude="
    ):
        open_gold(session, OPTIONS)
