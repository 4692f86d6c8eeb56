"""Search spaces: declared by the methods, changed by the user, and always within what a method takes."""

import json

import optuna
import pytest

from mlflow_unlearn.config import parse_params
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import all_methods, get_method
from mlflow_unlearn.tuning.space import GRID_POINTS, search_space

SEARCHED = [name for name in all_methods() if name not in ("retrain", "exact")]  # which have nothing to choose


def space(given=None, *, methods=("lotus",), family="cnn", prefixes=("none",)):
    return search_space(methods, family, list(prefixes), parse_params(given, "space"))


def configs(searched, count=40, seed=0):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [searched.suggest(study.ask()) for _ in range(count)]


@pytest.mark.parametrize("method", SEARCHED)
@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_every_declared_space_is_legal_and_contains_the_published_hyperparameters(method, family):
    searched = space(methods=(method,), family=family)
    published = get_method(method)(family=family).params.model_dump()
    assert searched.distributions[method]
    assert searched.published_settings() == [{name: published[name] for name in searched.distributions[method]}]
    for chosen in configs(searched, 20):
        get_method(method)(chosen.params, family=family)


def test_what_is_recorded_takes_the_place_of_a_default():
    """Around the recorded rate is searched, and what is not searched is fixed at what is recorded."""
    recorded = {"transpose": {"lr": 0.2, "batch_size": 32, "epochs": 9}}
    searched = search_space(["transpose"], "cnn", ["none"], {}, recorded)
    [published] = searched.published_settings()
    assert published["lr"] == 0.2 and searched.distributions["transpose"]["lr"].high == pytest.approx(0.8)
    assert {chosen.params["batch_size"] for chosen in configs(searched, 5)} == {32}
    # A longer repair would hardly be cheaper than retraining.
    epochs = searched.distributions["transpose"]["epochs"]
    assert (epochs.low, epochs.high) == (4, 9)
    given = search_space(["transpose"], "cnn", ["none"], {"batch_size": 64, "lr": 0.1}, recorded)
    assert {(c.params["batch_size"], c.params["lr"]) for c in configs(given, 5)} == {(64, 0.1)}


def test_the_user_changes_a_part():
    searched = space('{"alpha": [2, 3], "epochs": 4, "keep": ["last", "closest"], "lr": {"low": 0.1, "high": 0.2}}')
    found = configs(searched)
    assert {chosen.params["epochs"] for chosen in found} == {4}
    assert {chosen.params["keep"] for chosen in found} == {"last", "closest"}
    assert all(2 <= chosen.params["alpha"] <= 3 and 0.1 <= chosen.params["lr"] <= 0.2 for chosen in found)
    assert searched.distributions["lotus"]["alpha"].log  # as the hyperparameter declares it
    assert searched.most_epochs() == 4
    # The published values are beyond: the nearest that there are.
    assert searched.published_settings() == [{"alpha": 2.0, "lr": 0.1, "keep": "last"}]


def test_ranges_in_full():
    given = '{"alpha": {"low": 1, "high": 9, "log": false, "step": 4}, "epochs": {"low": 2, "high": 8, "step": 3}}'
    found = configs(space(given))
    assert {chosen.params["alpha"] for chosen in found} == {1.0, 5.0, 9.0}
    assert {chosen.params["epochs"] for chosen in found} == {2, 5, 8}


def test_from_a_yaml_file(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("lr: [1e-5, 1e-3]\nprefix: [none, layer4]\n")
    searched = space(str(file))
    assert isinstance(searched.distributions["lotus"]["lr"], optuna.distributions.FloatDistribution)
    found = configs(searched)
    assert {chosen.prefix for chosen in found} == {"none", "layer4"}
    assert all(1e-5 <= chosen.params["lr"] <= 1e-3 for chosen in found)


def test_several_methods_have_parts_of_their_own():
    searched = space('{"scrub": {"alpha": 0.5}}', methods=("lotus", "scrub"), prefixes=("none", "layer4"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        trial = study.ask()
        chosen = searched.suggest(trial)
        method = trial.params["method"]
        assert chosen.method == method
        assert {name.split(".")[0] for name in trial.params} == {"method", method}
        assert searched.config(trial.params) == chosen
        assert chosen.params["alpha"] == 0.5 or method == "lotus"
    published = searched.published_settings()
    assert [params["method"] for params in published] == list(searched.methods)
    assert published[0]["lotus.alpha"] == 2.0


def test_different_spaces_have_different_records():
    records = [space(given).to_json() for given in (None, '{"alpha": [1, 16]}', '{"alpha": [1, 8]}', '{"alpha": 2}')]
    assert records[0] == records[1]
    assert len({json.dumps(each, sort_keys=True) for each in records}) == 3


def test_grid():
    searched = space('{"alpha": [1, 8], "epochs": [2, 3], "lr": 0.001, "keep": ["last", "closest"]}')
    points = searched.grid(0)
    assert len(points) == GRID_POINTS * 2 * 2 == len({tuple(point.values()) for point in points})
    assert sorted({point["alpha"] for point in points}) == pytest.approx([1.0, 2.0, 4.0, 8.0])
    assert {point["epochs"] for point in points} == {2, 3}
    assert points == searched.grid(0) != searched.grid(1)
    with pytest.raises(UnlearnError, match="sampler=grid needs one method, and methods=lotus,scrub names 2"):
        space(methods=("lotus", "scrub")).grid(0)


def test_the_first_trial_lies_on_the_steps():
    given = '{"alpha": {"low": 1, "high": 9, "log": false, "step": 4}, "epochs": {"low": 2, "high": 8, "step": 3}}'
    [first] = space(given).published_settings()
    assert (first["alpha"], first["epochs"]) == (1.0, 8)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ('{"alhpa": [1, 2]}', "space=: unknown hyperparameter 'alhpa' of lotus: valid values: a_u, accuracy, alpha,"),
        ('{"alpha": [1, 100]}', "space=: hyperparameter alpha = 100.0 of lotus is not usable"),
        ('{"lr": [0, 1]}', "space=: hyperparameter lr = 0.0 of lotus is not usable"),
        ('{"epochs": [1.5, 3]}', "space=: hyperparameter epochs = 1.5 of lotus is not usable"),
        ('{"alpha": [3, 1]}', "space=: alpha = [3, 1] of lotus is not usable (low = 3 is above high = 1)"),
        ('{"alpha": {"low": 1}}', "space=: alpha = {\"low\": 1} of lotus is not usable (high: field required)"),
        ('{"alpha": {"low": 1, "high": 2, "lgo": true}}', "(lgo: extra inputs are not permitted)"),
        ('{"alpha": {"low": -1, "high": 2, "log": true}}', "a logarithmic range cannot begin at -1"),
        ('{"alpha": {"low": 1, "high": 9, "step": 0}}', "(step: input should be greater than 0)"),
        ('{"epochs": {"low": 1, "high": 9, "step": 1.5}}', "epochs of lotus takes whole numbers, and step = 1.5"),
        ('{"keep": []}', "space=: keep = [] of lotus is not usable (choices is empty)"),
        ('{"keep": ["first"]}', "space=: hyperparameter keep = 'first' of lotus is not usable"),
        ('{"keep": {"low": 1, "high": 2}}', "space=: hyperparameter keep = 1.0 of lotus is not usable"),
        ('{"mask_forgotten_classes": {"low": 0, "high": 1}}', "of lotus takes no range"),
        ('{"alpha"', "space= cannot be parsed"),
        ("nowhere.yaml", "space=nowhere.yaml is neither NAME=VALUE, a JSON object nor a YAML file"),
        ("[1, 2]", "space='[1, 2]' is neither NAME=VALUE, a JSON object nor a YAML file"),
    ],
)  # fmt: skip
def test_what_is_refused(given, sentence):
    with pytest.raises(UnlearnError) as error:
        space(given)
    assert sentence in str(error.value)


def test_parts_of_unknown_methods_are_refused():
    with pytest.raises(UnlearnError, match="space=: 'alpha' is not one of the methods lotus, scrub"):
        space('{"alpha": [1, 2]}', methods=("lotus", "scrub"))
