"""A version opened for unlearning."""

from dataclasses import replace

import mlflow
import numpy as np
import pytest
import toy

from mlflow_unlearn.engine.loop import RunOptions
from mlflow_unlearn.errors import UnlearnError


def test_the_training_set_falls_into_forget_and_retain(opened):
    assert sorted([*opened.forget, *opened.retain]) == list(range(270))
    assert [len(data) for data in vars(opened.splits).values()][:2] == [54, 216]
    assert opened.image_shape == (1, 8, 8) and opened.requests == () == opened.earlier
    assert opened.forgotten_before.dtype == np.int64 and len(opened.forgotten_before) == 0
    assert opened.manifest(opened.forget[:2]).ids == tuple(opened.view.source.train.ids[i] for i in opened.forget[:2])


def test_the_forget_manifest_is_hashed_where_the_request_is(opened):
    plain, hashed = opened.forget_manifest, replace(opened, salt="00").forget_manifest
    assert plain.salt is None and hashed.salt == "00"
    assert hashed.mask(plain.ids).all() and not set(hashed.ids) & set(plain.ids)


def test_a_model_that_does_not_know_its_own_data_is_refused(opened):
    assert (opened.evaluate_original(force=False)["retain"].predictions == 0).mean() < 0.5
    ignorant = replace(opened, module=toy.net(3).eval())
    with pytest.raises(UnlearnError, match=r"below 0\.200: the input transform \(none\) or the order of the classes"):
        ignorant.evaluate_original(force=False)
    assert len(ignorant.evaluate_original(force=True)["retain"].labels) == 216


def test_the_version_s_module_stays_as_it_was(opened):
    before = toy.state(opened.module)
    result = opened.unlearn("finetune", {"epochs": 1}, RunOptions(0))
    assert toy.same(before, toy.state(opened.module)) and not toy.same(before, toy.state(result.model))


def test_a_forget_set_is_filed_once(opened, store, options, tmp_path):
    with mlflow.start_run() as run:
        filed = replace(opened, client=store.client, folder=tmp_path).filed(options)
        assert filed.filed(options) is filed
    [request] = filed.requests
    assert request.run_id == run.info.run_id and request.ad_hoc
    assert store.requests() == {}
    assert filed.samples_of_requests()[request.id].all()
