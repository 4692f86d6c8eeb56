from dataclasses import replace

import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from toy import CPU, Listed, digits, global_state, logits, original, splits

from mlflow_unlearn import unlearn
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.teacher import Teacher, is_deterministic
from mlflow_unlearn.errors import UnlearnError

DATA = digits(0, 20)
FAST = {"epochs": 3, "lr": 1e-3, "batch_size": 32}


class Flipping(TensorDataset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.flip(-1) if torch.rand(1) < 0.5 else image, label


class Turned(Subset):
    def __getitem__(self, index):
        return super().__getitem__(index)

    __getitems__ = None


def declares(value):
    data = Listed(DATA)
    data.deterministic = value
    return data


@pytest.mark.parametrize(
    ("dataset", "known"),
    [
        (DATA, True),
        (Subset(DATA, [1]), True),
        (ConcatDataset([DATA, Subset(DATA, [1])]), True),
        (declares(True), True),
        (Subset(declares(True), [1]), True),
        (Listed(DATA), False),
        (declares(False), False),
        (declares(1), False),
        (Subset(Listed(DATA), [1]), False),
        (ConcatDataset([DATA, Listed(DATA)]), False),
        (Flipping(*DATA.tensors), False),
        (Turned(DATA, [1]), False),
    ],
)
def test_what_is_known_to_be_deterministic(dataset, known):
    assert is_deterministic(dataset) is known


def teacher(forget, retain=DATA, cache=None):
    return Teacher(original(), {"forget": forget, "retain": retain}, CPU, cache=cache)


def ask(t, indices, images=DATA.tensors[0], role="forget"):
    indices = torch.tensor(indices)
    return t.logits(role, indices, images[indices])


class TestFill:
    def test_what_is_filled_is_not_computed_again(self):
        """All samples pass once beforehand; what is served after is the original's, and no global generator moved."""
        before, sets = global_state(), {"forget": DATA, "retain": digits(20, 50)}
        t = Teacher(original(), sets, CPU)
        t.fill(("forget", "retain"))
        assert t.passes == 50 and global_state() == before
        torch.testing.assert_close(ask(t, [3, 0, 19]), logits(original(), DATA)[[3, 0, 19]])
        torch.testing.assert_close(
            ask(t, [29], sets["retain"].tensors[0], "retain"), logits(original(), sets["retain"])[[29]]
        )
        assert t.passes == 50

    def test_what_has_to_be_watched_or_is_not_cached_is_left_alone(self):
        watched = {"forget": Listed(DATA)}
        for t in (Teacher(original(), watched, CPU), teacher(DATA, cache=False)):
            t.fill(("forget",))
            assert t.passes == 0


class TestCache:
    def test_each_sample_passes_once_and_keeps_its_own_logits(self):
        t = teacher(DATA)
        exact = logits(original(), DATA)
        for indices, passes in (([3, 1], 2), ([1, 3, 4], 3), ([4, 3, 1], 3), ([0], 4)):
            torch.testing.assert_close(ask(t, indices), exact[indices])
            assert t.passes == passes

    def test_sets_do_not_mix(self):
        t = teacher(DATA)
        other = digits(100, 120)
        ask(t, [1])
        torch.testing.assert_close(ask(t, [1], other.tensors[0], "retain"), logits(original(), other)[[1]])
        assert t.passes == 2

    def test_off(self):
        t = teacher(DATA, cache=False)
        assert not t.caching
        ask(t, [1]), ask(t, [1])
        assert t.passes == 2

    def test_without_room_it_goes_off(self, monkeypatch, tmp_path):
        monkeypatch.setattr("mlflow_unlearn.data.buffers.IN_MEMORY", 0)
        monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
        asked, filled = teacher(DATA), teacher(DATA)
        filled.fill(("forget",))
        for t in (asked, filled):
            torch.testing.assert_close(ask(t, [1, 3]), logits(original(), DATA)[[1, 3]])
            assert not t.caching

    @pytest.mark.parametrize("cache", [True, False, None])
    def test_logits_may_be_part_of_a_loss(self, cache):
        weight = torch.ones((), requires_grad=True)
        (weight * ask(teacher(DATA, cache=cache), [0, 1])).sum().backward()
        assert weight.grad is not None

    def test_the_teacher_answers_in_eval_mode_and_keeps_its_own(self):
        t = teacher(DATA)
        t.model.train()
        before = global_state()
        torch.testing.assert_close(ask(t, [2]), logits(original(), DATA)[[2]])
        assert t.model.training and t.model[1].training and global_state() == before


class TestWatching:
    def test_a_changed_input_is_noticed_and_the_cache_goes_off(self):
        t = teacher(Listed(DATA))
        ask(t, [0, 1])
        changed = DATA.tensors[0].clone()
        changed[1, 0, 0, 0] += 1e-3
        assert ask(t, [0], changed) is not None and t.caching
        fresh = t.model(changed[[0, 1]])
        torch.testing.assert_close(ask(t, [0, 1], changed), fresh)
        assert not t.caching

    def test_each_set_is_watched_for_itself(self):
        """A sample of another set with the same number is no change."""
        t = teacher(Listed(DATA), Listed(DATA))
        for _ in range(2):
            ask(t, [1])
            ask(t, [1], DATA.tensors[0] + 1, "retain")
        assert t.caching and t.passes == 2

    def test_a_known_set_is_not_watched(self):
        t = teacher(Listed(DATA))
        ask(t, [1], role="retain")
        ask(t, [1], DATA.tensors[0] + 1, "retain")
        assert t.caching and t.passes == 1

    def test_the_caller_may_know_better(self):
        t = teacher(Listed(DATA), cache=True)
        first = ask(t, [1])
        assert torch.equal(ask(t, [1], DATA.tensors[0] + 1), first) and t.caching

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8, torch.float64])
    def test_any_type_of_input_can_be_watched(self, dtype):
        images = DATA.tensors[0].mul(16).to(dtype)
        t = Teacher(torch.nn.Flatten(), {"forget": Listed(DATA)}, CPU)
        ask(t, [1], images), ask(t, [1], images)
        assert t.caching
        ask(t, [1], images + 1)
        assert not t.caching


class TestInUnlearning:
    """`unlearn` with one teacher, whose passes are counted."""

    def run(self, sets, cache=None, shared=None, **params):
        roles = {role: getattr(sets, role) for role in ("forget", "retain", "val", "test")}
        t = shared or Teacher(original(), roles, CPU, cache=cache)
        return unlearn(original(), sets, params=FAST | params, teacher=t), t

    def test_each_sample_passes_once_over_all_epochs(self):
        result, t = self.run(splits())
        assert len(result.history) == 3
        # The validation set, for A_u, and what the epochs read.
        assert t.passes == 150 + 30 + round(0.3 * 170)

    def test_without_the_cache_in_each_epoch_with_the_same_weights(self):
        cached, _ = self.run(splits())
        plain, t = self.run(splits(), cache=False)
        # For A_u and the first accuracy too.
        assert t.passes == 150 + 30 + 3 * (30 + round(0.3 * 170))
        assert weights_digest(plain.model) == weights_digest(cached.model)
        assert [e["loss"] for e in plain.history] == [e["loss"] for e in cached.history]

    def test_the_argument_of_unlearn_does_the_same(self):
        """Copies of a model share its hooks: this one counts what passes through student and teacher in eval mode."""
        digests, passes = set(), {}
        for cache in (None, True, False):
            model, seen = original(), []
            model.register_forward_hook(lambda m, _, z, seen=seen: None if m.training else seen.append(len(z)))
            digests.add(weights_digest(unlearn(model, splits(), params=FAST, cache_teacher=cache).model))
            passes[cache] = sum(seen)
        assert len(digests) == 1
        assert passes[None] == passes[True] == passes[False] - 3 * 30 - 2 * 51

    def unknown(self, read):
        sets = splits()
        return type(sets)(Listed(sets.forget, read), Listed(sets.retain, read), sets.val, sets.test)

    def test_random_augmentation_ends_the_caching_in_the_second_epoch(self):
        def brightened(image):
            return image + 0.01 * torch.rand(())

        result, t = self.run(self.unknown(brightened))
        assert len(result.history) == 3
        assert not t.caching and t.passes == 150 + 30 + 3 * 81
        bare, _ = self.run(self.unknown(brightened), cache=False)
        assert weights_digest(bare.model) == weights_digest(result.model)

    def test_an_unknown_but_fixed_dataset_keeps_it(self):
        result, t = self.run(self.unknown(lambda image: image))
        assert t.caching and t.passes == 150 + 30 + 81
        assert weights_digest(result.model) == weights_digest(self.run(splits())[0].model)

    def test_two_calls_share_one_teacher(self):
        first, t = self.run(splits())
        second, _ = self.run(splits(), shared=t, alpha=8)
        assert t.passes == 150 + 81
        alone, _ = self.run(splits(), alpha=8)
        assert weights_digest(second.model) == weights_digest(alone.model)
        assert weights_digest(second.model) != weights_digest(first.model)


class TestWhoseTeacherItIs:
    """It answers by positions: for another model or other samples the answers would be wrong without a word."""

    @staticmethod
    def shared(sets, **options):
        return Teacher(original(), vars(sets), CPU, **options)

    @pytest.mark.parametrize("prefix", [None, "5"])
    def test_equal_tensors_and_equal_weights_are_its_own(self, prefix):
        t = self.shared(splits(), prefix=prefix)
        for _ in range(2):
            unlearn(original(), splits(), params=FAST | {"epochs": 1}, teacher=t)

    def test_the_same_dataset_of_any_type_is_its_own(self):
        sets = splits()
        sets = type(sets)(Listed(sets.forget), Subset(sets.retain, range(100)), sets.val, ConcatDataset([sets.test]))
        unlearn(original(), sets, params=FAST, teacher=self.shared(sets))

    @pytest.mark.parametrize(
        ("split", "other"),
        [
            ("forget", digits(1, 31)),
            ("forget", digits(0, 29)),
            ("retain", TensorDataset(*(part.flip(0) for part in splits().retain.tensors))),
            ("retain", TensorDataset(splits().retain.tensors[0], splits().retain.tensors[1].flip(0))),
            ("retain", Subset(splits().retain, range(170))),
            ("val", Listed(splits().val)),
        ],
    )
    def test_other_samples_are_refused(self, split, other):
        sets = splits()
        for these, those in ((sets, replace(sets, **{split: other})), (replace(sets, **{split: other}), sets)):
            with pytest.raises(UnlearnError, match=f"^the teacher was made for another {split} set \\(.* samples"):
                unlearn(original(), those, params=FAST, teacher=self.shared(these))

    def test_so_are_another_order_and_another_part(self):
        data = splits().retain
        one, other = (replace(splits(), retain=Subset(data, order)) for order in ([0, 1, 2], [0, 2, 1]))
        with pytest.raises(UnlearnError, match="another retain set"):
            unlearn(original(), one, params=FAST, teacher=self.shared(other))

    def test_another_model_is_refused(self):
        other = original()
        with torch.no_grad():
            other[6].bias[0] += 1e-3
        with pytest.raises(UnlearnError, match="^the teacher was made for another model than the one to unlearn"):
            unlearn(other, splits(), params=FAST, teacher=self.shared(splits()))
        with pytest.raises(UnlearnError, match="another model"):
            unlearn(original().double(), splits(), params=FAST, teacher=self.shared(splits()))

    def test_so_is_a_model_that_has_learned_since(self):
        model = original()
        t = Teacher(model, vars(splits()), CPU)
        unlearn(model, splits(), params=FAST, teacher=t)
        with torch.no_grad():
            model[6].bias[0] += 1e-3
        with pytest.raises(UnlearnError, match="the teacher's model has changed since it was made"):
            unlearn(model, splits(), params=FAST, teacher=t)
