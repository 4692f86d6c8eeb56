import dataclasses
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset
from toy import CPU, Listed, accuracy, digits, global_state, logits, net, original, same, splits, state

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.loop import resolve_hardware, run, shuffled_batches
from mlflow_unlearn.methods import Method, OptimizerSpec, Params, Phase
from mlflow_unlearn.models import weights_digest

ADAMW = OptimizerSpec("adamw", 1e-3, 5e-4)
SETS = {"forget": digits(0, 30), "retain": digits(30, 200), "val": digits(200, 350), "test": digits(350, 500)}


def cross_entropy(batch):
    return nn.functional.cross_entropy(batch.logits, batch.labels)


def follow(plan, model=None, datasets=SETS, *, seed=0, hardware=CPU, **options):
    """Run a plan that is given as a generator function of the workspace."""

    class Made(Method):
        name = "made"
        Params = Params

        def plan(self, workspace):
            return (yield from plan(workspace))

    return run(model or original(), Made(), datasets, seed=seed, hardware=hardware, **options)


def one_phase(loss=cross_entropy, optimizer=ADAMW, batch_size=32, **options):
    options = options or {"retain": torch.arange(170)}

    def plan(workspace):
        yield Phase(loss, optimizer, batch_size, **options)

    return plan


class TestBatches:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.integers(1, 200), st.integers(2, 40), st.integers(0, 2**32), st.booleans())
    def test_an_even_partition_without_a_single_sample(self, count, size, seed, shuffled):
        generator = torch.Generator().manual_seed(seed) if shuffled else None
        batches = shuffled_batches(count, Phase(cross_entropy, ADAMW, size), generator)
        flat = sum(batches, [])
        assert sorted(flat) == list(range(count)) and (shuffled or flat == sorted(flat))
        sizes = [len(batch) for batch in batches]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= max(size, 3) and (min(sizes) >= 2 or count == 1)
        # As many as the batch size asks for; an odd rest of pairs takes one less.
        assert len(batches) == -(-count // size) or (size == 2 and count % 2 and len(batches) == max(1, count // 2))

    def test_shuffled_by_the_generator(self):
        phase = Phase(cross_entropy, ADAMW, 7)
        a, b, c = (shuffled_batches(50, phase, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert a == b != c


class TestWhatALossSees:
    """The images of this model carry their own number: it is what the model returns in place of class 0."""

    @staticmethod
    def sets():
        def numbered(numbers, labels):
            return TensorDataset(numbers.float().view(-1, 1, 1, 1), labels)

        labels = torch.arange(20) % 3
        return {"forget": numbered(torch.arange(20), labels), "retain": numbered(100 + torch.arange(20), labels)}

    class Says(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, images):
            number = images.flatten()
            return torch.stack([number * self.scale, number * 0, number * 0], dim=1)

    def see(self, epochs=1, seed=0, **options):
        seen = []

        def loss(batch):
            seen.append(batch)
            return batch.logits.sum() * 0

        forget, retain = torch.tensor([3, 1, 4, 15]), torch.tensor([9, 2, 6, 5, 0])
        plan = one_phase(loss, OptimizerSpec("sgd", 0.1), 4, forget=forget, retain=retain, epochs=epochs, **options)
        follow(plan, self.Says(), self.sets(), seed=seed)
        return seen

    @staticmethod
    def numbers(batches):
        return torch.cat([batch.logits[:, 0] for batch in batches]).tolist()

    def test_each_chosen_sample_once_an_epoch_with_its_label_and_its_set(self):
        seen = self.see(epochs=2)
        for epoch in (seen[:3], seen[3:]):
            assert sorted(self.numbers(epoch)) == [1, 3, 4, 15, 100, 102, 105, 106, 109]
            for batch in epoch:
                numbers = batch.logits[:, 0].long()
                assert torch.equal(batch.forget, numbers < 100)
                assert torch.equal(batch.labels, numbers % 100 % 3)
                assert batch.teacher_logits is None

    def test_both_sets_are_shuffled_together_anew_in_each_epoch(self):
        seen = self.see(epochs=2)
        assert self.numbers(seen[:3]) != self.numbers(seen[3:])
        assert any(batch.forget.any() and not batch.forget.all() for batch in seen)
        assert self.numbers(seen) == self.numbers(self.see(epochs=2)) != self.numbers(self.see(epochs=2, seed=1))

    @pytest.mark.parametrize("cache_teacher", [True, False])
    def test_the_teachers_logits_are_those_of_the_same_sample(self, cache_teacher):
        seen = []

        def loss(batch):
            seen.append((batch.logits.detach()[:, 0] / model.scale, batch.teacher_logits[:, 0]))
            return batch.logits.sum() * 0

        model = self.Says()
        sets = {"forget": torch.arange(20), "retain": torch.arange(19)}
        plan = one_phase(loss, OptimizerSpec("sgd", 0.1), 4, epochs=3, teacher=True, **sets)
        follow(plan, model, self.sets(), cache_teacher=cache_teacher)
        assert len(seen) == 30
        for student, teacher in seen:
            assert torch.equal(student, teacher)

    def test_one_set_alone(self):
        for role in ("forget", "retain"):
            seen = []
            plan = one_phase(
                lambda b, seen=seen: seen.append(b) or b.logits.sum(), teacher=True, **{role: torch.arange(5)}
            )
            follow(plan, self.Says(), self.sets())
            (batch,) = seen
            assert batch.forget.all() == batch.forget.any() == (role == "forget")

    def test_datasets_are_asked_with_plain_integers(self):
        sets = SETS | {"retain": Listed(SETS["retain"])}
        assert weights_digest(follow(one_phase(), datasets=sets).model) == weights_digest(follow(one_phase()).model)


class TestTraining:
    @pytest.mark.parametrize("name", ["adamw", "sgd"])
    def test_parity_with_a_loop_written_out_in_torch(self, name):
        """Two epochs in train mode on the shuffled batches, with dropout, BatchNorm and momentum."""
        spec = OptimizerSpec(name, 1e-2, 1e-3, 0.9 if name == "sgd" else 0.0)
        model = original().train()
        if name == "adamw":
            optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=1e-3)
        else:
            optimizer = torch.optim.SGD(model.parameters(), 1e-2, 0.9, weight_decay=1e-3, nesterov=True)
        images, labels = SETS["retain"].tensors
        generator = torch.Generator().manual_seed(5)
        torch.manual_seed(5)
        for _ in range(2):
            order = torch.randperm(170, generator=generator)
            torch.empty((), dtype=torch.int64).random_()  # The data loader's seed for its workers.
            for batch in order.tensor_split(5):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
        plan = one_phase(optimizer=spec, batch_size=40, retain=torch.arange(170), epochs=2)
        assert same(state(follow(plan, seed=5).model), state(model))

    def test_the_one_cycle_schedule(self):
        """d/dw of the loss w is 1, so that w moves by the sum of the learning rates: the schedule is 2 epochs long."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        spec = OptimizerSpec("sgd", 0.1, one_cycle_epochs=2)
        plan = one_phase(lambda b: b.logits[:, 0].mean(), spec, 50, retain=torch.arange(170), epochs=2)
        moved = (model[1].bias - follow(plan, model).model[1].bias)[0].item()
        reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(reference, 0.1, total_steps=9, cycle_momentum=False)
        rates = []
        for _ in range(8):
            rates.append(schedule.get_last_lr()[0])
            reference.step()
            schedule.step()
        assert moved == pytest.approx(sum(rates), rel=1e-5)
        assert max(rates) > 0.09 and rates[-1] < 0.01

    def test_phases_with_equal_settings_share_the_state_of_their_optimizer(self):
        def two(second):
            def plan(workspace):
                yield Phase(cross_entropy, ADAMW, 32, retain=torch.arange(170))
                yield Phase(cross_entropy, second, 32, retain=torch.arange(170))

            return weights_digest(follow(plan, net(norm=False)).model)

        one = one_phase(retain=torch.arange(170), epochs=2)
        equal = two(dataclasses.replace(ADAMW))
        assert equal == weights_digest(follow(one, net(norm=False)).model)
        assert equal != two(dataclasses.replace(ADAMW, momentum=0.5))

    def test_the_hook_runs_between_backward_and_step(self):
        seen = []

        def hook(model):
            seen.append(model[0].weight.grad.norm().item())
            for name, parameter in model.named_parameters():
                if name != "6.bias":
                    parameter.grad = None

        model = original()
        after = follow(one_phase(retain=torch.arange(64), gradient_hook=hook), model).model
        assert len(seen) == 2 and min(seen) > 0
        changed = {
            name for name, p in after.named_parameters() if not torch.equal(p, dict(model.named_parameters())[name])
        }
        assert changed == {"6.bias"}

    def test_the_student_trains_in_train_mode_even_after_a_measurement(self):
        modes = []

        def loss(batch):
            modes.append(workspaces[-1].model.training)
            return cross_entropy(batch)

        workspaces = []

        def plan(workspace):
            workspaces.append(workspace)
            for _ in range(2):
                workspace.predictions("forget")
                yield Phase(loss, ADAMW, 170, retain=torch.arange(170))
            return {}

        outcome = follow(plan, original().eval())
        assert modes == [True, True] and not outcome.model.training
        assert not torch.equal(outcome.model[1].running_mean, original()[1].running_mean)

    def test_stats_are_the_mean_over_samples(self):
        """Batches of 4, 3 and 3 with losses 0, 1 and 2: (0 · 4 + 1 · 3 + 2 · 3) / 10 = 0.9, and not their mean 1."""
        losses, stats = iter([0.0, 1.0, 2.0]), []

        def plan(workspace):
            stats.append((yield Phase(lambda b: b.logits.sum() * 0 + next(losses), ADAMW, 4, retain=torch.arange(10))))

        follow(plan)
        assert stats[0].loss == pytest.approx(0.9) and stats[0].seconds > 0


class TestWorkspace:
    def test_predictions_of_student_and_teacher(self):
        seen = {}

        def plan(workspace):
            yield Phase(cross_entropy, OptimizerSpec("sgd", 0.5), 32, forget=torch.arange(30))
            seen["student"] = workspace.predictions("val")
            seen["model"] = logits(workspace.model, SETS["val"]).argmax(1)
            seen["teacher"] = workspace.predictions("val", teacher=True)
            seen["labels"] = workspace.labels("val")

        follow(plan)
        assert torch.equal(seen["student"], seen["model"])
        assert torch.equal(seen["teacher"], logits(original(), SETS["val"]).argmax(1))
        assert torch.equal(seen["labels"], SETS["val"].tensors[1])
        assert not torch.equal(seen["student"], seen["teacher"])

    def test_a_snapshot_does_not_follow_the_student(self):
        def plan(workspace):
            yield Phase(cross_entropy, ADAMW, 32, retain=torch.arange(170))
            kept, digest = workspace.snapshot(), weights_digest(workspace.model)
            yield Phase(cross_entropy, ADAMW, 32, retain=torch.arange(170))
            moved = weights_digest(workspace.model) != digest
            workspace.restore(kept)
            return {"moved": moved, "back": weights_digest(workspace.model) == digest}

        assert follow(plan).final == {"moved": True, "back": True}

    def test_history_final_and_the_callback(self):
        heard = []

        def plan(workspace):
            yield Phase(cross_entropy, ADAMW, 170, retain=torch.arange(170))
            workspace.record(epoch=0, loss=1.5)
            workspace.record(epoch=1, loss=0.5)
            return {"acc_forget": 0.25}

        outcome = follow(plan, on_epoch=heard.append)
        assert outcome.history == heard == [{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 0.5}]
        assert outcome.final == {"acc_forget": 0.25} and outcome.seconds > 0

    def test_a_plan_that_yields_nothing_may_edit_the_weights(self):
        def plan(workspace):
            with torch.no_grad():
                workspace.model[6].bias.add_(1)
            return {}
            yield

        model = original()
        outcome = follow(plan, model)
        assert torch.equal(outcome.model[6].bias, model[6].bias + 1) and outcome.history == []

    def test_labels_that_are_no_classes(self):
        sets = SETS | {"val": TensorDataset(torch.zeros(3, 1, 8, 8), torch.zeros(3, 1))}

        def plan(workspace):
            yield workspace.labels("val")

        with pytest.raises(UnlearnError, match=r"labels of the val set have shape \[3, 1\]"):
            follow(plan, datasets=sets)


class TestFailures:
    def test_a_loss_that_is_not_finite(self):
        steps = iter([1.0, 1.0, float("nan")])
        plan = one_phase(lambda b: cross_entropy(b) * next(steps), OptimizerSpec("sgd", 0.02))
        before = global_state()
        with pytest.raises(
            UnlearnError, match="loss became nan in epoch 1, step 3, with lr 0.02: try a .*lr, say 0.002"
        ):
            follow(plan)
        assert global_state() == before

    def test_the_epoch_is_counted_over_phases(self):
        steps = iter([1.0] * 12 + [float("inf")])

        def plan(workspace):
            for epoch in range(3):
                yield Phase(lambda b: cross_entropy(b) * next(steps), ADAMW, 32, retain=torch.arange(170))
                workspace.record(epoch=epoch)

        with pytest.raises(UnlearnError, match="loss became inf in epoch 3, step 1"):
            follow(plan)

    def test_all_parameters_frozen(self):
        with pytest.raises(UnlearnError, match="all parameters of the model are frozen: set requires_grad"):
            follow(one_phase(), original().requires_grad_(False))


def test_learning_works_at_all():
    plan = partial(one_phase, optimizer=OptimizerSpec("sgd", 0.05, momentum=0.9, one_cycle_epochs=15))
    outcome = follow(plan(retain=torch.arange(170), epochs=15), net())
    assert accuracy(outcome.model, SETS["retain"]) > 0.9 > 0.3 > accuracy(net(), SETS["retain"])


class TestResolveHardware:
    def test_random_inputs_do_not_use_up_the_callers_random_numbers(self):
        before = global_state()
        data = Listed(splits().retain, lambda image: image + torch.rand(()))
        with torch.no_grad():
            hardware = resolve_hardware(original(), data, precision="auto", num_workers=1)
        assert hardware.precision in ("fp32", "bf16") and hardware.num_workers == 1
        assert data.readings == 64 and global_state() == before

    def test_nothing_is_read_where_nothing_is_timed(self):
        data = Listed(splits().retain)
        hardware = resolve_hardware(original(), data, device="cpu", precision="bf16", progress=True)
        assert dataclasses.astuple(hardware) == (torch.device("cpu"), "bf16", 0, True)
        assert data.readings == 0
