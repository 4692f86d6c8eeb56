import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from toy import CPU, digits, logits, net, original, same, splits, state

from mlflow_unlearn.engine import output_cache
from mlflow_unlearn.engine.forward import forward
from mlflow_unlearn.engine.output_cache import SAMPLES, model_cache_key
from mlflow_unlearn.engine.predictions import SPLIT_NAMES, evaluate_split, evaluate_splits
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.errors import UnlearnError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "cache"))


def equal(a, b):
    return all(np.array_equal(value, vars(b)[name]) for name, value in vars(a).items() if value is not None)


class TestOneSplit:
    def test_outputs_by_hand(self):
        data = digits(0, 300)
        outputs = evaluate_split(original(), data, CPU, keep_probabilities=True)
        p = logits(original(), data).double().softmax(1)
        np.testing.assert_allclose(outputs.probabilities, p, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(outputs.confidences, p.amax(1), rtol=1e-4)
        np.testing.assert_allclose(outputs.entropies, -(p * p.log()).sum(1), rtol=1e-3, atol=1e-6)
        assert outputs.labels.tolist() == data.tensors[1].tolist()
        assert outputs.predictions.tolist() == p.argmax(1).tolist()

    def test_logits_come_by_batch_with_the_index_of_the_first_sample(self):
        starts, rows = [], []
        evaluate_split(original(), digits(0, 300), CPU, keep_logits=lambda i, z: (starts.append(i), rows.append(z)))
        assert starts == [0, 256]
        torch.testing.assert_close(torch.cat(rows), logits(original(), digits(0, 300)))

    def test_by_the_cache_they_are_the_same_and_images_are_not_read_again(self):
        data, key = digits(0, 50), model_cache_key(original(), CPU)
        first, second = (evaluate_split(original(), data, CPU, cache_key=key) for _ in range(2))
        assert equal(first, second) and equal(first, evaluate_split(original(), data, CPU))
        watched, seen = original(), []
        watched.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        assert equal(first, evaluate_split(watched, data, CPU, cache_key=key))
        assert seen == [SAMPLES] * 2, "a few samples, twice, show that it is the same model"

    def test_no_sample(self):
        with pytest.raises(UnlearnError, match="there is no sample to evaluate"):
            evaluate_split(original(), TensorDataset(torch.zeros(0, 1, 8, 8), torch.zeros(0).long()), CPU)


class TestSplits:
    def test_each_or_only_some(self):
        outputs = evaluate_splits(original(), splits(), CPU)
        assert tuple(outputs) == SPLIT_NAMES
        assert [name for name, found in outputs.items() if found.probabilities is not None] == ["forget"]
        some = evaluate_splits(original(), splits(), CPU, only=("test", "val"))
        assert list(some) == ["test", "val"] and all(equal(some[name], outputs[name]) for name in some)

    def test_the_model_is_left_as_it_was_where_a_copy_is_laid_out_otherwise(self):
        model = net().train()
        before = state(model)
        evaluate_splits(model, splits(), dataclasses.replace(CPU, channels_last=True), only=("val",))
        assert same(before, state(model)) and model.training
        assert model[0].weight.is_contiguous()

    def test_a_teacher_takes_over_the_logits(self):
        sets = splits()
        teacher = Teacher(original(), vars(sets), CPU)
        outputs = evaluate_splits(original(), sets, CPU, teacher=teacher)
        for name in ("forget", "retain", "val"):
            assert teacher.predictions(name).tolist() == outputs[name].predictions.tolist()
        assert teacher.passes == 0

    def test_no_trace_of_the_forget_set_is_cached(self, monkeypatch):
        seen = []

        def counted(model, dataset, *args, **options):
            seen.append(len(dataset))
            return forward(model, dataset, *args, **options)

        monkeypatch.setattr(output_cache, "forward", counted)
        for _ in range(2):
            evaluate_splits(original(), splits(), CPU, cached=True)
        assert sorted(count for count in seen if count > SAMPLES) == [30, 30, 150, 150, 170]
