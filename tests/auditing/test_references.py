"""Models trained on halves of the training set, once for every request."""

from dataclasses import replace

import mlflow
import numpy as np
import pytest
from stores import copied

from mlflow_unlearn import config
from mlflow_unlearn.auditing.references import ReferenceTrainer, as_references, halves
from mlflow_unlearn.evidence.audit import REFERENCE_FILE
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.session.recipe import training_recipe
from mlflow_unlearn.session.session import open_session


@pytest.fixture(scope="module")
def trainer(template, tmp_path_factory):
    """Of clf/1, in a store of its own; each call opens a session that forgets something else."""
    with copied(template, tmp_path_factory.mktemp("references")) as store:

        def opened(forget="random:20%,seed=1", **changes):
            options = config.Unlearn(model_uri="models:/clf/1", forget=forget, device="cpu")
            folder = tmp_path_factory.mktemp("files")
            with tracking.run("unlearn", options) as run_id:
                session = open_session(tracking.client(), options, folder, progress=False)
            recipe = replace(training_recipe(session, options), params={"epochs": 2, "batch_size": 32, **changes})
            source = session.view.source
            everything = session.view.dataset(source.train, session.module, "train", False)
            trained = np.arange(len(source.train))
            experiment = store.client.get_run(run_id).info.experiment_id
            return ReferenceTrainer(session, recipe, everything, trained, experiment)

        yield opened


def made_by(trainer, count):
    with mlflow.start_run():
        return trainer.references(count)


@pytest.mark.parametrize("count", [10, 11])
def test_of_two_one_has_what_the_other_has_not(count):
    for number in (0, 2):
        first, second = halves(count, number), halves(count, number + 1)
        assert (first != second).all() and 0 < first.sum() - count // 2 + 1 <= 2
    assert (halves(200, 0) != halves(200, 2)).any()


@pytest.mark.nightly
def test_a_second_request_trains_none(trainer, capsys):
    one = trainer()
    first = made_by(one, 4)
    assert "trained now: 4 of 4 reference" in capsys.readouterr().err
    for reference in first:
        run = one.session.client.get_run(reference.run_id)
        assert run.info.status == "FINISHED" and run.inputs.dataset_inputs
        assert [file.path for file in one.session.client.list_artifacts(reference.run_id)] == [REFERENCE_FILE]
        known = reference.train[reference.trained_on].mean() - reference.train[~reference.trained_on].mean()
        assert known > 0, "what it was trained on it knows better"
    other = trainer("random:30,seed=2")
    again = made_by(other, 4)
    assert "trained now: 0 of 4 reference" in capsys.readouterr().err
    assert [r.run_id for r in again] == [r.run_id for r in first]
    left_out = (~np.isnan(as_references(again, other.session.forget).forget)).sum(axis=0)
    assert left_out.tolist() == [2] * 30, "each forgotten sample was left out by half of them"


@pytest.mark.slow
def test_another_recipe_or_a_deleted_file_trains_anew(trainer, capsys):
    made_by(trainer(), 1)
    capsys.readouterr()
    made_by(trainer(lr=0.01), 1)
    assert "trained now: 1 of 1 reference" in capsys.readouterr().err
    [reference] = made_by(trainer(), 1)
    location = trainer().session.client.get_run(reference.run_id).info.artifact_uri.removeprefix("file://")
    with open(f"{location}/{REFERENCE_FILE}", "r+b") as file:
        file.truncate(100)
    capsys.readouterr()
    [other] = made_by(trainer(), 1)
    assert "trained now: 1 of 1 reference" in capsys.readouterr().err
    assert other.run_id != reference.run_id
    np.testing.assert_array_equal(other.train, reference.train)


@pytest.mark.slow
def test_outputs_that_somebody_else_has_put_there_are_not_taken(trainer):
    """Who may write a run could say that other samples were left out."""
    [reference] = made_by(trainer(), 1)
    path = trainer().session.client.get_run(reference.run_id).info.artifact_uri.removeprefix("file://")
    arrays = {name: getattr(reference, name) for name in ("train", "test")}
    for forged in (
        {"trained_on": ~reference.trained_on},
        {"trained_on": reference.trained_on, "test": np.nan * reference.test},
    ):
        np.savez(f"{path}/{REFERENCE_FILE}", **arrays | forged)
        [other] = made_by(trainer(), 1)
        assert other.run_id != reference.run_id
    np.savez(f"{path}/{REFERENCE_FILE}", **arrays)


@pytest.mark.slow
def test_unseen_samples_are_drawn_into_halves_as_well(trainer):
    one = trainer()
    found = as_references(made_by(one, 4), one.session.forget)
    assert ((~np.isnan(found.unseen)).sum(axis=0) == 2).all()
    share = np.isnan(found.unseen[0]).mean()
    assert 0.4 < share < 0.6
    assert found.least == 2
