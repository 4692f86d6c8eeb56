"""Functions of the user's own, by name."""

import inspect
import pickle
import sys

import pytest

from mlflow_unlearn import console
from mlflow_unlearn.data.functions import import_function, users_code
from mlflow_unlearn.errors import UnlearnError


def test_a_function_of_the_working_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "made_here.py").write_text("VALUE = 3\ndef double(x):\n    return 2 * x\n")
    assert import_function("made_here:double")(4) == 8
    for name, message in (
        ("made_here", "'made_here' names no function: write package.module:function"),
        ("made_here:", "names no function"),
        ("made_here:VALUE", "module 'made_here' has no function 'VALUE'"),
        ("made_nowhere:f", "importing 'made_nowhere' failed .* No module named 'made_nowhere'.: run from its folder"),
    ):
        with pytest.raises(UnlearnError, match=message):
            import_function(name)


CODE = """
import sys

print("at the import")


def leaves():
    sys.exit("enough")


def prints(value):
    print("when called")
    return value
"""


def test_what_users_code_prints_is_not_our_result(tmp_path, monkeypatch, capsys):
    """A command's standard output is for its result; in Python everything stays as it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made_noise.py").write_text(CODE)
    with monkeypatch.context() as command:
        command.setattr(sys, "stdout", console.Output(sys.stdout))
        assert import_function("made_noise:prints")(3) == 3
    assert capsys.readouterr() == ("", "at the import\nwhen called\n")
    assert import_function("made_noise:prints")(3) == 3
    assert capsys.readouterr() == ("when called\n", "")


def test_users_code_ends_no_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made_exit.py").write_text(CODE)
    (tmp_path / "made_gone.py").write_text("raise SystemExit(0)")
    sentence = r" called sys.exit\('enough'\), which would have ended the command: raise an error there instead"
    with pytest.raises(UnlearnError, match=f"^'made_exit:leaves'{sentence}$"):
        import_function("made_exit:leaves")()
    with pytest.raises(UnlearnError, match=r"importing 'made_gone' called sys.exit\(0\)"):
        import_function("made_gone:f")
    with pytest.raises(UnlearnError, match=f"^the model{sentence}$"), users_code("the model"):
        sys.exit("enough")


def test_errors_become_a_sentence_where_a_way_out_is_known():
    with pytest.raises(UnlearnError, match="^my own$"), users_code("it", "correct it"):
        raise UnlearnError("my own")
    with (
        pytest.raises(UnlearnError, match=r"^it failed \(ValueError: no\): correct it$"),
        users_code("it", "correct it"),
    ):
        raise ValueError("no")
    with pytest.raises(ValueError, match="^no$"), users_code("it"):
        raise ValueError("no")


def test_a_function_keeps_its_signature_and_reaches_workers():
    function = import_function("toy:trainable")
    assert list(inspect.signature(function).parameters) == ["num_classes"]
    assert pickle.loads(pickle.dumps(function)).name == "toy:trainable"
