import sys
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError
from toy import original, splits

from mlflow_unlearn import methods, unlearn
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.method import PhaseStats
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import (
    BUILTIN,
    Method,
    OptimizerSpec,
    Params,
    Phase,
    all_indices,
    all_methods,
    get_method,
    override_phases,
    plugin_failures,
    random_subset,
    run_epochs,
)
from mlflow_unlearn.methods.lotus import Lotus

FIELDS = [(method, name) for method in BUILTIN.values() for name in method.Params.model_fields]


class Made(Method):
    class Params(Params):
        rate: float = 0.5
        steps: int = 3

    name = "made"
    by_family = {"vit": {"rate": 0.1}}


class TestRegistry:
    def test_keys_are_the_methods_names(self):
        assert {name: method.name for name, method in BUILTIN.items()} == {name: name for name in BUILTIN}
        assert get_method("lotus") is Lotus and all_methods().items() >= BUILTIN.items()

    @pytest.mark.parametrize("method", BUILTIN.values(), ids=BUILTIN)
    def test_each_method_is_complete(self, method):
        assert issubclass(method, Method) and method.plan is not Method.plan and method.__doc__
        assert method.__module__ == f"mlflow_unlearn.methods.{method.name}"
        for family in ("cnn", "vit"):
            assert isinstance(method(family=family).params, method.Params)
        assert method.Params.model_config["extra"] == "forbid" and method.Params.model_config["frozen"]

    @pytest.mark.parametrize(
        ("name", "nearest"), [("Lotus", "lotus"), ("scrubb", "scrub"), ("bad-teacher", "bad_teacher"), ("train", "ret")]
    )
    def test_an_unknown_name_lists_the_known_ones(self, name, nearest):
        with pytest.raises(UnlearnError) as caught:
            get_method(name)
        message, _, known = str(caught.value).partition(" are ")
        assert message == f"unknown method {name!r}: known methods, nearest first,"
        assert known.startswith(nearest) and sorted(known.split(", ")) == sorted(all_methods())


PLUGIN = """
from mlflow_unlearn.methods import Method, Params

class Nothing(Method):
    '''Returns the original.'''
    name, Params = "nothing", Params

    def plan(self, workspace):
        return {}
        yield

class Something(Nothing):
    name = "something"
"""


class TestPlugins:
    """Distributions as pip leaves them, on the path: a module, and a record of what it registers."""

    @pytest.fixture
    def install(self, tmp_path, monkeypatch):
        modules = []

        def install(distribution, *points, code=PLUGIN):
            record = tmp_path / distribution / f"{distribution}-1.0.dist-info"
            record.mkdir(parents=True)
            record.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
            record.joinpath("entry_points.txt").write_text("\n".join(["[mlflow_unlearn.methods]", *points]))
            tmp_path.joinpath(distribution, f"{distribution}.py").write_text(code)
            monkeypatch.syspath_prepend(tmp_path / distribution)
            modules.append(distribution)
            methods.loaded_plugins.cache_clear()

        yield install
        methods.loaded_plugins.cache_clear()
        for name in modules:
            sys.modules.pop(name, None)

    def test_a_method_of_somebody_elses(self, install):
        install("made_one", "nothing = made_one:Nothing", "something = made_one:Something")
        assert [get_method(name).__module__ for name in ("nothing", "something")] == ["made_one"] * 2
        assert all_methods().items() >= BUILTIN.items() and not plugin_failures().keys() & {"nothing", "something"}
        assert weights_digest(unlearn(original(), splits(), "nothing").model) == weights_digest(original())
        with pytest.raises(UnlearnError, match="'nothin': known methods, nearest first, are nothing, "):
            get_method("nothin")

    def test_one_that_fails_to_import_breaks_nothing_but_itself(self, install):
        install("made_bad", "broken = made_bad:Broken", code="raise OSError('no disk')")
        install("made_good", "nothing = made_good:Nothing")
        why = "made_bad:Broken of the distribution made_bad fails to import: OSError: no disk"
        assert plugin_failures()["broken"] == why
        assert get_method("nothing").name == "nothing" and get_method("lotus") is Lotus
        assert "broken" not in all_methods()
        with pytest.raises(UnlearnError, match=f"the method 'broken' cannot be used: {why}"):
            get_method("broken")

    def test_one_whose_class_is_not_there(self, install):
        install("made_gone", "gone = made_gone:Gone")
        assert "made_gone:Gone of the distribution made_gone fails to import: Attr" in plugin_failures()["gone"]

    @pytest.mark.parametrize("value", ["Params", "Nothing.plan", "Something", "Method"])
    def test_what_is_no_method_of_that_name(self, install, value):
        install("made_odd", f"nothing = made_odd:{value}")
        assert "nothing" not in all_methods()
        with pytest.raises(UnlearnError, match=f"made_odd:{value} of the .* is not a Method with the name 'nothing'"):
            get_method("nothing")

    @pytest.mark.parametrize("ask", [all_methods, plugin_failures, lambda: get_method("lotus")])
    def test_a_name_of_ours(self, install, ask):
        install("made_thief", "lotus = made_thief:Nothing")
        for _ in range(2):
            with pytest.raises(UnlearnError, match="the method name 'lotus' is taken, and made_thief:Nothing of the"):
                ask()

    def test_two_of_one_name(self, install):
        install("made_first", "nothing = made_first:Nothing")
        install("made_second", "nothing = made_second:Nothing")
        with pytest.raises(UnlearnError, match="the method name 'nothing' is taken, and made_.* registers it again"):
            all_methods()

    def test_asked_only_once(self, install, monkeypatch):
        monkeypatch.setattr(sys, "made", 0, raising=False)
        install("made_slow", "nothing = made_slow:Nothing", code=PLUGIN + "\nimport sys\nsys.made += 1")
        for _ in range(2):
            get_method("nothing"), all_methods(), plugin_failures()
        assert sys.made == 1


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
            UnlearnError, match="^unknown hyperparameter 'step' of made: did you mean 'steps'. valid values: rate"
        ):
            Made({"step": 1})
        with pytest.raises(UnlearnError, match="^unknown hyperparameter 'qqq' of made: valid values: rate, steps$"):
            Made({"qqq": 1})
        with pytest.raises(UnlearnError, match="^unknown hyperparameter 1 of made: valid values: "):
            Made({1: 1})

    def test_known_ones_are_told_with_their_ranges(self):
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
            told = params.model_dump()
            for key in told.keys() & {"lr", "noise_lr", "repair_lr", "temperature", "retain_fraction", "share", "lam"}:
                assert 0 < told[key] <= (1 if key in ("retain_fraction", "share") else 100)
            assert all(told[key] >= 1 for key in told.keys() & {"epochs", "repair_epochs", "noise_steps", "copies"})
            assert told.get("batch_size", 2) >= 2 and 0 <= told.get("momentum", 0) < 1
            assert 0 <= told.get("weight_decay", 0) <= 1 and 0 <= told.get("beta", 0) <= 1


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


@pytest.mark.parametrize(
    ("earlier", "name"),
    [
        ("everything", "all_indices"),
        ("sample", "random_subset"),
        ("repeated", "run_epochs"),
        ("changed", "override_phases"),
    ],
)
def test_plugins_may_use_the_names_of_earlier_versions(earlier, name):
    assert getattr(methods, earlier) is getattr(methods, name)
    assert {earlier, name} <= set(methods.__all__)


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
