"""A comparison on the template's version, with retraining of one epoch."""

from collections.abc import Iterator
from dataclasses import replace

import mlflow
import pytest
from stores import FORGET, copied

from mlflow_unlearn import config
from mlflow_unlearn.comparison.runs import ComparisonRunner
from mlflow_unlearn.session.recipe import training_recipe
from mlflow_unlearn.session.session import open_session


@pytest.fixture(scope="module")
def runner(template, tmp_path_factory) -> Iterator[ComparisonRunner]:
    folder = tmp_path_factory.mktemp("comparison")
    with copied(template, folder / "store") as store, mlflow.start_run() as run:
        options = config.Compare(model_uri="models:/clf/1", forget=FORGET, device="cpu")
        session = open_session(store.client, options, folder, progress=False)
        recipe = training_recipe(session, options)
        recipe = replace(recipe, params={**recipe.params, "epochs": 1})
        yield ComparisonRunner(session, recipe, run.info.experiment_id, force=False)
