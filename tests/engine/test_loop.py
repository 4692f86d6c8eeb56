import dataclasses
import json
import re
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from toy import CPU, Listed, accuracy, digits, global_state, logits, net, original, same, splits, state

from mlflow_unlearn.engine import hardware
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.hardware import resolve_hardware
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.errors import BrokenMethod, UnlearnError
from mlflow_unlearn.methods import Method, OptimizerSpec, Params, Phase

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

    return run(model or original(), Made(), datasets, hardware, RunOptions(seed, **options))


def one_phase(loss=cross_entropy, optimizer=ADAMW, batch_size=32, **options):
    options = options or {"retain": torch.arange(170)}

    def plan(workspace):
        yield Phase(loss, optimizer, batch_size, **options)

    return plan


class TestWhatALossSees:
    """The images of this model carry their own number: it is what the model returns in place of class 0."""

    @staticmethod
    def sets():
        def numbered(numbers, labels):
            return TensorDataset(numbers.float().view(-1, 1, 1, 1), labels)

        labels = torch.arange(20) % 3
        return {"forget": numbered(torch.arange(20), labels), "retain": numbered(100 + torch.arange(20), labels)}

    class Numbered(nn.Module):
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
        follow(plan, self.Numbered(), self.sets(), seed=seed)
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

        model = self.Numbered()
        sets = {"forget": torch.arange(20), "retain": torch.arange(19)}
        plan = one_phase(loss, OptimizerSpec("sgd", 0.1), 4, epochs=3, teacher="original", **sets)
        follow(plan, model, self.sets(), cache_teacher=cache_teacher)
        assert len(seen) == 30
        for student, teacher in seen:
            assert torch.equal(student, teacher)

    def test_one_set_alone(self):
        for role in ("forget", "retain"):
            seen = []
            plan = one_phase(
                lambda b, seen=seen: seen.append(b) or b.logits.sum(), teacher="original", **{role: torch.arange(5)}
            )
            follow(plan, self.Numbered(), self.sets())
            (batch,) = seen
            assert batch.forget.all() == batch.forget.any() == (role == "forget")

    def test_paired_steps_read_both_sets(self):
        """Four forget samples in one batch of three or four, five retain samples in two: the former comes twice."""
        seen = self.see(epochs=2, paired=True)
        assert len(seen) == 4 and all(batch.forget.any() and not batch.forget.all() for batch in seen)
        for epoch in (seen[:2], seen[2:]):
            assert sorted(self.numbers(epoch)) == [1, 1, 3, 3, 4, 4, 15, 15, 100, 102, 105, 106, 109]

    def test_samples_of_the_methods_own_making_are_shuffled_in(self):
        made = TensorDataset(torch.tensor([500.0, 501, 502]).view(-1, 1, 1, 1), torch.tensor([2, 1, 0]))
        seen = self.see(epochs=2, synthetic=made)
        for epoch in (seen[:3], seen[3:]):
            assert sorted(self.numbers(epoch)) == [1, 3, 4, 15, 100, 102, 105, 106, 109, 500, 501, 502]
        labels = {number: label for b in seen for number, label in zip(b.logits[:, 0].tolist(), b.labels, strict=True)}
        assert (labels[500.0], labels[501.0], labels[502.0]) == (2, 1, 0)
        assert not any(batch.forget[batch.logits[:, 0] >= 500].any() for batch in seen)
        assert {500.0, 501.0, 502.0} != set(self.numbers(seen[2:3]))

    def test_datasets_are_asked_with_plain_integers(self):
        sets = SETS | {"retain": Listed(SETS["retain"])}
        assert weights_digest(follow(one_phase(), datasets=sets).model) == weights_digest(follow(one_phase()).model)


class TestTraining:
    @pytest.mark.parametrize(
        ("spec", "build"),
        [
            (OptimizerSpec("adamw", 1e-2, 1e-3), partial(torch.optim.AdamW, lr=1e-2, weight_decay=1e-3, fused=True)),
            (OptimizerSpec("adam", 1e-2, 1e-3), partial(torch.optim.Adam, lr=1e-2, weight_decay=1e-3, fused=True)),
            (
                OptimizerSpec("sgd", 1e-2, 1e-3, 0.9),
                partial(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=1e-3, fused=True),
            ),
            (
                OptimizerSpec("sgd", 1e-2, 1e-3, 0.9, nesterov=True),
                partial(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=1e-3, nesterov=True, fused=True),
            ),
        ],
        ids=["adamw", "adam", "sgd", "nesterov"],
    )
    def test_parity_with_a_loop_written_out_in_torch(self, spec, build):
        """Two epochs in train mode on the shuffled batches, with dropout, BatchNorm and momentum."""
        model = original().train()
        optimizer = build(model.parameters())
        images, labels = SETS["retain"].tensors
        generator = torch.Generator().manual_seed(5)
        torch.manual_seed(5)
        for _ in range(2):
            order = torch.randperm(170, generator=generator)
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

    def test_after_each_step_the_plan_may_edit_the_student(self):
        """The optimiser has moved all weights by then, and the next step starts from what the plan has left."""
        seen = []

        def restore(student):
            seen.append((torch.is_grad_enabled(), torch.equal(student[0].weight, model[0].weight)))
            student[0].weight.copy_(model[0].weight)

        model = original()
        after = follow(one_phase(retain=torch.arange(64), epochs=3, after_step=restore), model).model
        assert seen == [(False, False)] * 6
        assert torch.equal(after[0].weight, model[0].weight) and not torch.equal(after[6].weight, model[6].weight)

    def test_the_rate_of_a_phase_is_scaled_and_then_as_before(self):
        """d/db of the loss is 1 in each of 4 steps a phase: b moves by 4 · 0.1 · (1 + 0.01 + 1 + 0.5) = 1.004."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        def plan(workspace):
            for scale in (1.0, 0.01, 1.0, 0.5):
                yield Phase(
                    lambda b: b.logits[:, 0].mean(),
                    OptimizerSpec("sgd", 0.1),
                    50,
                    retain=torch.arange(170),
                    lr_scale=scale,
                )

        moved = (model[1].bias - follow(plan, model).model[1].bias)[0].item()
        assert moved == pytest.approx(1.004, rel=1e-5)

    def test_the_rate_is_scaled_and_the_state_of_the_optimizer_shared(self):
        """Momentum ½ and gradient 1: velocities 1, 1½, 1¾, of which the third step takes a tenth, 0.1 · 2.675."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        def plan(workspace):
            for scale in (1.0, 1.0, 0.1):
                spec = OptimizerSpec("sgd", 0.1, momentum=0.5)
                yield Phase(lambda b: b.logits[:, 0].mean(), spec, 170, retain=torch.arange(170), lr_scale=scale)

        moved = (model[1].bias - follow(plan, model).model[1].bias)[0].item()
        assert moved == pytest.approx(0.1 * (1 + 1.5 + 0.175), rel=1e-5)

    def test_frozen_statistics_are_used_and_left_as_they_are(self):
        """Without dropout the student in training then has its outputs of eval mode; its weights still learn."""
        seen = []

        def loss(batch):
            seen.append(batch.logits.detach())
            return cross_entropy(batch)

        model = original()
        model[5].p = 0.0
        sets = {"retain": torch.arange(170), "batch_size": 170}
        after = follow(one_phase(loss, frozen_statistics=True, **sets), model).model
        torch.testing.assert_close(seen[0].sum(0), logits(model, SETS["retain"]).sum(0))
        changed = {name for name, value in state(model).items() if not torch.equal(value, state(after)[name])}
        assert changed == {name for name, _ in model.named_parameters()}
        follow(one_phase(loss, **sets), model)
        assert (seen[1].sum(0) - seen[0].sum(0)).abs().max() > 1

    def test_frozen_statistics_are_those_of_one_phase(self):
        def plan(workspace):
            moved = []
            for frozen in (True, False, True):
                before = workspace.snapshot()
                yield Phase(cross_entropy, ADAMW, 32, retain=torch.arange(170), frozen_statistics=frozen)
                moved.append(not torch.equal(before["1.running_mean"], workspace.model[1].running_mean))
            return {"moved": moved}

        assert follow(plan).final == {"moved": [False, True, False]}

    def test_dropout_stays_on_where_statistics_are_frozen(self):
        model, modes = original(), []
        model.register_forward_hook(lambda student, *_: modes.append([part.training for part in student]))
        follow(one_phase(batch_size=170, retain=torch.arange(170), frozen_statistics=True), model)
        assert modes == [[True, False, True, True, True, True, True]]

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

    def test_accuracy_on_forget_samples_as_the_passes_saw_them(self):
        """Both epochs, forget samples alone, before each step."""
        reported, seen = [], []

        def loss(batch):
            right = batch.logits.argmax(1) == batch.labels
            seen.extend(right[batch.forget].tolist())
            return cross_entropy(batch)

        def plan(workspace):
            reported.append((yield Phase(loss, ADAMW, 32, torch.arange(20), torch.arange(50), epochs=2)).acc_forget)
            reported.append((yield Phase(cross_entropy, ADAMW, 32, retain=torch.arange(50))).acc_forget)
            return {}

        follow(plan, net())
        assert len(seen) == 40 and 0 < sum(seen) < 40
        assert reported == [sum(seen) / 40, None]

    @pytest.mark.nightly
    def test_a_compiled_student_learns_the_same(self):
        model = nn.Sequential(*(module for module in net(norm=False) if not isinstance(module, nn.Dropout)))
        plain, compiled = (
            follow(one_phase(), model, hardware=dataclasses.replace(CPU, compile=which)).model
            for which in (False, True)
        )
        assert type(compiled) is nn.Sequential and not same(state(plain), state(model))
        for name, value in state(plain).items():
            torch.testing.assert_close(state(compiled)[name], value, atol=1e-4, rtol=1e-3)


class TestTeachers:
    """What a loss sees of them; ``forget`` marks which samples come from the forget set."""

    @staticmethod
    def hear(model=None, names=("random on forget",), seed=0, **options):
        heard = []

        def loss(batch):
            heard.append(batch)
            return cross_entropy(batch)

        def plan(workspace):
            for name in names:
                sets = {"forget": torch.arange(30), "retain": torch.arange(170)}
                yield Phase(loss, OptimizerSpec("sgd", 0.1), 200, teacher=name, **sets)

        follow(plan, model, seed=seed, **options)
        return [(batch.teacher_logits[batch.forget], batch.teacher_logits[~batch.forget]) for batch in heard]

    @staticmethod
    def said_of(dataset, model):
        return logits(model, dataset).sum(0)

    @pytest.mark.parametrize("cache_teacher", [True, False])
    def test_the_original_does_not_move_with_the_student(self, cache_teacher):
        for forget, retain in self.hear(names=["original"] * 3, cache_teacher=cache_teacher):
            torch.testing.assert_close(forget.sum(0), self.said_of(SETS["forget"], original()))
            torch.testing.assert_close(retain.sum(0), self.said_of(SETS["retain"], original()))

    def test_a_random_one_speaks_of_the_forget_set_alone(self):
        (forget, retain), (again, _) = self.hear(names=["random on forget"] * 2)
        torch.testing.assert_close(retain.sum(0), self.said_of(SETS["retain"], original()))
        assert (forget.sum(0) - self.said_of(SETS["forget"], original())).abs().max() > 10
        torch.testing.assert_close(again.sum(0), forget.sum(0))

    def test_the_random_one_knows_nothing_of_the_original(self):
        """Two originals of one architecture have the same copy, bit for bit, and another seed has another."""
        other = original()
        with torch.no_grad():
            for value in other.state_dict().values():
                value.add_(1)
        (forget, retain), (same_forget, other_retain), (other_forget, _) = (
            self.hear(model, seed=seed)[0] for model, seed in ((original(), 0), (other, 0), (original(), 1))
        )
        assert torch.equal(forget, same_forget) and not torch.allclose(retain, other_retain)
        assert not torch.allclose(forget.sum(0), other_forget.sum(0))

    def test_the_original_is_back_in_a_later_phase(self):
        _, (forget, _) = self.hear(names=["random on forget", "original"])
        torch.testing.assert_close(forget.sum(0), self.said_of(SETS["forget"], original()))

    def test_of_samples_of_the_methods_own_making(self):
        """They have no number in a set, by which logits are kept: refused, not guessed."""
        made = TensorDataset(torch.full((4, 1, 8, 8), 2.0), torch.arange(4))
        with pytest.raises(ValueError, match="a phase with synthetic samples cannot have a teacher"):
            Phase(cross_entropy, ADAMW, 4, teacher="original", synthetic=made)


class TestWorkspace:
    def test_batches_of_a_set_in_order(self):
        data = Listed(SETS["retain"])

        def plan(workspace):
            batches = workspace.batches("retain", 50)
            first = next(batches)
            assert data.readings == 50
            images, labels = (torch.cat(parts) for parts in zip(first, *batches, strict=True))
            return {"right": torch.equal(images, data.data.tensors[0]) and torch.equal(labels, data.data.tensors[1])}
            yield

        assert follow(plan, datasets=SETS | {"retain": data}).final == {"right": True} and data.readings == 170

    def test_batches_of_some_samples_in_their_order(self):
        data, index = Listed(SETS["retain"]), torch.tensor([5, 2, 9])

        def plan(workspace):
            (images, first), (_, last) = workspace.batches("retain", 2, index)
            right = torch.equal(images, data.data.tensors[0][[5, 2]])
            return {"right": right and torch.equal(torch.cat([first, last]), data.data.tensors[1][index])}
            yield

        assert follow(plan, datasets=SETS | {"retain": data}).final == {"right": True} and data.readings == 3

    @pytest.mark.parametrize("name", ["optimise_inputs", "learn_inputs"])
    def test_inputs_are_learned_by_their_loss(self, name):
        """d/dx of ½‖x‖² is x, so that SGD at 0.1 leaves 0.9 of it each step: 0.9³ = 0.729 after three."""

        def plan(workspace):
            start = torch.ones(2, 1, 8, 8)
            spec = OptimizerSpec("sgd", 0.1)
            optimise = getattr(workspace, name)
            learned = optimise(start, torch.zeros(2), lambda x, z, y: x.square().sum() / 2, spec, 3)
            assert (start == 1).all() and not learned.requires_grad
            return {"learned": learned}
            yield

        torch.testing.assert_close(follow(plan).final["learned"], torch.full((2, 1, 8, 8), 0.729))

    def test_inputs_are_learned_against_the_student_who_learns_nothing(self):
        """Parity with Adam on the images themselves, against the model in eval mode."""
        model, labels, seen = original().train(), torch.tensor([3, 7]), []

        def loss(images, scores, labels):
            seen.append(len(images))
            return -nn.functional.cross_entropy(scores, labels)

        def plan(workspace):
            spec, before = OptimizerSpec("adam", 0.1), workspace.snapshot()
            learned = workspace.optimise_inputs(torch.zeros(2, 1, 8, 8), labels, loss, spec, 5)
            assert same(workspace.snapshot(), before) and all(m.training for m in workspace.model.modules())
            assert all(p.grad is None for p in workspace.model.parameters())
            return {"learned": learned}
            yield

        images = torch.zeros(2, 1, 8, 8, requires_grad=True)
        optimizer = torch.optim.Adam([images], 0.1)
        frozen = original().eval()
        for _ in range(5):
            optimizer.zero_grad()
            (-nn.functional.cross_entropy(frozen(images), labels)).backward()
            optimizer.step()
        torch.testing.assert_close(follow(plan, model).final["learned"], images.detach())
        assert seen == [2] * 5

    def test_reinitialise_leaves_nothing_of_the_student(self):
        """Whatever its weights and statistics were, they are then what the seed makes of the architecture."""

        def plan(workspace):
            workspace.reinitialise()
            return {"teacher": workspace.predictions("val", teacher=True)}
            yield

        other = original()
        with torch.no_grad():
            for value in other.state_dict().values():
                value.add_(1)
        a, b, c = (follow(plan, m, seed=s) for m, s in ((original(), 0), (other, 0), (original(), 1)))
        assert same(state(a.model), state(b.model)) and not torch.equal(a.model[6].weight, c.model[6].weight)
        assert not any(torch.equal(p, q) for p, q in zip(a.model.parameters(), original().parameters(), strict=True))
        assert torch.equal(a.final["teacher"], logits(original(), SETS["val"]).argmax(1))
        assert same(state(follow(plan, model_factory=lambda: net(7)).model), state(net(7)))

    def test_reinitialise_leaves_what_is_frozen(self):
        def plan(workspace):
            workspace.reinitialise()
            return {}
            yield

        model = original()
        model[0].requires_grad_(False)
        after = follow(plan, model, model_factory=lambda: net(7)).model
        kept = {name for name, value in state(model).items() if torch.equal(value, state(after)[name])}
        assert kept == {"0.weight", "0.bias"} and not after[0].weight.requires_grad and after[6].weight.requires_grad

    def test_warnings_are_kept_in_order(self):
        def plan(workspace):
            workspace.warn("mind the gap")
            workspace.warn("and the step")
            return {}
            yield

        assert follow(plan).warnings == ("mind the gap", "and the step") and follow(one_phase()).warnings == ()

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

    def test_code_of_a_plugin(self):
        """Its own, and what it calls; not what it calls us for, such as a callback that ends a trial."""
        plan = one_phase(lambda batch: torch.nn.functional.cross_entropy(batch.logits, batch.labels[:3]))
        with pytest.raises(
            BrokenMethod, match=r"the method made failed in engine/test_loop.py, line \d+ \(ValueError: Expected"
        ) as refused:
            follow(plan)
        assert isinstance(refused.value.__cause__, ValueError)

        def records(workspace):
            workspace.record(epoch=1)
            yield

        with pytest.raises(TypeError):
            follow(records, on_epoch=json.loads)

    @pytest.mark.parametrize(
        ("loss", "what"),
        [
            (lambda b: 0.5, "a float"),
            (lambda b: b.logits, "a tensor [29, 10]"),
            (lambda b: torch.zeros(()), "a number without a gradient"),
        ],
    )
    def test_a_loss_that_is_none(self, loss, what):
        with pytest.raises(BrokenMethod, match=re.escape(f"the method's loss is {what}: return")):
            follow(one_phase(loss))

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
            hardware = resolve_hardware(original(), data, device="cpu", precision="auto", num_workers=0)
        assert hardware.precision in ("fp32", "bf16") and hardware.num_workers == 0
        assert data.readings == 32 and global_state() == before

    def test_nothing_is_read_where_nothing_is_timed(self, monkeypatch):
        monkeypatch.setattr(hardware, "has_bfloat16", lambda device: True)
        data = Listed(splits().retain)
        resolved = resolve_hardware(original(), data, device="cpu", precision="bf16", progress=True)
        assert dataclasses.astuple(resolved) == (torch.device("cpu"), "bf16", True, 0, False, True)
        assert data.readings == 0


@pytest.mark.parametrize("where", ["plan", "loss", "model"])
def test_sys_exit_of_a_method_or_a_model_is_an_error(where):
    """It would end the process in silence, with the exit code of a success."""

    class Leaves(nn.Sequential):
        def forward(self, images):
            return sys.exit(0) if self.training else super().forward(images)

    def leaves(*_):
        sys.exit(0)

    def plan(workspace):
        if where == "plan":
            leaves()
        yield from one_phase(leaves if where == "loss" else cross_entropy)(workspace)

    model = Leaves(original()) if where == "model" else None
    with pytest.raises(UnlearnError, match=r"^the model, its data or the method called sys.exit\(0\)"):
        follow(plan, model)
