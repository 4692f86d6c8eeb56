"""`methods`: what is listed."""

import re

from mlflow_unlearn.methods import BUILTIN


def test_methods_are_listed(cli):
    done = cli("methods")
    assert done.code == 0
    for name, method in BUILTIN.items():
        assert name in done.out
        assert set(method.Params.model_fields) <= set(re.findall(r"(\w+)=", done.out))
