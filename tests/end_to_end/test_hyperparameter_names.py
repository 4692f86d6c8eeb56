"""A plugin's hyperparameters may have the names of our own options, from the command line to the evidence."""

import json
import sys

import mlflow
import pytest
import yaml

from mlflow_unlearn import methods

FORGET = "random:8%"

PLUGIN = """
from pydantic import Field
from mlflow_unlearn.methods import Method, OptimizerSpec, Params, Phase, everything, repeated
from mlflow_unlearn.methods.retrain import cross_entropy

class OddParams(Params):
    lr: float = Field(0.05, gt=0, le=1)
    epochs: int = Field(1, ge=1, le=9)
    seed: int = Field(7, json_schema_extra={"search": {"low": 1, "high": 9}})
    prefix: int = Field(2, ge=1, le=9, json_schema_extra={"search": {"low": 1, "high": 3}})
    method: str = "fast"
    augment: bool = False
    study: str = "none"

class Odd(Method):
    name, Params = "odd", OddParams

    def plan(self, workspace):
        p = self.params
        optimizer = OptimizerSpec("sgd", p.lr / p.prefix)
        phase = Phase(cross_entropy, optimizer, 32, retain=everything(workspace.labels("retain")))
        return repeated(workspace, phase, p.epochs)
"""


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """The method `odd`, installed as pip would leave it."""
    record = tmp_path / "made_odd-1.0.dist-info"
    record.mkdir()
    record.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: made_odd\nVersion: 1.0\n")
    record.joinpath("entry_points.txt").write_text("[mlflow_unlearn.methods]\nodd = made_odd:Odd\n")
    tmp_path.joinpath("made_odd.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    methods.loaded_plugins.cache_clear()
    yield
    methods.loaded_plugins.cache_clear()
    sys.modules.pop("made_odd", None)


def provenance(version):
    folder = mlflow.artifacts.download_artifacts(f"models:/clf/{version}/evidence/evidence.json")
    with open(folder) as file:
        return json.load(file)["provenance"]


@pytest.mark.slow
def test_unlearn_records_them_apart_from_its_own(odd, store, cli):
    given = {"seed": 5, "prefix": 3, "method": "slow", "augment": True, "study": "mine"}
    unlearn = ("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET, "--method", "odd", "--seed", "4")
    done = cli(*unlearn, "--params", json.dumps(given))
    assert done.code == 0, done.err
    found = provenance("2")
    assert found["params"] == {"lr": 0.05, "epochs": 1, **given}
    assert {key: found[key] for key in ("method", "seed", "prefix", "augment", "selection")} == {
        "method": "odd",
        "seed": 4,
        "prefix": None,
        "augment": None,
        "selection": None,
    }
    assert "unlearn.prefix" not in store.tags("2") and "unlearn.study" not in store.tags("2")
    assert cli("verify", "--model-uri", "models:/clf/2", "--recompute", "true").code == 0


@pytest.mark.nightly
def test_tune_searches_them_and_unlearn_takes_what_it_found(odd, store, cli, tmp_path):
    tune = ("tune", "--model-uri", "models:/clf/1", "--forget", FORGET, "--methods", "odd", "--n-trials", "2")
    done = cli(*tune, "--prefix", "none", "--storage", f"sqlite:///{tmp_path}/optuna.db", "--register", "none")
    assert done.code == 0, done.err
    [parent] = [run for run in store.runs() if run.data.tags.get("unlearn.command") == "tune"]
    best = mlflow.artifacts.load_text(f"runs:/{parent.info.run_id}/tune/best.yaml")
    setting = yaml.safe_load(best)
    assert (setting["method"], setting["prefix"]) == ("odd", "none")
    assert setting["params"]["prefix"] in (1, 2, 3)
    (tmp_path / "best.yaml").write_text(best)
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET, "--params", tmp_path / "best.yaml")
    assert done.code == 0, done.err
    found = provenance("2")
    assert found["method"] == "odd" and found["prefix"] is None
    assert setting["params"].items() <= found["params"].items()
