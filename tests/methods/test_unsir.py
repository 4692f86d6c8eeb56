import math

import pytest
import torch
from toy import CPU, Listed, class_splits, digits, logits, original, same, splits, state, take
from watching import watch

from mlflow_unlearn import Splits
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import unsir as unsir_module
from mlflow_unlearn.methods.unsir import Unsir, noise_loss

FAST = {"batch_size": 16, "noise_steps": 10, "copies": 2}


def unsir(sets, seed=0, **params):
    return watch(Unsir(FAST | params), sets=sets, seed=seed)


def images_and_labels(dataset):
    return tuple(torch.stack(part) for part in zip(*dataset, strict=True))


class TestNoiseLoss:
    def test_by_hand(self):
        """p of the class to be unlike: ½ and ¼, mean CE (log 2 + log 4) / 2; squares sum to 1 + 4 and 4 · 9 in the two
        images, mean 20.5: 0.1 · 20.5 − 1.5 log 2.
        """
        noise = torch.tensor([[[[1.0, 2.0], [0.0, 0.0]]], [[[3.0, 3.0], [-3.0, 3.0]]]])
        z, labels = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log() + 7, torch.tensor([0, 1])
        assert noise_loss(noise, z, labels, 0.1).item() == pytest.approx(2.05 - 1.5 * math.log(2), rel=1e-6)
        assert noise_loss(noise, z, labels, 0.0).item() == pytest.approx(-1.5 * math.log(2), rel=1e-6)

    def test_going_down_it_leaves_the_class_and_comes_to_the_origin(self):
        """d(−CE) / dz = one-hot − p: against it, the class's own logit falls. The penalty pulls every pixel to 0."""
        noise, z = torch.full((1, 1, 1, 2), 3.0, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
        noise_loss(noise, z, torch.tensor([0]), 0.5).backward()
        assert z.grad.tolist() == [[0.5, -0.5]] and noise.grad.flatten().tolist() == [3.0, 3.0]


def test_published_defaults():
    assert Unsir().params.model_dump() == {
        "noise_steps": 40,
        "noise_lr": 0.1,
        "penalty": 0.1,
        "copies": 20,
        "retain_fraction": 0.2,
        "epochs": 1,
        "lr": 0.02,
        "repair_epochs": 1,
        "repair_lr": 0.01,
        "batch_size": 256,
    }


class TestNoise:
    def test_it_is_learned_to_be_unlike_its_class(self):
        """The original is less and less inclined to take the noise for the class that it stands for."""

        def loss(steps, penalty):
            _, phases = unsir(class_splits(), noise_steps=steps, penalty=penalty, copies=1)
            images, labels = images_and_labels(phases[0].phase.synthetic)
            assert (labels == 3).all()
            with torch.no_grad():
                return torch.nn.functional.cross_entropy(original()(images), labels).item(), images.square().mean()

        (little, start), (much, _), (_, small) = loss(1, 0.1), loss(40, 0.1), loss(40, 10.0)
        assert much > little + 5 and small < 0.2 * start

    def test_the_student_stays_as_it_is_meanwhile(self):
        _, phases = unsir(class_splits())
        assert same(phases[0].before, state(original()))

    def test_each_class_of_the_forget_set_has_a_batch_of_it_in_several_copies(self):
        train = digits(0, 200)
        gone = torch.isin(train.tensors[1], torch.tensor([3, 8]))
        sets = Splits(take(train, gone), take(train, ~gone), digits(200, 350), digits(350, 500))
        _, phases = unsir(sets, copies=3, batch_size=20)
        images, labels = images_and_labels(phases[0].phase.synthetic)
        assert images.shape == (120, 1, 8, 8) and labels.bincount().tolist() == [0, 0, 0, 60, 0, 0, 0, 0, 60]
        assert torch.equal(images[:40], images[40:80]) and len(images.flatten(1).unique(dim=0)) == 40

    def test_the_seed(self):
        a, b, c = (images_and_labels(unsir(class_splits(), seed)[1][0].phase.synthetic)[0] for seed in (0, 0, 1))
        assert torch.equal(a, b) and not torch.equal(a, c)


class TestItsSize:
    """Of 1,000 classes with 224 pixels, 256 images each are 154 GB."""

    @staticmethod
    def several(count=3):
        train = digits(0, 200)
        gone = train.tensors[1] < count
        return Splits(take(train, gone), take(train, ~gone), digits(200, 350), digits(350, 500))

    def test_above_the_limit_each_class_has_fewer_images(self, monkeypatch):
        """Three classes of images with 256 bytes: 5 each, of which all but the rounding is used."""
        monkeypatch.setattr(unsir_module, "LARGEST_NOISE", 3 * 5 * 256 + 255)
        outcome, phases = unsir(self.several(), copies=2)
        images, labels = images_and_labels(phases[0].phase.synthetic)
        assert images.shape[0] == 2 * 15 and labels.bincount().tolist() == [10, 10, 10]
        (sentence,) = outcome.warnings
        assert sentence.startswith("UNSIR learned 5 noise images a class in place of batch_size = 16: those of all 3")

    def test_where_it_is_stored_does_not_matter(self, monkeypatch, tmp_path):
        in_memory = weights_digest(unsir(self.several())[0].model)
        monkeypatch.setattr(unsir_module, "IN_MEMORY", 0)
        monkeypatch.setattr(unsir_module, "half_of_memory", lambda: 0)
        assert weights_digest(unsir(self.several())[0].model) == in_memory
        monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
        with pytest.raises(
            UnlearnError, match="^UNSIR's noise of 3 classes .* does not fit into half of the free disk"
        ):
            unsir(self.several())


class TestPasses:
    def test_impair_and_then_repair_on_one_retain_sample(self):
        outcome, phases = unsir(class_splits(), epochs=2, repair_epochs=3, lr=0.001, repair_lr=0.002)
        kept = class_splits().retain.tensors[1]
        share = round(0.2 * len(kept))
        assert [phase.phase.synthetic is None for phase in phases] == [False] * 2 + [True] * 3
        assert [phase.phase.optimizer.lr for phase in phases] == [0.001] * 2 + [0.002] * 3
        assert {phase.phase.optimizer.name for phase in phases} == {"adam"}
        for phase in phases:
            assert torch.equal(phase.phase.retain, phases[0].phase.retain) and phase.phase.forget is None
            labels = phase.column("labels")
            assert (labels != 3).sum() == share and (labels == 3).sum() == (0 if phase.phase.synthetic is None else 32)
        assert len(phases[0].phase.retain.unique()) == share
        assert all((batch.labels == 3).any() and not (batch.labels == 3).all() for batch in phases[0].batches)
        assert [row["epoch"] for row in outcome.history] == list(range(5))

    def test_damage_and_repair(self):
        """In the impair pass the class goes, whatever else goes with it; the repair passes bring back the others."""
        sets = class_splits()
        outcome, phases = unsir(sets, noise_steps=40, epochs=2, repair_epochs=5, retain_fraction=1)

        def accuracy(weights, dataset):
            model = original()
            model.load_state_dict(weights)
            return (logits(model, dataset).argmax(1) == dataset.tensors[1]).double().mean()

        impaired, repaired = phases[1].after, phases[-1].after
        assert same(repaired, state(outcome.model))
        assert accuracy(impaired, sets.retain) < accuracy(repaired, sets.retain) == 1
        assert accuracy(repaired, sets.forget) == 0


class TestTheForgetSet:
    @staticmethod
    def unreadable(dataset):
        def untouchable(image):
            raise RuntimeError("a forgotten image was read")

        data = Listed(dataset, untouchable)
        data.targets = dataset.tensors[1]
        return data

    def test_its_images_are_never_read(self):
        sets = vars(class_splits())
        blind = sets | {"forget": self.unreadable(sets["forget"])}
        a, b = (run(original(), Unsir(FAST), part, CPU, RunOptions(0)).model for part in (sets, blind))
        assert weights_digest(a) == weights_digest(b) != weights_digest(original())
        assert blind["forget"].readings == 0

    @pytest.mark.parametrize("count", [1, 2, 21])
    def test_a_set_smaller_than_a_batch_is_as_good_as_a_large_one(self, count):
        """One sample names its class; no partial batch of it is skipped."""
        sets = class_splits()
        few = Splits(take(sets.forget, slice(count)), sets.retain, sets.val, sets.test)
        outcome, phases = unsir(few, batch_size=64)
        assert weights_digest(outcome.model) == weights_digest(unsir(sets, batch_size=64)[0].model)
        assert (phases[0].column("labels") == 3).sum() == 128

    def test_it_warns_where_classes_are_retained_as_well(self):
        assert unsir(class_splits())[0].warnings == ()
        (sentence,) = unsir(splits(30), noise_steps=1)[0].warnings
        assert sentence.startswith("UNSIR forgets whole classes, and 10 of the 10 classes of this forget set are")
        train = digits(0, 200)
        forget = (train.tensors[1] == 3) | (torch.arange(200) == 0)
        sets = Splits(take(train, forget), take(train, ~forget), digits(200, 350), digits(350, 500))
        (sentence,) = unsir(sets)[0].warnings
        assert "1 of the 2 classes" in sentence
