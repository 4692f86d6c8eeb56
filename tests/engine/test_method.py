from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from mlflow_unlearn.engine.method import PhaseStats
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import (
    BUILTIN,
    Method,
    OptimizerSpec,
    Params,
    Phase,
    all_indices,
    override_phases,
    random_subset,
    run_epochs,
)

FIELDS = [(method, name) for method in BUILTIN.values() for name in method.Params.model_fields]


class Made(Method):
    class Params(Params):
        rate: float = 0.5
        steps: int = 3

    name = "made"
    by_family = {"vit": {"rate": 0.1}}


class TestParams:
    def test_completed_by_the_family_and_then_by_the_caller(self):
        assert Made().params.model_dump() == {"rate": 0.5, "steps": 3}
        assert Made(family="vit").params.rate == 0.1
        assert Made({"rate": 0.2}, family="vit").params.model_dump() == {"rate": 0.2, "steps": 3}

    def test_every_preset_is_one_of_the_method(self):
        for method in BUILTIN.values():
            for name, preset in method.presets.items():
                assert method(preset).params.model_dump().items() >= preset.items(), (method.name, name)

    def test_an_unknown_preset_lists_the_known_ones(self):
        assert Made.preset(None) == {}
        with pytest.raises(UnlearnError, match="unknown preset 'authors' of scrub: valid values: authors-large, auth"):
            BUILTIN["scrub"].preset("authors")
        with pytest.raises(UnlearnError, match="unknown preset 'a' of made: valid values: none, so leave preset= out"):
            Made.preset("a")

    def test_frozen(self):
        with pytest.raises(ValidationError):
            Made().params.rate = 1

    def test_unknown_names(self):
        with pytest.raises(
            UnlearnError, match="^unknown hyperparameter 'step' of made: did you mean 'steps'. valid values: rate"
        ):
            Made({"step": 1})
        with pytest.raises(UnlearnError, match="^unknown hyperparameter 'qqq' of made: valid values: rate, steps$"):
            Made({"qqq": 1})
        with pytest.raises(UnlearnError, match="^unknown hyperparameter 1 of made: valid values: "):
            Made({1: 1})

    def test_known_ones_are_listed_with_their_ranges(self):
        class Ranged(Params):
            z: float = Field(0.5, gt=0, le=1)
            b: int = Field(1, ge=-1, lt=8)
            way: Literal["up", "down"] = "up"
            on: bool = True
            at: tuple[int, ...] = ()

        assert Ranged.known() == "at, b (≥ -1, < 8), on, way (up | down), z (> 0, ≤ 1)"
        with pytest.raises(UnlearnError, match="z = 2 of made is not usable: .*; valid values: at, b .*, z "):
            Ranged.parse({"z": 2}, method="made")
        with pytest.raises(UnlearnError, match="unknown hyperparameter 'a' of made: valid values: none$"):
            Params.parse({"a": 2}, method="made")

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), "much", None, [1]])
    def test_unusable_values(self, value):
        with pytest.raises(UnlearnError, match="^hyperparameter rate = .* of made is not usable: (input|value) should"):
            Made({"rate": value})

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(
        st.sampled_from(FIELDS),
        st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=5), st.none()),
    )
    def test_any_value_is_taken_within_its_bounds_or_refused_in_one_sentence(self, field, value):
        method, name = field
        try:
            params = method({name: value}).params
        except UnlearnError as error:
            assert name in str(error) and "\n" not in str(error)
        else:
            assert method(params.model_dump()).params == params
            values = params.model_dump()
            for key in values.keys() & {
                "lr",
                "noise_lr",
                "repair_lr",
                "temperature",
                "retain_fraction",
                "share",
                "lam",
            }:
                assert 0 < values[key] <= (1 if key in ("retain_fraction", "share") else 100)
            assert all(values[key] >= 1 for key in values.keys() & {"epochs", "repair_epochs", "noise_steps", "copies"})
            assert values.get("batch_size", 2) >= 2 and 0 <= values.get("momentum", 0) < 1
            assert 0 <= values.get("weight_decay", 0) <= 1 and 0 <= values.get("beta", 0) <= 1


def test_optimizers_are_equal_by_their_settings():
    """The loop keeps one optimiser for each: phases with equal settings share its state."""
    assert OptimizerSpec("sgd", 0.1) == OptimizerSpec("sgd", 0.1) != OptimizerSpec("sgd", 0.1, 1e-4)
    assert len({OptimizerSpec("sgd", 0.1), OptimizerSpec("sgd", 0.1)}) == 1


class TestIndices:
    def test_all_indices(self):
        assert all_indices(torch.tensor([7, 7, 9])).tolist() == [0, 1, 2]

    @pytest.mark.parametrize(("fraction", "count"), [(1.0, 100), (0.3, 30), (0.126, 13), (1e-9, 1)])
    def test_a_subset_is_random_and_never_empty(self, fraction, count):
        a, b, c = (random_subset(torch.zeros(100), fraction, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert len(set(a.tolist())) == len(a) == count and set(a.tolist()) <= set(range(100))
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_repeated_phase_is_recorded_each_time():
    class Workspace:
        def record(self, **values):
            rows.append(values)

    rows, phase = [], Phase(len, OptimizerSpec("sgd", 0.1), 2)
    running = run_epochs(Workspace(), phase, 2)
    assert next(running) is phase and rows == []
    assert running.send(PhaseStats(loss=0.5, seconds=1.0)) is phase
    with pytest.raises(StopIteration) as stopped:
        running.send(PhaseStats(loss=0.25, seconds=2.0))
    assert stopped.value.value == {}
    assert rows == [{"epoch": 0, "loss": 0.5, "seconds": 1.0}, {"epoch": 1, "loss": 0.25, "seconds": 2.0}]


def test_a_changed_plan_hears_and_returns_what_the_plan_itself_would():
    heard = []

    def plan():
        for size in (2, 3):
            heard.append((yield Phase(len, OptimizerSpec("sgd", 0.1), size)))
        return {"delta": 0.5}

    def outer():
        return (yield from override_phases(plan(), epochs=7, frozen_statistics=True))

    running = outer()
    phases = [next(running), running.send("first")]
    with pytest.raises(StopIteration) as stopped:
        running.send("second")
    assert stopped.value.value == {"delta": 0.5} and heard == ["first", "second"]
    assert [(p.batch_size, p.epochs, p.frozen_statistics, p.loss) for p in phases] == [
        (2, 7, True, len),
        (3, 7, True, len),
    ]
