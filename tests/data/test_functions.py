"""Functions of the user's own, by name."""

import sys

import pytest

from mlflow_unlearn.data.functions import import_function
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
        ("made_nowhere:f", "importing 'made_nowhere' failed .No module named 'made_nowhere'.: run from its folder"),
    ):
        with pytest.raises(UnlearnError, match=message):
            import_function(name)
