"""The methods by name: ours, those of plugins, and the names that plugins import."""

import sys

import pytest
from toy import original, splits

from mlflow_unlearn import methods, unlearn
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import BUILTIN, Method, all_methods, chosen_methods, get_method, plugin_failures
from mlflow_unlearn.methods.lotus import Lotus


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


class TestChosen:
    def test_all_but_the_reference_row(self):
        assert chosen_methods("all") == [name for name in all_methods() if name != "retrain"]

    def test_a_list_in_its_order_each_once(self):
        assert chosen_methods(" scrub, lotus,,scrub , retrain") == ["scrub", "lotus"]

    @pytest.mark.parametrize("text", ["", " , ", "retrain", "original,floor"])
    def test_none_at_all(self, text):
        with pytest.raises(UnlearnError, match="names no method to compare: use all, or names such as lotus,scrub"):
            chosen_methods(text)

    def test_an_unknown_name(self):
        with pytest.raises(UnlearnError, match="unknown method 'skrub': known methods, nearest first, are scrub"):
            chosen_methods("lotus,skrub")
