"""What a new version is given besides its weights."""

from dataclasses import replace

import numpy as np
from torch.utils.data import Subset

from mlflow_unlearn.evidence.provenance import Provenance
from mlflow_unlearn.registry.flavor import input_example
from mlflow_unlearn.session.new_version import example_without_forgotten, new_record


def test_its_record(opened, options):
    provenance = Provenance(method="lotus", params={"epochs": 1}, seed=0)
    record, old = new_record(opened, options, provenance), opened.version.record
    assert record.provenance == provenance and record.source_uri == "models:/clf/1"
    for name in ("architecture", "num_classes", "image_shape", "transform", "classes", "data"):
        assert getattr(record, name) == getattr(old, name), name
    other = options.model_copy(update={"architecture": "timm:resnet10t"})
    assert new_record(opened, other, provenance).architecture == "timm:resnet10t"  # of an exported program


def test_an_example_of_images_that_stay_stays(opened):
    assert example_without_forgotten(opened) is None


def test_an_example_that_shows_a_forgotten_image_is_replaced(opened):
    """The template's example is the first two test images: forget one of them."""
    test, retain = opened.splits.test, opened.splits.retain
    forgetting = replace(opened, splits=replace(opened.splits, forget=Subset(test, [1]), test=retain))
    forgetting = replace(forgetting, forget=np.array([0]))
    example = example_without_forgotten(forgetting)
    assert np.array_equal(example, np.stack([retain[i][0].numpy() for i in range(2)]))
    assert not np.array_equal(example, input_example(opened.version))
