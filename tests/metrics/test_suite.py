import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import nn
from torch.utils.data import TensorDataset
from toy import CPU, Listed, class_splits, digits, global_state, logits, net, original, same, splits, state, take

from mlflow_unlearn import Splits, evaluate
from mlflow_unlearn.engine.predictions import SPLIT_NAMES, evaluate_split, evaluate_splits
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.metrics.catalog import KEYS, METRICS
from mlflow_unlearn.metrics.membership import two_sided_auc
from mlflow_unlearn.metrics.suite import compute_metrics

LN2 = math.log(2)


def other(seed=1, shrink=0.7):
    """Another model that is good at it: the original, disturbed."""
    model = original()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.mul_(shrink).add_(noise * 0.03)
    return model


def uneven():
    """Classes 0 to 4 are forgotten more often than others; class 9 is missing from the test set."""
    train, test = digits(0, 200), digits(350, 600)
    labels = train.tensors[1]
    forget = (torch.arange(200) < 20) | ((torch.arange(200) < 80) & (labels < 5))
    return Splits(take(train, forget), take(train, ~forget), digits(200, 350), take(test, test.tensors[1] != 9))


class ByHand:
    """What scikit-learn and SciPy make of a model's probabilities."""

    def __init__(self, model, sets):
        self.p = {split: logits(model, getattr(sets, split)).double().softmax(1).numpy() for split in SPLIT_NAMES}
        self.y = {split: getattr(sets, split).tensors[1].numpy() for split in SPLIT_NAMES}
        self.h = {split: -(p * np.log(p)).sum(1) for split, p in self.p.items()}
        # Of logarithms of probabilities, which are logits less one number a sample.
        own = {split: np.eye(p.shape[1], dtype=bool)[self.y[split]] for split, p in self.p.items()}
        self.m = {s: np.log(p[own[s]]) - np.log(np.where(own[s], 0.0, p).max(1)) for s, p in self.p.items()}

    def acc(self, split, keep=slice(None)):
        return accuracy_score(self.y[split][keep], self.p[split].argmax(1)[keep])

    @property
    def weights(self):
        """A test sample weighs (fraction of its class in D_f) ÷ (fraction in D_t); unmatched forget samples weigh 0."""
        forget = np.array([label in self.y["test"] for label in self.y["forget"]], float)
        in_forget, in_test = Counter(self.y["forget"][forget > 0]), Counter(self.y["test"])
        fractions = [
            in_forget[label] / forget.sum() / (in_test[label] / len(self.y["test"])) for label in self.y["test"]
        ]
        return forget, np.array(fractions)

    def mia(self):
        h = np.concatenate([self.h["retain"], self.h["test"]])[:, None]
        member = np.repeat([1, 0], [len(self.h["retain"]), len(self.h["test"])])
        attack = LogisticRegression(class_weight="balanced").fit(h, member)
        on_test = attack.predict(self.h["test"][:, None])
        return attack.predict(self.h["forget"][:, None]).mean(), np.average(on_test, weights=self.weights[1])

    def auc(self):
        member = np.repeat([1, 0], [len(self.h["forget"]), len(self.h["test"])])
        scores = -np.concatenate([self.h["forget"], self.h["test"]])
        return roc_auc_score(member, scores, sample_weight=np.concatenate(self.weights))

    def ks(self):
        forget, test = self.weights
        grid = np.concatenate([self.h["forget"], self.h["test"]])
        below = [(self.h["forget"] <= e, self.h["test"] <= e) for e in grid]
        return max(abs(forget[f].sum() / forget.sum() - test[t].sum() / test.sum()) for f, t in below)

    def sides(self):
        """The largest TPR − FPR, and FPR − TPR, over all margins as thresholds."""
        forget, test = self.weights
        above = [
            (self.m["forget"] >= t, self.m["test"] >= t) for t in np.concatenate([self.m["forget"], self.m["test"]])
        ]
        gaps = [forget[f].sum() / forget.sum() - test[t].sum() / test.sum() for f, t in above]
        return max(gaps), -min(gaps)

    def margin_auc(self):
        is_forget = np.repeat([1, 0], [len(self.m["forget"]), len(self.m["test"])])
        margins = np.concatenate([self.m["forget"], self.m["test"]])
        return roc_auc_score(is_forget, margins, sample_weight=np.concatenate(self.weights))

    def class_mean(self, split, label):
        mean = self.p[split][self.y[split] == label].mean(0)
        return mean / mean.sum()


def published(p, q):
    """1/(2R²) · Σ_r [KL(m_r‖p_r) + KL(m_r‖q_r)], the rows clamped at 1e-8 and the matrices divided by their total."""
    p, q = np.maximum(p, 1e-8), np.maximum(q, 1e-8)
    p, q = p / p.sum(), q / q.sum()
    m = (p + q) / 2
    return (m * np.log(m / p) + m * np.log(m / q)).sum() / (2 * len(p))


def test_parity_with_scikit_learn_and_scipy_for_every_key():
    sets, model, gold = uneven(), other(1), other(2)
    metrics = evaluate(model, sets, original(), gold, seed=5)
    ours, theirs, before = ByHand(model, sets), ByHand(gold, sets), ByHand(original(), sets)

    expected = {f"acc_{split}": ours.acc(split) for split in SPLIT_NAMES}
    mia, mia_test = ours.mia()
    expected |= {"mia": mia, "mia_test": mia_test, "mia_excess": mia - mia_test}
    expected |= {"mia_auc": ours.auc(), "entropy_ks": ours.ks(), "mia_margin_auc": ours.margin_auc()}
    (residual, over), gold_sides = ours.sides(), theirs.sides()
    expected |= {"mia_advantage_residual": residual, "mia_advantage_over": over, "mia_advantage": max(residual, over)}
    usable = sorted(set(ours.y["forget"]) & set(ours.y["test"]) & set(ours.y["retain"]))
    p = np.array([ours.class_mean("forget", label) for label in usable])
    q = np.array([before.class_mean("test", label) for label in usable])
    expected["rf_jsd"] = np.mean([jensenshannon(*pair) ** 2 for pair in zip(p, q, strict=True)])
    expected["rf_jsd_published"] = published(p, q)
    rows = zip(ours.p["forget"], theirs.p["forget"], strict=True)
    expected["jsd"] = np.mean([jensenshannon(*pair) ** 2 for pair in rows])
    expected["jsd_published"] = published(ours.p["forget"], theirs.p["forget"])
    gaps = [abs(ours.acc(split) - theirs.acc(split)) for split in ("forget", "retain", "test")]
    gold_mia, gold_mia_test = theirs.mia()
    expected["avg_gap"] = np.mean([abs(mia - gold_mia), *gaps])
    attack = max(abs(residual - gold_sides[0]), abs(over - gold_sides[1]))
    expected["avg_gap_advantage"] = np.mean([attack, *gaps])
    expected["avg_gap_excess"] = np.mean([abs(mia - mia_test - gold_mia + gold_mia_test), *gaps])
    low, high = metrics["mia_auc_low"], metrics["mia_auc_high"]
    h, y = ours.h, ours.y
    interval = two_sided_auc(h["forget"], h["test"], y["forget"], y["test"], 10, seed=5, resamples=1000)

    assert set(metrics) == set(KEYS) - {"acc_test_forgotten"}
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert (low, high) == pytest.approx(interval[1:], rel=1e-4) and low < expected["mia_auc"] < high
    assert metrics.missing == {"acc_test_forgotten": "no class is wholly forgotten"}
    nines = int((ours.y["forget"] == 9).sum())
    assert nines > 0
    assert metrics.counts == {
        **{f"n_{split}": len(ours.y[split]) for split in SPLIT_NAMES},
        "wholly_forgotten_classes": 0,
        "mia_auc_forget_left_out": nines,
        "rf_jsd_classes_left_out": 1,
        "removed_classes": 0,
    }
    # The case is worth something: no term vanishes, no fraction is trivial.
    assert min(abs(value) for value in expected.values()) > 1e-5 and len(set(gaps)) == 3
    assert all(0 <= metrics[key] <= LN2 for key in ("jsd", "rf_jsd"))


def test_keys_are_distinct_and_each_is_a_value_or_has_a_reason():
    assert len(set(KEYS)) == len(KEYS)
    for options in ({}, {"original": original()}, {"gold": other()}):
        metrics = evaluate(other(), splits(), **options)
        assert set(metrics) | set(metrics.missing) == set(KEYS) and not set(metrics) & set(metrics.missing)
        assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())


class TestNothingIsChanged:
    @pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.machine("bfloat16")), "auto"])
    def test_the_models_and_the_world(self, precision):
        models = other(1), original(), other(2)
        for model in models:
            model.train()
            model[5].eval()
        models[2].requires_grad_(False)
        models[0][6].bias.grad = torch.ones(10)
        before, modes = [state(m) for m in models], [[part.training for part in m.modules()] for m in models]
        world = global_state()
        evaluate(models[0], splits(), models[1], models[2], precision=precision)
        assert all(same(state(m), old) for m, old in zip(models, before, strict=True))
        assert [[part.training for part in m.modules()] for m in models] == modes
        assert global_state() == world
        assert torch.equal(models[0][6].bias.grad, torch.ones(10)) and models[0][0].weight.grad is None

    def test_modes_after_an_error(self):
        model = original().train()
        parts = vars(splits()) | {"test": TensorDataset(torch.zeros(2, 1, 8, 8), torch.tensor([3, 10]))}
        with pytest.raises(UnlearnError, match="label 10, and the model has 10 outputs"):
            evaluate(model, Splits(**parts))
        assert all(part.training for part in model.modules())

    def test_the_mode_does_not_matter(self):
        assert evaluate(other().train(), splits(), original().train()) == evaluate(other(), splits(), original())


class TestPasses:
    @staticmethod
    def counted(model):
        model.seen = 0

        def count(module, inputs, output):
            module.seen += len(output)

        model.register_forward_hook(count)
        return model

    def test_one_per_model_and_split(self):
        sets = splits()
        model, before, gold = (self.counted(m) for m in (other(1), original(), other(2)))
        evaluate(model, sets, before, gold)
        total = sum(len(getattr(sets, split)) for split in SPLIT_NAMES)
        assert (model.seen, before.seen, gold.seen) == (total, len(sets.test), total)

    def test_a_model_that_is_its_own_reference_is_read_once(self):
        sets, model = splits(), self.counted(other())
        evaluate(model, sets, model, model)
        assert model.seen == sum(len(getattr(sets, split)) for split in SPLIT_NAMES)

    def test_each_sample_is_read_once_a_model(self):
        listed = Splits(*(Listed(part) for part in vars(splits()).values()))
        evaluate(other(), listed)
        assert all(part.readings == len(part) for part in vars(listed).values())


class TestMissing:
    def test_without_references(self):
        metrics = evaluate(other(), splits())
        gold = dict.fromkeys(
            ("jsd", "jsd_published", "avg_gap_advantage", "avg_gap", "avg_gap_excess"), "no gold model was given"
        )
        rf = dict.fromkeys(("rf_jsd", "rf_jsd_published"), "no original model was given")
        assert metrics.missing == {"acc_test_forgotten": "no class is wholly forgotten"} | gold | rf

    def test_a_wholly_forgotten_class(self):
        sets, model = class_splits(3), other()
        metrics = evaluate(model, sets, original(), other(2))
        hand = ByHand(model, sets)
        three = {split: hand.y[split] == 3 for split in SPLIT_NAMES}
        assert metrics["acc_test"] == pytest.approx(hand.acc("test", ~three["test"]))
        assert metrics["acc_val"] == pytest.approx(hand.acc("val", ~three["val"]))
        assert metrics["acc_test_forgotten"] == pytest.approx(hand.acc("test", three["test"]))
        assert metrics["acc_forget"] == pytest.approx(hand.acc("forget"))
        reason = "no unseen reference for a wholly forgotten class"
        assert metrics.missing == {"rf_jsd": reason, "rf_jsd_published": reason}
        assert metrics.counts["wholly_forgotten_classes"] == metrics.counts["rf_jsd_classes_left_out"] == 1
        # The attack learns from the other classes, and reads the test samples of the forgotten one.
        h = np.concatenate([hand.h["retain"], hand.h["test"][~three["test"]]])[:, None]
        member = np.repeat([1, 0], [len(hand.h["retain"]), int((~three["test"]).sum())])
        attack = LogisticRegression(class_weight="balanced").fit(h, member)
        assert metrics["mia"] == pytest.approx(attack.predict(hand.h["forget"][:, None]).mean())
        assert metrics["mia_test"] == pytest.approx(attack.predict(hand.h["test"][three["test"]][:, None]).mean())

    def test_a_forgotten_class_without_test_samples(self):
        sets = class_splits(3)
        test = take(sets.test, sets.test.tensors[1] != 3)
        metrics = evaluate(other(), Splits(sets.forget, sets.retain, sets.val, test), original())
        unmatched = "no class of the forget set occurs in the test set"
        for key in ("mia_test", "mia_excess", "entropy_ks"):
            assert metrics.missing[key] == unmatched
        for key in ("mia_auc", "mia_auc_low", "mia_auc_high"):
            assert (
                metrics.missing[key]
                == "only 0 forgotten samples share a class with the test set; at least 10 are needed"
            )
        assert metrics.missing["acc_test_forgotten"] == "the wholly forgotten classes do not occur in the test set"
        assert metrics.missing["rf_jsd"] == "no unseen reference for a wholly forgotten class"
        assert metrics.counts["mia_auc_forget_left_out"] == len(sets.forget)
        assert "mia" in metrics

    def test_test_samples_of_forgotten_classes_alone(self):
        sets = class_splits(3)
        test = take(sets.test, sets.test.tensors[1] == 3)
        val = take(sets.val, sets.val.tensors[1] == 3)
        metrics = evaluate(other(), Splits(sets.forget, sets.retain, val, test), original(), other(2))
        for split in ("val", "test"):
            assert metrics.missing[f"acc_{split}"] == f"every class of the {split} set is wholly forgotten"
        attack = "every test sample belongs to a wholly forgotten class: the attack has no non-member"
        assert metrics.missing["mia"] == metrics.missing["mia_test"] == metrics.missing["mia_excess"] == attack
        assert metrics.missing["avg_gap"] == metrics.missing["avg_gap_excess"] == attack
        assert "jsd" in metrics and "acc_test_forgotten" in metrics and "mia_auc" in metrics

    def test_a_retained_class_without_test_samples(self):
        """Of the forgotten classes 0 and 3, the test set has neither; 3 is still in the retain set."""
        train, test = digits(0, 200), digits(350, 500)
        labels = train.tensors[1]
        forget = (labels == 0) | ((labels == 3) & (torch.arange(200) < 50))
        parts = take(train, forget), take(train, ~forget), digits(200, 350)
        neither = take(test, (test.tensors[1] != 0) & (test.tensors[1] != 3))
        no_three = take(test, test.tensors[1] != 3)
        for kept in (neither, no_three):
            metrics = evaluate(other(), Splits(*parts, kept), original())
            assert metrics.missing["rf_jsd"] == "no retained class of the forget set occurs in the test set"
            assert metrics.counts["rf_jsd_classes_left_out"] == 2

    def test_a_single_non_member(self):
        """The forget set's class is in the test set: that is not what is missing."""
        sets = splits()
        label = int(sets.forget.tensors[1][0])
        one = take(sets.test, (sets.test.tensors[1] == label).nonzero()[:1, 0])
        metrics = evaluate(other(), Splits(sets.forget, sets.retain, sets.val, one))
        reason = "the attack can use only one test sample as a non-member; at least two are needed"
        assert metrics.missing["mia_test"] == metrics.missing["mia_excess"] == reason
        assert "mia" in metrics and "entropy_ks" in metrics
        gold = evaluate(other(), Splits(sets.forget, sets.retain, sets.val, one), gold=other(2))
        assert gold.missing["avg_gap_excess"] == reason and "avg_gap" in gold

    @pytest.mark.parametrize(("count", "there"), [(9, False), (10, True)])
    def test_few_forgotten_samples(self, count, there):
        metrics = evaluate(other(), splits(count))
        for key in ("mia_auc", "mia_auc_low", "mia_auc_high"):
            assert (key in metrics) is there
            if not there:
                assert (
                    metrics.missing[key]
                    == "only 9 forgotten samples share a class with the test set; at least 10 are needed"
                )
        assert "entropy_ks" in metrics and "mia_excess" in metrics

    def test_a_validation_set_that_was_not_read(self):
        outputs = evaluate_splits(other(), splits(), CPU, only=("forget", "retain", "test"))
        metrics = compute_metrics(outputs)
        assert metrics.missing["acc_val"] == "the val set was not read" and "n_val" not in metrics.counts


class TestRemovedClasses:
    """An earlier request has removed class 3: it is neither retained nor forgotten now, and still in val and test."""

    @staticmethod
    def sets(forgotten=None):
        train, classes = digits(0, 200), digits(0, 200).tensors[1]
        forget = (torch.arange(200) < 30) if forgotten is None else classes == forgotten
        return Splits(take(train, forget & (classes != 3)), take(train, ~forget & (classes != 3)),
                      digits(200, 350), digits(350, 500))  # fmt: skip

    @staticmethod
    def without_three(sets):
        val, test = (take(data, data.tensors[1] != 3) for data in (sets.val, sets.test))
        return Splits(sets.forget, sets.retain, val, test)

    @pytest.mark.parametrize("forgotten", [None, 5])
    def test_it_counts_nowhere(self, forgotten):
        sets, models = self.sets(forgotten), (original(), other(2))
        found, expected = (evaluate(other(), one, *models) for one in (sets, self.without_three(sets)))
        assert dict(found) == pytest.approx(dict(expected), rel=1e-6) and found.missing == expected.missing
        assert found.counts == expected.counts | {"removed_classes": 1}
        assert found.counts["wholly_forgotten_classes"] == (forgotten is not None)

    def test_a_class_that_is_forgotten_now_stays_where_classes_are_matched(self):
        metrics = evaluate(other(), self.sets(5), original())
        assert {"acc_test_forgotten", "mia_auc", "entropy_ks", "mia_test"} <= set(metrics)
        assert metrics.counts["mia_auc_forget_left_out"] == 0
        assert metrics.counts["n_test"] == int((self.sets().test.tensors[1] != 3).sum())

    def test_by_the_definitions_that_a_record_names(self):
        """Of an earlier release: the removed class counted wherever it occurred."""
        sets = self.sets()
        outputs, hand = evaluate_splits(other(), sets, CPU), ByHand(other(), sets)
        first = compute_metrics(outputs, definitions=dict.fromkeys(KEYS, 1))
        now = compute_metrics(outputs)
        for split in ("val", "test"):
            assert first[f"acc_{split}"] == pytest.approx(hand.acc(split), rel=1e-9)
            assert now[f"acc_{split}"] == pytest.approx(hand.acc(split, hand.y[split] != 3), rel=1e-9)
        assert (first["mia"], first["mia_test"]) == pytest.approx(hand.mia()) != (now["mia"], now["mia_test"])
        assert {key for key in now if METRICS[key].definition == 1 and now[key] != pytest.approx(first[key])} == set()
        mixed = compute_metrics(outputs, definitions={"acc_val": 1})
        assert dict(mixed) == {**now, "acc_val": first["acc_val"]}

    def test_no_other_class_in_the_test_set(self):
        sets = self.sets()
        threes = take(sets.test, sets.test.tensors[1] == 3)
        metrics = evaluate(other(), Splits(sets.forget, sets.retain, sets.val, threes), original())
        reason = "earlier requests removed every class of the test set"
        assert {metrics.missing[key] for key in ("acc_test", "mia", "mia_auc", "entropy_ks", "rf_jsd")} == {reason}
        assert {"acc_forget", "acc_retain"} <= set(metrics)


class TestReferences:
    def test_the_model_is_its_own_gold(self):
        metrics = evaluate(other(), splits(), gold=other())
        assert [metrics[key] for key in ("jsd", "jsd_published", "avg_gap", "avg_gap_excess")] == [0, 0, 0, 0]

    def test_rf_jsd_compares_with_the_original_on_test(self):
        """Where forget and test set are the same and nothing was unlearned, it is 0."""
        sets = splits()
        sets = Splits(sets.test, sets.retain, sets.val, sets.test)
        model = original()
        assert evaluate(model, sets, model)["rf_jsd"] == pytest.approx(0, abs=1e-12)
        assert evaluate(other(), sets, model)["rf_jsd"] > 1e-3

    def test_models_with_other_numbers_of_outputs(self):
        for name in ("original", "gold"):
            with pytest.raises(UnlearnError, match=f"the {name} model has 12 outputs and the measured one 10"):
                evaluate(other(), splits(), **{name: net(classes=12)})

    def test_the_seed_moves_intervals_and_nulls_alone(self):
        a, b = evaluate(other(), splits(), seed=0), evaluate(other(), splits(), seed=1)
        drawn = {key for key, metric in METRICS.items() if metric.interval_end or metric.of_null}
        assert {key for key in a if a[key] != b[key]} <= drawn != set()
        assert a["mia_auc_low"] != b["mia_auc_low"] and a == evaluate(other(), splits(), seed=0)
        with pytest.raises(UnlearnError, match="seed=-1 is not usable"):
            evaluate(other(), splits(), seed=-1)


class TestRead:
    def test_very_confident_outputs(self):
        """p = e⁻⁹⁰⁰ and its like: float32 would give entropies of 0 or NaN; −Σ p log p with log p from the logits."""

        class Sure(nn.Module):
            def forward(self, images):
                return torch.stack([images.flatten(), torch.zeros(len(images))], 1)

        gaps = torch.tensor([0.0, 10.0, 30.0, 900.0, 1e30])
        outputs = evaluate_split(Sure(), TensorDataset(gaps.view(5, 1, 1, 1), torch.zeros(5, dtype=torch.long)), CPU)
        expected = [LN2, *(math.log1p(math.exp(-g)) + g * math.exp(-g) / (1 + math.exp(-g)) for g in (10, 30)), 0, 0]
        assert outputs.entropies == pytest.approx(expected, rel=1e-4, abs=1e-300)
        assert outputs.predictions.tolist() == [0] * 5 and outputs.probabilities is None

    def test_sums_and_probabilities(self):
        data = splits().test
        outputs = evaluate_split(other(), data, CPU, keep_probabilities=True)
        p, y = logits(other(), data).double().softmax(1).numpy(), data.tensors[1].numpy()
        np.testing.assert_allclose(outputs.probabilities, p, rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(outputs.class_sums, np.eye(10)[y].T @ p, rtol=1e-4, atol=1e-12)
        assert outputs.labels.tolist() == y.tolist() and outputs.predictions.tolist() == p.argmax(1).tolist()

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_outputs_that_are_not_finite(self, bad):
        model = other()
        with torch.no_grad():
            model[6].bias[0] = bad
        with pytest.raises(UnlearnError, match="the model's outputs are not finite"):
            evaluate(model, splits())

    def test_a_model_without_parameters(self):
        """A reference may be anything that answers with logits."""

        class Constant(nn.Module):
            def forward(self, images):
                return torch.zeros(len(images), 10)

        assert evaluate(original(), splits(), Constant(), Constant())["jsd"] > 0

    def test_an_exported_program(self):
        """Its mode is baked in: it refuses eval()."""
        model = other()
        exported = torch.export.export(
            model, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=4096)},)
        ).module()
        ours, reference = evaluate(exported, splits(), precision="auto"), evaluate(model, splits())
        assert ours["acc_test"] == pytest.approx(reference["acc_test"], abs=0.02)
