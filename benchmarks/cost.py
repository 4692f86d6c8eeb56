"""What a method costs compared with the bare passes that it needs: the same batches and steps in plain PyTorch.

With torch's default number of threads; each method and its bare passes alternate, and the ratio is that of the medians
of three. ResNet18 with the ordinary stem on 28 × 28 images of noise: the content does not affect the time.

    python benchmarks/cost.py [--samples 2000]
"""

import argparse
import copy
import statistics
import sys
import time
import warnings

import torch
from fashion_mnist import fresh_model
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import TensorDataset

from mlflow_unlearn import Splits, unlearn
from mlflow_unlearn.errors import UnlearnWarning
from mlflow_unlearn.methods.ssd import squared_gradients

EPOCHS, BATCH = 2, 128


def passes(model, images, labels, count: int, batch: int, rule=torch.optim.SGD, train: bool = True) -> None:
    """``count`` training passes: forward, backward, step."""
    model = copy.deepcopy(model).train(train)
    extra = {"momentum": 0.9} if rule is torch.optim.SGD else {}
    optimizer = rule(model.parameters(), 1e-4, weight_decay=0 if rule is torch.optim.Adam else 5e-4, **extra)
    for _ in range(count):
        for part in torch.randperm(len(images)).tensor_split(-(-len(images) // batch)):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()


def paired_passes(model, forget, retain, count: int, batch: int) -> None:
    """Each step takes a batch of both sets; the smaller set cycles."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9, weight_decay=5e-4)
    for _ in range(count):
        small = torch.randperm(len(forget[0])).tensor_split(-(-len(forget[0]) // batch))
        for step, part in enumerate(torch.randperm(len(retain[0])).tensor_split(-(-len(retain[0]) // batch))):
            other = small[step % len(small)]
            images, labels = (torch.cat([r[part], f[other]]) for r, f in zip(retain, forget, strict=True))
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


def forward_pass(model: nn.Module, images: torch.Tensor) -> None:
    """One forward pass, as for a teacher or an accuracy."""
    model = copy.deepcopy(model).eval()
    with torch.inference_mode():
        for part in images.split(256):
            model(part)


def per_sample(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, chunk: int) -> None:
    """Per-sample gradients and nothing else."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(p, image, label):
        return nn.functional.cross_entropy(functional_call(model, {**p, **buffers}, (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    for x, y in zip(images.split(chunk), labels.split(chunk), strict=True):
        each(parameters, x, y)


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(name: str, ours, bare) -> float:
    pairs = [(seconds(ours), seconds(bare)) for _ in range(3)]
    own, plain = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"{name:<14} {own:7.2f} s, bare {plain:7.2f} s, ratio {own / plain:.3f}", flush=True)
    return own / plain


def main() -> None:
    warnings.simplefilter("ignore", UnlearnWarning)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000, help="retain samples; a ninth of them is forgotten")
    args = parser.parse_args()
    torch.manual_seed(0)

    def part(count: int) -> TensorDataset:
        return TensorDataset(torch.randn(count, 1, 28, 28), torch.randint(0, 10, (count,)))

    sets = Splits(part(args.samples // 9), part(args.samples), part(256), part(256))
    f, r = sets.forget.tensors, sets.retain.tensors
    both = tuple(torch.cat(pair) for pair in zip(f, r, strict=True))
    some = tuple(t[: round(0.3 * len(t))] for t in r)
    mixed = tuple(torch.cat(pair) for pair in zip(f, some, strict=True))
    model = fresh_model(0).eval()
    # The model must fit the forget set and not the validation set, or LoTUS's rule would stop it before the first pass.
    with torch.inference_mode():
        f[1].copy_(model(f[0]).argmax(dim=1))
        v = sets.val.tensors
        v[1].copy_((model(v[0]).argmax(dim=1) + 1) % 10)
    common = {"epochs": EPOCHS, "batch_size": BATCH}

    def lotus_bare():
        forward_pass(model, sets.val.tensors[0])
        forward_pass(model, mixed[0])
        for _ in range(EPOCHS):
            forward_pass(model, f[0])
            passes(model, *mixed, 1, BATCH, torch.optim.AdamW)
        forward_pass(model, f[0])

    def scrub_bare():
        forward_pass(model, both[0])
        passes(model, *f, EPOCHS, BATCH)
        passes(model, *r, EPOCHS, BATCH)

    def salun_bare():
        passes(model, *f, 1, BATCH)
        passes(model, *both, EPOCHS, BATCH, train=False)

    def msg_bare():
        passes(model, *(tuple(torch.cat([part[: len(f[0])], mine]) for part, mine in zip(r, f, strict=True))), 1, 64)
        passes(model, *r, EPOCHS, BATCH)

    def bad_teacher_bare():
        forward_pass(model, mixed[0])
        passes(model, *mixed, EPOCHS, BATCH, torch.optim.Adam)

    noise_size, steps, copies = 32, 4, 2
    noise = torch.randn(10 * noise_size, 1, 28, 28), torch.arange(10).repeat_interleave(noise_size)
    fifth = tuple(t[: round(0.2 * len(t))] for t in r)

    def unsir_bare():
        # Gradients with respect to the images only.
        frozen = copy.deepcopy(model).requires_grad_(False)
        for images, labels in zip(noise[0].split(noise_size), noise[1].split(noise_size), strict=True):
            learned = images.clone().requires_grad_()
            for _ in range(steps):
                torch.autograd.grad(nn.functional.cross_entropy(frozen(learned), labels), learned)
        impair = tuple(torch.cat([n.repeat(copies, *[1] * (n.ndim - 1)), s]) for n, s in zip(noise, fifth, strict=True))
        passes(model, *impair, 1, noise_size, torch.optim.Adam)
        passes(model, *fifth, 1, noise_size, torch.optim.Adam)

    unsir = {"noise_steps": steps, "copies": copies, "batch_size": noise_size}
    cases = [
        ("lotus", common | {"lr": 1e-5}, lotus_bare),
        ("finetune", common, lambda: passes(model, *r, EPOCHS, BATCH)),
        ("neggrad_plus", common | {"lr": 1e-4}, lambda: paired_passes(model, f, r, EPOCHS, BATCH)),
        ("random_labels", common, lambda: passes(model, *both, EPOCHS, BATCH)),
        ("bad_teacher", common, bad_teacher_bare),
        ("scrub", common, scrub_bare),
        ("unsir", unsir, unsir_bare),
        ("salun", common, salun_bare),
        ("transpose", common, lambda: passes(model, *r, EPOCHS, BATCH)),
        ("perturb", common, lambda: passes(model, *r, EPOCHS, BATCH)),
        ("msg", common, msg_bare),
    ]
    worst = max(ratio(name, lambda n=name, p=p: unlearn(model, sets, n, p), bare) for name, p, bare in cases)
    print(f"worst ratio {worst:.3f} (at most 1.10)")

    x, y = (t[:64] for t in r)
    chunks = {
        c: ratio(
            f"ssd, vmap of {c}", lambda: squared_gradients(model, [(x, y)]), lambda c=c: per_sample(model, x, y, c)
        )
        for c in (1, 4, 16)
    }
    ssd = max(chunks.values())
    print(f"ssd: importances against bare per-sample gradients, at most {ssd:.3f} (at most 1.3)")
    sys.exit(0 if worst <= 1.10 and ssd <= 1.3 else 1)


if __name__ == "__main__":
    main()
