"""A version opened to be measured."""

import numpy as np
import pytest

from mlflow_unlearn import config
from mlflow_unlearn.session.gold import open_gold
from mlflow_unlearn.session.measured import evaluate_measured, open_measured


@pytest.fixture
def measured(store, tmp_path):
    def run(choose=None, **given):
        options = config.Evaluate(model_uri="models:/clf/1", device="cpu", **given)
        session, original = open_measured(store.client, options, tmp_path, progress=False, choose=choose)
        return session, original, options

    return run


def test_a_version_that_came_from_no_other(measured):
    session, original, options = measured(forget="random:30")
    assert original is session.version and (len(session.forget), len(session.retain)) == (30, 240)
    outputs, name = evaluate_measured(session, original, options, open_gold(session, options))
    assert name == "original" and outputs.keys() == {"original"}
    assert len(outputs["original"]["forget"].labels) == 30


def test_samples_chosen_by_the_caller(measured):
    forget, retain = np.array([1, 2]), np.array([7, 8, 9])
    session, _, _ = measured(lambda version, original, view: (view, forget, retain, "00"))
    assert (session.forget.tolist(), session.retain.tolist(), session.salt) == ([1, 2], [7, 8, 9], "00")
    assert (len(session.splits.forget), len(session.splits.retain)) == (2, 3)


def test_the_same_model_under_another_uri_is_the_version_itself(measured, store):
    uri = f"runs:/{store.tags('1')['unlearn.run_id']}/model"
    session, original, _ = measured(forget="random:30", original_uri=uri)
    assert original is session.version
