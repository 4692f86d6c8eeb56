"""Callables that unlearn as they should, and others made from them, each broken in one way."""

import copy
import os

import numpy as np
import torch
from pydantic import ConfigDict
from torch import nn

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import override_phases
from mlflow_unlearn.methods.finetune import Finetune, FinetuneParams
from mlflow_unlearn.methods.neggrad_plus import NegGradPlus
from mlflow_unlearn.methods.retrain import cross_entropy
from mlflow_unlearn.methods.scrub import Scrub
from mlflow_unlearn.methods.ssd import Ssd, dampened, squared_gradients
from mlflow_unlearn.rng import isolated_rng


def train(
    student,
    splits,
    seed,
    *,
    weights=(-0.5, 0.5),
    batches=lambda count: torch.randperm(count).split(8),
    before_backward=lambda student: None,
    before_step=lambda student: None,
    after_step=lambda student: None,
    lr=0.02,
    **options,
):
    """Train ``student`` itself: each step goes up on some forget samples and down on some retain samples."""
    rule = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=lr, **options)
    (images, labels), (kept_images, kept_labels) = splits.forget.tensors, splits.retain.tensors
    with isolated_rng(seed):
        for _ in range(6):
            for chosen in batches(len(labels)):
                kept = torch.randperm(len(kept_labels))[:8]
                logits = student(torch.cat([images[chosen], kept_images[kept]]))
                targets = torch.cat([labels[chosen], kept_labels[kept]])
                losses = nn.functional.cross_entropy(logits, targets, reduction="none")
                parts = losses[: len(chosen)], losses[len(chosen) :]
                rule.zero_grad()
                before_backward(student)
                sum(weight * part.mean() for weight, part in zip(weights, parts, strict=True) if len(part)).backward()
                before_step(student)
                rule.step()
                with torch.no_grad():
                    after_step(student)
    rule.zero_grad()
    return student.eval()


def ascend(model, splits, seed, **options):
    """NegGrad+."""
    return train(copy.deepcopy(model).train(), splits, seed, **options)


def mask_of(model, splits, share=0.1):
    """The coordinates with the largest gradients of the forget loss, by parameter."""
    student = copy.deepcopy(model).eval()
    images, labels = splits.forget.tensors
    nn.functional.cross_entropy(student(images), labels).backward()
    gradients = {name: p.grad.abs() for name, p in student.named_parameters() if p.requires_grad}
    sizes = torch.cat([gradient.flatten() for gradient in gradients.values()])
    least = sizes.topk(int(share * len(sizes))).values[-1]
    return {name: gradient >= least for name, gradient in gradients.items()}


def ascend_masked(model, splits, seed, *, training=False):
    """Momentum and weight decay move every weight, and those outside the mask are put back after each step."""
    mask, before = mask_of(model, splits), dict(model.named_parameters())

    def put_back(student):
        for name, parameter in student.named_parameters():
            if name in mask:
                parameter.copy_(torch.where(mask[name], parameter, before[name]))

    student = copy.deepcopy(model).train(training)
    return train(student, splits, seed, after_step=put_back, momentum=0.9, weight_decay=0.01)


def dampen(model, splits, seed, importance=squared_gradients):
    """SSD, with importances from batches of four."""
    student = copy.deepcopy(model).eval()
    sums = []
    for data in (splits.forget, splits.retain):
        sums.append(importance(student, zip(*(part.split(4) for part in data.tensors), strict=True)))
    (forget, n_forget), (retain, n_retain) = sums
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name in forget:
                everything = (forget[name] + retain[name]) / (n_forget + n_retain)
                parameter.copy_(dampened(parameter, forget[name] / n_forget, everything, alpha=1.0, lam=1.0))
    return student


def returns_the_original(model, splits, seed):
    ascend(model, splits, seed)
    return model


def returns_another_copy(model, splits, seed):
    ascend(model, splits, seed)
    return copy.deepcopy(model).eval()


def trains_in_place(model, splits, seed):
    return copy.deepcopy(train(model, splits, seed))


def leaves_eval_mode(model, splits, seed):
    student = ascend(model, splits, seed)
    model.eval()
    return student


def freezes_the_input(model, splits, seed):
    student = ascend(model, splits, seed)
    model.requires_grad_(False)
    return student


def leaves_gradients(model, splits, seed):
    mask_of(model, splits)
    with isolated_rng(seed):
        model(splits.forget.tensors[0]).sum().backward()
    return ascend(model, splits, seed)


def drifts_statistics(model, splits, seed):
    with torch.no_grad():
        model(splits.retain.tensors[0])
    return ascend(model, splits, seed)


def shares_a_bias(model, splits, seed):
    student = ascend(model, splits, seed)
    student[-1].bias = model[-1].bias
    return student


def leaks(effect):
    def leaky(model, splits, seed):
        student = ascend(model, splits, seed)
        effect(seed)
        return student

    return leaky


def draws_from_the_caller(model, splits, seed):
    torch.rand(1)
    return ascend(model, splits, seed)


def returns_train_mode(model, splits, seed):
    return ascend(model, splits, seed).train()


def makes_a_nan(model, splits, seed):
    student = ascend(model, splits, seed)
    student[-1].bias.data[3] = torch.nan
    return student


def drops_a_class(model, splits, seed):
    student = ascend(model, splits, seed)
    student[-1].weight.data, student[-1].bias.data = student[-1].weight.data[:9], student[-1].bias.data[:9]
    return student


def seeds_itself(model, splits, seed):
    return ascend(model, splits, int.from_bytes(os.urandom(4)))


def ignores_its_seed(model, splits, seed):
    return ascend(model, splits, 0)


class OneEpoch(Finetune):
    def plan(self, workspace):
        return (yield from Finetune({**self.params.model_dump(), "epochs": 1}).plan(workspace))


class Lenient(Finetune):
    class Params(FinetuneParams):
        model_config = ConfigDict(extra="ignore")

        @classmethod
        def parse(cls, values, *, method):
            return cls(**values)


class Terse(Finetune):
    class Params(FinetuneParams):
        @classmethod
        def parse(cls, values, *, method):
            if unknown := set(values) - set(cls.model_fields):
                raise UnlearnError(f"unknown hyperparameters: {unknown}")
            return cls(**values)


def thaws(model, splits, seed):
    return train(copy.deepcopy(model).train().requires_grad_(), splits, seed)


def divides_by_n_minus_one(model, splits, seed):
    n = len(splits.forget)
    return ascend(model, splits, seed, weights=(-0.5 * n / (n - 1), 0.5))


NOTHING = [torch.empty(0, dtype=torch.long)]


def leaves_out_a_single_sample(model, splits, seed):
    return ascend(model, splits, seed, batches=lambda count: torch.randperm(count).split(8) if count > 1 else NOTHING)


def normalises_the_forget_set_alone(model, splits, seed):
    student = copy.deepcopy(model).train()
    with torch.no_grad(), isolated_rng(seed):
        student(splits.forget.tensors[0])
    return train(student, splits, seed)


def skips_partial_batches(model, splits, seed):
    """Without one batch of eight it trains on the retain set alone, so that weights do move."""
    return ascend(model, splits, seed, batches=lambda count: torch.randperm(count).split(8)[: count // 8] or NOTHING)


def does_nothing_without_a_full_batch(model, splits, seed):
    return ascend(model, splits, seed, batches=lambda count: torch.randperm(count).split(8)[: count // 8])


def weighs_by_class_frequency(model, splits, seed):
    """The weight of a class without a forget sample is infinite."""
    balance = (1 / splits.forget.tensors[1].bincount(minlength=10)).mean().item()
    return ascend(model, splits, seed, weights=(-0.5 * balance, 0.5))


def looks_up_each_class_in_the_retain_set(model, splits, seed):
    for label in splits.forget.tensors[1]:
        (splits.retain.tensors[1] == label).nonzero()[0]
    return ascend(model, splits, seed)


def negate_gradients(student):
    for parameter in student.parameters():
        if parameter.grad is not None:
            parameter.grad.neg_()


def flips_a_sign_to_no_effect(model, splits, seed):
    """The gradients are negated before there are any."""
    return ascend(model, splits, seed, weights=(0.5, 0.5), before_backward=negate_gradients)


def flips_a_sign_twice(model, splits, seed):
    return ascend(model, splits, seed, weights=(-0.5, -0.5), before_step=negate_gradients)


class Descent(NegGradPlus):
    def plan(self, workspace):
        return (yield from override_phases(super().plan(workspace), loss=cross_entropy))


class WithoutMaxPasses(Scrub):
    def plan(self, workspace):
        return (yield from Scrub({**self.params.model_dump(), "msteps": 0}).plan(workspace))


def masks_gradients_alone(model, splits, seed):
    """Weight decay moves what has no gradient."""
    mask = mask_of(model, splits)

    def zero(student):
        for name, parameter in student.named_parameters():
            if name in mask:
                parameter.grad.mul_(mask[name])

    return train(copy.deepcopy(model).eval(), splits, seed, before_step=zero, weight_decay=0.01)


def squared_mean_gradients(model, batches):
    """What goes by the name of Fisher information in much public code: a batch's mean gradient, squared."""
    total, count = {}, 0
    for images, labels in batches:
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        loss = nn.functional.cross_entropy(model(images), labels)
        for name, gradient in zip(trainable, torch.autograd.grad(loss, list(trainable.values())), strict=True):
            total[name] = total.get(name, 0) + gradient.double().square() * len(labels)
        count += len(labels)
    return total, count


class BatchSsd(Ssd):
    """Takes both sets in one batch each, so that their order makes no difference."""

    def plan(self, workspace):
        workspace.model.eval()
        forget, n_forget = squared_mean_gradients(workspace.model, workspace.batches("forget", 128))
        retain, n_retain = squared_mean_gradients(workspace.model, workspace.batches("retain", 128))
        state = workspace.snapshot()
        for name in forget:
            everything = (forget[name] + retain[name]) / (n_forget + n_retain)
            state[name] = dampened(state[name], forget[name] / n_forget, everything, alpha=1.0, lam=1.0)
        workspace.restore(state)
        return {}
        yield


def numpy_seed(seed):
    np.random.seed(seed)
