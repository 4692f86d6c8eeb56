import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from toy import CPU, Listed, digits, global_state, logits, net, original, same, state

from mlflow_unlearn.engine.forward import forward, predict
from mlflow_unlearn.engine.hardware import checked_logits
from mlflow_unlearn.errors import UnlearnError

DATA = digits(0, 300)


class Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, images):
        return self.output(images)


def test_logits_and_labels_in_order_in_batches():
    model = original()
    batches = list(forward(model, DATA, CPU))
    assert [len(labels) for _, labels in batches] == [256, 44]
    torch.testing.assert_close(torch.cat([z for z, _ in batches]), logits(model, DATA))
    assert torch.equal(torch.cat([labels for _, labels in batches]), DATA.tensors[1])


def test_nothing_is_changed():
    model = net().train()
    model[5].eval()
    modes, before = [m.training for m in model.modules()], (state(model), global_state())
    for z, _ in forward(model, DATA, CPU):
        assert not z.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert same(before[0], state(model)) and global_state() == before[1]
    assert all(p.grad is None for p in model.parameters())


def test_types():
    """Logits are float32 in bfloat16 too, labels int64 whatever their type."""
    data = TensorDataset(DATA.tensors[0], DATA.tensors[1].to(torch.uint8))
    model = original()
    half = dataclasses.replace(CPU, precision="bf16")
    z, labels = next(iter(forward(model, data, half)))
    assert z.dtype == torch.float32 and labels.dtype == torch.int64
    exact = logits(model, DATA)[: len(z)]
    assert not torch.equal(z, exact)
    torch.testing.assert_close(z, exact, atol=0.3, rtol=0.05)


def test_predict():
    model = original()
    assert torch.equal(predict(model, DATA, CPU), logits(model, DATA).argmax(1))
    workers = dataclasses.replace(CPU, num_workers=2)
    assert torch.equal(predict(model, Listed(DATA), workers), logits(model, DATA).argmax(1))


def test_what_a_worker_refuses_comes_without_its_traceback():
    class Broken(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise UnlearnError(f"image {index} is broken: repair it")

    with pytest.raises(UnlearnError) as caught:
        predict(original(), Broken(), dataclasses.replace(CPU, num_workers=1))
    assert str(caught.value) == "image 0 is broken: repair it"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: (x, x), "the model returns a tuple, not a tensor of logits"),
        (lambda x: {"logits": x}, "the model returns a dict, not"),
        (lambda x: x.flatten(2), r"shape \[256, 1, 64\] for 256 images"),
        (lambda x: x.flatten(), r"shape \[16384\] for 256 images"),
        (lambda x: x.flatten(1)[:7], r"shape \[7, 64\] for 256 images"),
        (lambda x: x.flatten(1)[:, :9], r"the data has label 9, and the model has 9 outputs \(0 to K − 1\)"),
    ],
)
def test_outputs_that_are_no_logits(output, message):
    with pytest.raises(UnlearnError, match=message):
        predict(Returns(output), DATA, CPU)


def test_labels_that_are_no_classes():
    z = torch.zeros(2, 3)
    assert checked_logits(z, torch.tensor([0, 2])) is z
    for labels, message in (([0, 3], "label 3"), ([-1, 0], "label -1"), ([[0], [1]], r"shape \[2, 1\]")):
        with pytest.raises(UnlearnError, match=message):
            checked_logits(z, torch.tensor(labels))
