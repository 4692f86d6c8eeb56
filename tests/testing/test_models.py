import pytest
import torch

from mlflow_unlearn.testing.models import FORGET, MODELS, RETAIN, TEST, TRAIN, VAL, digits, of_classes, original, subset


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_originals_have_something_to_forget(model):
    """All of the training set is memorised, and not all that was never seen."""
    images, labels = digits()
    with torch.no_grad():
        right = original(model)(images).argmax(dim=1) == labels
    assert right[:30].all() and not right[30:].all()


def test_the_splits_are_disjoint_and_one_sample_of_each_class_is_to_be_forgotten():
    assert sorted(FORGET + RETAIN + VAL + TEST) == list(range(70)) and TRAIN == FORGET + RETAIN
    images, labels = subset(FORGET).tensors
    assert sorted(labels.tolist()) == list(range(10)) and images.shape == (10, 1, 8, 8)
    assert 0 <= images.min() < images.max() <= 1


def test_the_indices_of_classes():
    found = of_classes(3, 5)
    assert set(found) < set(TRAIN) and set(subset(found).tensors[1].tolist()) == {3, 5}
    assert not {3, 5} & set(subset([i for i in TRAIN if i not in found]).tensors[1].tolist())
