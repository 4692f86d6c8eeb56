import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset
from toy import Listed, digits

from mlflow_unlearn import Splits
from mlflow_unlearn.data.splits import labels_of, wholly_forgotten
from mlflow_unlearn.errors import UnlearnError

DATA = digits(0, 12)
LABELS = DATA.tensors[1]


class Kept(Listed):
    """Keeps its labels apart, under a name, and refuses to read images for them."""

    def __init__(self, **attributes):
        super().__init__(DATA)
        vars(self).update(attributes)


class TestSplits:
    def test_any_map_style_dataset(self):
        parts = [DATA, Listed(DATA), Subset(DATA, [0]), [(torch.zeros(1, 8, 8), 0)]]
        splits = Splits(*parts)
        assert [splits.forget, splits.retain, splits.val, splits.test] == parts

    @pytest.mark.parametrize("split", ["forget", "retain", "val", "test"])
    def test_an_empty_set(self, split):
        parts = dict.fromkeys(("forget", "retain", "val", "test"), DATA) | {split: Subset(DATA, [])}
        with pytest.raises(UnlearnError, match=f"the {split} set is empty"):
            Splits(**parts)

    def test_what_is_not_map_style(self):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter([DATA[0]])

            def __len__(self):
                return 1

        class Endless(Dataset):
            def __getitem__(self, index):
                return DATA[0]

        for bad, name in ((Stream(), "Stream"), (Endless(), "Endless"), (None, "NoneType"), ({1}, "set")):
            with pytest.raises(UnlearnError, match=f"the val set is a {name}, not a map-style dataset"):
                Splits(DATA, DATA, bad, DATA)


class TestLabels:
    @pytest.mark.parametrize(
        "dataset",
        [
            DATA,
            TensorDataset(DATA.tensors[0], LABELS.to(torch.uint8)),
            Listed(DATA),
            ConcatDataset([Subset(DATA, range(5)), Listed(Subset(DATA, range(5, 12)))]),
            Kept(targets=LABELS.tolist()),
            Kept(labels=LABELS.numpy().astype(np.uint8)),
            Kept(labels=LABELS, target_transform=None),
        ],
    )
    def test_read_or_kept(self, dataset):
        labels = labels_of(dataset)
        assert labels.dtype == torch.int64 and torch.equal(labels, LABELS)

    def test_kept_labels_cost_no_reading(self):
        dataset = Kept(targets=LABELS.tolist())
        for whole in (
            dataset,
            Subset(dataset, [3, 1]),
            ConcatDataset([dataset, DATA]),
            Subset(Subset(dataset, [3]), [0]),
        ):
            labels_of(whole)
        assert dataset.readings == 0

    def test_a_subset_reads_its_own_samples_alone(self):
        dataset = Listed(DATA)
        for subset in (Subset(dataset, [7, 2]), Subset(ConcatDataset([dataset]), [7, 2])):
            assert torch.equal(labels_of(subset), LABELS[[7, 2]])
        assert dataset.readings == 4

    @pytest.mark.parametrize(
        "attributes",
        [
            {"targets": LABELS + 1, "target_transform": lambda label: label - 1},
            {"labels": ["zero", "one", "two"]},
            {"labels": ["zero"] * 12},
            {"labels": [0, 1]},
            {"targets": None},
            {"targets": LABELS[:, None]},
            {"targets": LABELS.float()},
        ],
    )
    def test_attributes_that_are_not_the_labels_are_passed_over(self, attributes):
        assert torch.equal(labels_of(Kept(**attributes)), LABELS)


@pytest.mark.nightly
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9)))
def test_wholly_forgotten_classes_are_a_set_difference(forget, retain):
    found = wholly_forgotten(torch.tensor(forget), torch.tensor(retain, dtype=torch.long))
    assert found.tolist() == sorted(set(forget) - set(retain))
