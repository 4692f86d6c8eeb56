"""Where a prefix may end, by what its activations show of the forget set."""

import numpy as np
import torch
from torch import nn
from toy import digits, original

from mlflow_unlearn.engine.split_choice import (
    FEATURES,
    SplitMemory,
    chosen_split,
    features,
    margins,
    memory_by_split,
    pooled,
)


def random():
    return torch.Generator().manual_seed(0)


class TestFeatures:
    def test_what_each_module_is_given(self):
        images, labels = digits(0, 6).tensors
        found, seen = features(original(), ["1", "6"], [(images[:4], labels[:4]), (images[4:], labels[4:])], random())
        assert np.array_equal(seen, labels)
        model = original()
        with torch.no_grad():
            expected = pooled(model[0](images)), nn.Sequential(*list(model)[:6])(images)
        np.testing.assert_allclose(found["1"], expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["6"], expected[1], rtol=1e-4, atol=1e-5)
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_wide_ones_are_projected_alike(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(2000, 10))
        batch = torch.randn(3, 2000), torch.zeros(3, dtype=torch.long)
        first, second = (features(model, ["1"], [batch], random())[0]["1"] for _ in range(2))
        assert first.shape == (3, FEATURES) and np.array_equal(first, second)

    def test_tokens_are_averaged(self):
        assert torch.equal(pooled(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])), torch.tensor([[2.0, 4.0]]))


def test_margins_by_hand():
    """Two classes on a line: the ridge keeps (almost) the exact fit, 1 − x and x, so the margin is ±(2 x − 1)."""
    train = np.repeat([[0.0], [1.0]], 50, axis=0), np.repeat([0, 1], 50)
    found = margins(train, np.array([[1.0], [0.75], [0.0]]), np.array([1, 0, 0]), 2)
    np.testing.assert_allclose(found, [1.0, -0.5, 1.0], atol=5e-3)


def test_the_last_place_before_it_shows():
    clear, shown = (lambda name, d=d: SplitMemory(name, d, 0.1) for d in (0.05, 0.3))
    assert chosen_split([clear("a"), clear("b"), shown("c"), clear("d")]) == "b"
    assert chosen_split([shown("a"), clear("b")]) == "a"
    assert chosen_split([clear("a"), clear("b")]) == "b"


def test_a_model_that_knows_its_samples_shows_them_behind_and_a_fresh_one_nowhere():
    """A head over random features memorises nothing in front of it; labels drawn at random show what was learned."""
    images, _ = digits(0, 400).tensors
    labels = torch.randint(0, 4, (400,), generator=random())
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in model:
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    fresh = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[:300]), labels[:300]).backward()
        optimizer.step()
    parts = {"forget": slice(0, 100), "retain": slice(100, 300), "val": slice(300, 400)}
    batches = {split: [(images[part], labels[part])] for split, part in parts.items()}
    names = ["1", "3", "5"]
    learned = memory_by_split(model, names, batches, 4, seed=0)
    assert [one.name for one in learned] == names and not learned[0].shows and learned[-1].shows
    assert chosen_split(learned) in names[:2]
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), fresh, strict=True):
            parameter.copy_(value)
    assert not any(one.shows for one in memory_by_split(model, names, batches, 4, seed=0))
