import pytest
import torch
from toy import CPU, Listed, original, splits, state

from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.methods.finetune import Finetune


def test_published_defaults():
    assert Finetune().params.model_dump() == {
        "epochs": 10,
        "lr": 1e-3,
        "batch_size": 128,
        "weight_decay": 5e-4,
        "momentum": 0.9,
    }


def test_parity_with_training_written_out():
    """Two epochs of SGD on the retain set in plain torch; the forget set is not even read."""

    def untouchable(image):
        raise RuntimeError("the forget set was read")

    sets = vars(splits()) | {"forget": Listed(splits().forget, untouchable)}
    recipe = Finetune({"epochs": 2, "lr": 0.02, "batch_size": 64, "weight_decay": 0.1})
    outcome = run(original(), recipe, sets, CPU, RunOptions(3))

    images, labels = splits().retain.tensors
    student, generator = original().train(), torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(student.parameters(), 0.02, momentum=0.9, weight_decay=0.1)
    torch.manual_seed(3)
    losses = []
    for _ in range(2):
        total, order = 0.0, torch.randperm(170, generator=generator)
        for batch in order.tensor_split(3):
            loss = torch.nn.functional.cross_entropy(student(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        losses.append(total / 170)
    torch.testing.assert_close(state(outcome.model), state(student))
    assert [row["epoch"] for row in outcome.history] == [0, 1]
    assert [row["loss"] for row in outcome.history] == pytest.approx(losses, rel=1e-6)
    assert list(outcome.history[0]) == ["epoch", "loss", "seconds"] and outcome.final == {}
