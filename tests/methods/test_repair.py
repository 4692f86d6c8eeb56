"""The repair that follows a disturbance, and what it takes of the training's record."""

import math
from collections import Counter

import pytest
import torch
from toy import CPU, Listed, original, same, splits, state
from watching import watch

from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.methods import BUILTIN, Batch
from mlflow_unlearn.methods._distillation import distillation
from mlflow_unlearn.methods._repair import TEMPERATURE, repair_loss

REPAIRING = ("transpose", "perturb", "msg", "retrain_from")
each = pytest.mark.parametrize("name", REPAIRING)


def test_the_loss_by_hand():
    """CE of p = (¼, ¾) with label 0 is log 4; a quarter of it is the divergence from (½, ½) at T = 4."""
    student, teacher = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    batch = Batch(student, torch.tensor([0]), torch.tensor([False]), teacher)
    divergence = distillation(teacher, student, TEMPERATURE).item()
    assert repair_loss(batch, 0.25).item() == pytest.approx(0.75 * math.log(4) + 0.25 * divergence)
    assert repair_loss(batch, 0.0).item() == pytest.approx(math.log(4))
    with pytest.raises(ValueError, match="the phase must name it as teacher"):
        repair_loss(Batch(student, torch.tensor([0]), torch.tensor([False]), None), 0.5)


@pytest.mark.parametrize(
    ("name", "params", "measured", "front", "back"),
    [
        ("transpose", {}, 0, 3 * 170, 3 * 170),
        ("perturb", {}, 0, 3 * 170, 3 * 170),
        ("msg", {}, 2 * 30, 3 * 170, 3 * 170),
        ("retrain_from", {"split": "6"}, 170, 0, 3 * 170),
    ],
)
def test_what_it_costs_in_passes_is_what_its_page_says(name, params, measured, front, back):
    """Samples through the first and the last layer, in eval mode (gradients, frozen layers) and in training mode."""
    counts = Counter()
    model = original()
    for place in (0, 6):

        def count(module, inputs, place=place):
            counts[place, module.training] += len(inputs[0])

        model[place].register_forward_pre_hook(count)
    run(model, BUILTIN[name]({"epochs": 3, **params}), vars(splits()), CPU, RunOptions(0))
    assert (counts[0, False], counts[0, True], counts[6, True]) == (measured, front, back)


@each
def test_it_costs_its_epochs_over_the_retain_set_and_reads_nothing_else(name):
    """As the page says: epochs × |D_r| training passes; the forget set is not even opened."""

    def untouchable(image):
        raise RuntimeError("the forget set was read")

    _, phases = watch(BUILTIN[name]({"epochs": 3, "batch_size": 64}))
    assert [len(phase.column("labels")) for phase in phases] == [170] * 3
    assert not any(phase.column("forget").any() for phase in phases)
    if name not in ("transpose", "perturb"):
        return  # msg and retrain_from look at the forget set before
    sets = vars(splits()) | {"forget": Listed(splits().forget, untouchable)}
    run(original(), BUILTIN[name]({"epochs": 1}), sets, CPU, RunOptions(0))


@each
def test_what_it_takes_of_the_recorded_training(name):
    recorded = {"epochs": 20, "lr": 0.2, "batch_size": 32, "weight_decay": 1e-4, "alpha": 3}
    taken = {"lr": 0.2, "batch_size": 32, "weight_decay": 1e-4}
    longer = {"retrain_from": (13, 13)}.get(name, (7, 10))  # of 20 epochs
    for family, epochs in zip(("cnn", "vit"), longer, strict=True):
        assert BUILTIN[name].recorded(recorded, family) == taken | {"epochs": epochs}
    assert BUILTIN[name].recorded({"epochs": 1}) == {"epochs": 1}
    assert BUILTIN[name].recorded({}) == {} == BUILTIN["lotus"].recorded(recorded)


@pytest.mark.parametrize(("schedule", "first"), [("one_cycle", 0.1 / 25), ("cosine", 0.1)])
def test_the_schedule_spans_all_epochs(schedule, first):
    """One-cycle begins at a 25th of its peak (PyTorch's default), a cosine at the rate itself; both end near 0."""
    rates = []
    method = BUILTIN["transpose"]({"epochs": 4, "lr": 0.1, "schedule": schedule, "batch_size": 170, "momentum": 0})
    student = original()
    student[5].p = 0.0
    _, phases = watch(method, student)
    assert len(phases) == 4 and len({phase.phase.optimizer for phase in phases}) == 1
    for phase in phases:
        moved = (phase.after["6.bias"] - phase.before["6.bias"]).norm().item()
        (batch,) = phase.batches
        rows = batch.logits.softmax(1) - torch.nn.functional.one_hot(batch.labels, 10)
        decayed = rows.mean(0) + 5e-4 * phase.before["6.bias"]
        rates.append(moved / decayed.norm().item())
    assert rates[0] == pytest.approx(first, rel=1e-3) and rates[-1] < 0.6 * max(rates)


def test_distillation_follows_the_original():
    _, phases = watch(BUILTIN["transpose"]({"epochs": 1, "distill": 0.5}))
    assert phases[0].phase.teacher == "original" and phases[0].batches[0].teacher_logits is not None
    plain, _ = watch(BUILTIN["transpose"]({"epochs": 1}))
    taught, _ = watch(BUILTIN["transpose"]({"epochs": 1, "distill": 0.5}))
    assert not same(state(plain.model), state(taught.model))
