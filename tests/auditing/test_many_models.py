"""Distributions over many models, in an audit of modules in memory."""

from dataclasses import replace

import mlflow
import pytest
import toy
from stores import copied
from torch.utils.data import ConcatDataset

from mlflow_unlearn import config
from mlflow_unlearn.auditing.audit import Audit, AuditGold
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.methods.retrain import Training
from mlflow_unlearn.session.session import open_session


@pytest.fixture(scope="module")
def session(template, tmp_path_factory):
    with copied(template, tmp_path_factory.mktemp("many")) as store, mlflow.start_run():
        options = config.Unlearn(model_uri="models:/clf/1", forget="random:20%,seed=1", device="cpu")
        folder = tmp_path_factory.mktemp("files")
        yield open_session(store.client, options, folder, progress=False)


def trained(session, seed: int, *, everything: bool = False):
    splits = session.splits
    data = ConcatDataset([splits.forget, splits.retain]) if everything else splits.retain
    method = Training({"epochs": 12, "lr": 0.1, "batch_size": 32})
    return run(toy.net(seed), method, {"retain": data}, session.hardware, RunOptions(seed)).model


@pytest.mark.nightly
def test_sixteen_of_each(session):
    """Versions that did nothing are told from retrained ones, and retrained ones are not."""
    golds = [trained(session, 100 + seed) for seed in range(16)]
    named = [AuditGold(f"models:/gold/{n}", module, weights_digest(module)) for n, module in enumerate(golds)]
    many = {}
    for name, everything in (("nothing done", True), ("retrained", False)):
        first, *alike = (trained(session, seed, everything=everything) for seed in range(16))
        audit = Audit(replace(session, module=first), "models:/clf/1", session.module, named, alike=alike)
        many[name] = audit.record("0" * 32).many
    assert (many["retrained"].unlearned, many["retrained"].golds) == (16, 16)
    nothing, again = many["nothing done"], many["retrained"]
    assert nothing.u_lira > nothing.u_lira_high and nothing.klom_p95 > again.klom_p95
    assert abs(again.u_lira - 0.5) < 0.08 < nothing.u_lira - 0.5
