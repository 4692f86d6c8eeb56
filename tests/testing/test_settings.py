import pytest

from mlflow_unlearn.methods import BUILTIN
from mlflow_unlearn.testing.properties import PROMISED
from mlflow_unlearn.testing.settings import BATCH_SIZE, PROMISES, SETTINGS


def test_every_builtin_method_has_its_settings():
    assert list(SETTINGS) == list(BUILTIN)


@pytest.mark.parametrize("name", SETTINGS)
def test_they_are_hyperparameters_of_the_method(name):
    assert BUILTIN[name](SETTINGS[name]).params.model_dump().items() >= SETTINGS[name].items()


def test_promises_are_of_methods_and_of_properties_that_have_to_be_promised():
    assert PROMISES.keys() <= BUILTIN.keys()
    assert {promise for promises in PROMISES.values() for promise in promises} == PROMISED.keys()


def test_a_forget_set_can_be_smaller_than_a_batch():
    assert 3 < BATCH_SIZE <= 10
