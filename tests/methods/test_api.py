import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import METHODS, Method, OptimizerSpec, Params, get_method
from mlflow_unlearn.methods.lotus import Lotus, LotusParams


class Made(Method):
    class Params(Params):
        rate: float = 0.5
        steps: int = 3

    name = "made"
    by_family = {"vit": {"rate": 0.1}}


class TestRegistry:
    def test_keys_are_the_methods_names(self):
        assert METHODS == {method.name: method for method in METHODS.values()}
        assert get_method("lotus") is Lotus

    @pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
    def test_each_method_is_complete(self, method):
        assert issubclass(method, Method) and method.plan is not Method.plan and method.__doc__
        for family in ("cnn", "vit"):
            assert isinstance(method(family=family).params, method.Params)
        assert method.Params.model_config["extra"] == "forbid" and method.Params.model_config["frozen"]

    @pytest.mark.parametrize(
        ("name", "message"),
        [("Lotus", "'Lotus': did you mean 'lotus'. known methods are lotus"), ("x", "'x': known methods are lotus")],
    )
    def test_an_unknown_name_lists_the_known_ones(self, name, message):
        with pytest.raises(UnlearnError, match=f"unknown method {message}"):
            get_method(name)


class TestParams:
    def test_completed_by_the_family_and_then_by_the_caller(self):
        assert Made().params.model_dump() == {"rate": 0.5, "steps": 3}
        assert Made(family="vit").params.rate == 0.1
        assert Made({"rate": 0.2}, family="vit").params.model_dump() == {"rate": 0.2, "steps": 3}

    def test_frozen(self):
        with pytest.raises(ValidationError):
            Made().params.rate = 1

    def test_unknown_names(self):
        with pytest.raises(
            UnlearnError, match="^unknown hyperparameter 'step' of made: did you mean 'steps'. known are rate"
        ):
            Made({"step": 1})
        with pytest.raises(UnlearnError, match="^unknown hyperparameter 'qqq' of made: known are rate, steps$"):
            Made({"qqq": 1})
        with pytest.raises(UnlearnError, match="^unknown hyperparameter 1 of made: known are"):
            Made({1: 1})

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), "much", None, [1]])
    def test_unusable_values(self, value):
        with pytest.raises(UnlearnError, match="^hyperparameter rate = .* of made is not usable: (input|value) should"):
            Made({"rate": value})

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        st.sampled_from(sorted(LotusParams.model_fields)),
        st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=5), st.none()),
    )
    def test_any_value_is_taken_within_its_bounds_or_refused_in_one_sentence(self, name, value):
        try:
            params = Lotus({name: value}).params
        except UnlearnError as error:
            assert name in str(error) and "\n" not in str(error)
        else:
            assert 0 < params.alpha <= 64 and 0 < params.lr <= 1 and params.epochs >= 1 and params.batch_size >= 2
            assert 0 <= params.weight_decay <= 1 and 0 < params.retain_fraction <= 1


def test_optimizers_are_equal_by_their_settings():
    """The loop keeps one optimiser for each: phases with equal settings share its state."""
    assert OptimizerSpec("sgd", 0.1) == OptimizerSpec("sgd", 0.1) != OptimizerSpec("sgd", 0.1, 1e-4)
    assert len({OptimizerSpec("sgd", 0.1), OptimizerSpec("sgd", 0.1)}) == 1
