"""A conformance suite for unlearning methods: small real models, real images, one property per known defect.

Whoever brings a method pastes this into a test file of their own:

    import pytest
    from my_package import MyMethod
    from mlflow_unlearn.testing import cases, check_method

    @pytest.mark.parametrize(("name", "model"), cases(MyMethod))
    def test_my_method_conforms(name, model):
        assert check_method(MyMethod, properties=[name], models=[model]) == []

`PROPERTIES` lists what is checked, and the docstring of each says which defect it is there to catch. The last three
hold only for methods that promise them, for instance ``check_method(MyMethod, promises={"masked": {"share": 0.1}})``.

Nothing is downloaded or written. The models are trained, in seconds, when they are first asked for.
"""

import copy
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.engine.architectures import build_model, model_family
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.engine.method import Role
from mlflow_unlearn.engine.modes import evaluating
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import Method, Plan, Workspace, get_method
from mlflow_unlearn.rng import isolated_rng

Unlearner = Callable[[nn.Module, Splits, int], nn.Module]
"""``(model, splits, seed)`` → a new model: anything that unlearns, whether it is written as a `Method` or not."""

Promises = Mapping[str, Mapping[str, Any]]
"""Property → the hyperparameters under which it holds, or what else it has to be told."""

BATCH_SIZE = 8
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "lotus": {"epochs": 1},
    "finetune": {"epochs": 1},
    "neggrad_plus": {"epochs": 1},
    "random_labels": {"epochs": 1},
    "bad_teacher": {"epochs": 1},
    "scrub": {"epochs": 1},
    # With the authors' alpha of 10 and a third of the samples to forget, no weight could be selected.
    "ssd": {"alpha": 1.0},
    "unsir": {"epochs": 1, "noise_steps": 2, "copies": 1},
    # With frozen statistics a ResNet diverges within two epochs at the default rate.
    "salun": {"epochs": 1, "lr": 1e-3},
    "retrain": {"epochs": 1},
}
"""What makes a method cheap, or effective on a few samples.

Other methods run with their defaults, but with at most two ``epochs``. For all, ``batch_size`` is at most `BATCH_SIZE`:
a forget set has to be able to be smaller than a batch.
"""

_STEADY = {"weight_decay": 0.0, "momentum": 0.0}
PROMISES: Mapping[str, Promises] = {
    "neggrad_plus": {"forget_loss_rises": {"beta": 0.5, "epochs": 6, "lr": 0.02, **_STEADY}},
    # The loss of the min passes is zero: what moves the weights are the max passes.
    "scrub": {"forget_loss_rises": {"alpha": 0.0, "gamma": 0.0, "epochs": 2, "msteps": 2, "lr": 0.015, **_STEADY}},
    "ssd": {"batch_invariant": {}},
    "salun": {"masked": {"share": 0.1}},
}
"""Method → what it promises beyond the properties that all have."""


@dataclass(frozen=True)
class Finding:
    """A property that does not hold.

    Attributes:
        property: its name in `PROPERTIES`.
        model: the name in `MODELS` of the model that showed it.
        sentence: what was seen.
    """

    property: str
    model: str
    sentence: str


def check_method(
    method: str | type[Method] | Unlearner,
    *,
    params: Mapping[str, Any] | None = None,
    models: Iterable[str] | None = None,
    properties: Iterable[str] | None = None,
    promises: Promises | None = None,
    stochastic: bool | None = None,
) -> list[Finding]:
    """Look for properties that ``method`` lacks; an empty list is a pass.

    An exception that the method raises is a finding of the property that met it.

    Args:
        method: a registered name, a `Method` (registered or not), or a callable ``(model, splits, seed)`` → model.
        params: hyperparameters of a `Method`, over those of `SETTINGS`.
        models: names in `MODELS`; None for all.
        properties: names in `PROPERTIES`; None for those that every method has and those that this one promises.
        promises: None for those that `PROMISES` has of a `Method` by its name.
        stochastic: whether another seed gives other weights; None for what a `Method` says, True for a callable.

    Raises:
        UnlearnError: an unknown method, model, property or promise; hyperparameters that the method does not take.
    """
    method = get_method(method) if isinstance(method, str) else method
    promises = _promises(method) if promises is None else promises
    expected = _expected(promises)
    findings = []
    for model in _known("model", MODELS, models):
        bench = Bench(method, model, params or {}, promises, stochastic)
        for name in _known("property", PROPERTIES, expected if properties is None else properties):
            try:
                sentence = PROPERTIES[name](bench)
            except Exception as error:  # A method may raise anything, and the other properties are still to be seen.
                sentence = f"raised {type(error).__name__}: {error}"
            if sentence is not None:
                findings.append(Finding(name, model, sentence))
    return findings


def cases(method: str | type[Method] | Unlearner, *, promises: Promises | None = None) -> list[tuple[str, str]]:
    """``(property, model)`` of every check that `check_method` makes: the values for ``pytest.mark.parametrize``."""
    method = get_method(method) if isinstance(method, str) else method
    expected = _expected(_promises(method) if promises is None else promises)
    return [(name, model) for model in MODELS for name in expected]


def _recipe(method: type[Method] | Unlearner) -> type[Method] | None:
    return method if isinstance(method, type) and issubclass(method, Method) else None


def _promises(method: type[Method] | Unlearner) -> Promises:
    recipe = _recipe(method)
    return {} if recipe is None else PROMISES.get(recipe.name, {})


def _expected(promises: Iterable[str]) -> list[str]:
    return [*_GENERAL, *_known("promise", _PROMISED, promises)]


def _known(kind: str, table: Mapping[str, Any], names: Iterable[str] | None) -> list[str]:
    chosen = list(table if names is None else names)
    for name in chosen:
        if name not in table:
            raise UnlearnError(f"unknown {kind} {name!r} of the conformance suite: known are {', '.join(table)}")
    return chosen


# ---- The models, and the digits that they have learned by heart ----

FORGET = tuple(range(10))
"""Ten samples, one of each class."""
RETAIN = tuple(range(10, 30))
TRAIN = FORGET + RETAIN
VAL, TEST = tuple(range(30, 50)), tuple(range(50, 70))


@cache
def _digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.images[:70] / 16, dtype=torch.float32)[:, None], torch.tensor(data.target[:70])


def _subset(indices: Sequence[int]) -> TensorDataset:
    images, labels = _digits()
    return TensorDataset(images[list(indices)], labels[list(indices)])


def _of_classes(*classes: int) -> list[int]:
    return [i for i in TRAIN if int(_digits()[1][i]) in classes]


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(512, 10),
    )


def _vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2}
    model: nn.Module = VisionTransformer(**sizes, num_heads=2, drop_rate=0.1, proj_drop_rate=0.1)
    return model


def _resnet18() -> nn.Module:
    model = build_model("resnet18", 10, (1, 8, 8))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3  # Running statistics have but twenty steps to get where they belong.
    return model


MODELS: Mapping[str, tuple[Callable[[], nn.Module], int, float]] = {
    "cnn": (_cnn, 25, 5e-3),
    "vit": (_vit, 140, 2e-3),
    "resnet18": (_resnet18, 20, 3e-4),
}
"""Name → how it is built, and by how many Adam steps of what rate it learns the training set by heart.

Without normalisation and with dropout; with attention, LayerNorm and dropout; with BatchNorm. The steps are short
enough to end at the same place whatever the processor's rounding, and so few that there still is a gradient to go up.
"""


@cache
def original(name: str) -> nn.Module:
    """The trained model ``name`` of `MODELS`, in eval mode: the same in every process. Copy it before use."""
    build, steps, lr = MODELS[name]
    images, labels = _subset(TRAIN).tensors
    with isolated_rng(0), torch.inference_mode(False), torch.enable_grad():
        model = build().train()
        optimizer = torch.optim.Adam(model.parameters(), lr)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.zero_grad()
    return model.eval()


# ---- One run of a method ----


@dataclass(frozen=True)
class Run:
    """One call of the method, and what it left behind.

    Attributes:
        given: the model that went in.
        returned: the model that came out.
        tensors: parameters and buffers of ``returned``, copied at once.
        touched: what the call changed of ``given``: tensors, modes, flags, gradients.
        leaked: which global states the call changed.
    """

    given: nn.Module
    returned: nn.Module
    tensors: Mapping[str, Tensor]
    touched: list[str]
    leaked: list[str]


class Bench:
    """A method and a model, as the properties see them.

    Attributes:
        original: the trained model; nobody touches it.
        recipe: the method if it is a `Method`, None if it is a callable.
        params: hyperparameters of a `Method`.
        stochastic: whether another seed should give other weights.
    """

    def __init__(
        self,
        method: type[Method] | Unlearner,
        model: str,
        params: Mapping[str, Any],
        promises: Promises,
        stochastic: bool | None,
    ) -> None:
        """Nothing runs yet; the arguments are those of `check_method`."""
        self.original = original(model)
        self.recipe = _recipe(method)
        self.stochastic = getattr(self.recipe, "stochastic", True) if stochastic is None else stochastic
        self.params = {} if self.recipe is None else self._cheap(self.recipe, params)
        self._method, self._promises = method, promises
        self._random_states = count(2**31)  # Far from the seeds in use: seeding with one of those must be seen.

    def _cheap(self, recipe: type[Method], params: Mapping[str, Any]) -> dict[str, Any]:
        settings = {**SETTINGS.get(recipe.name, {}), **params}
        used = recipe(settings, family=model_family(self.original)).params.model_dump()
        limits = {"epochs": 2, "batch_size": BATCH_SIZE}
        cut = {name: min(used[name], limit) for name, limit in limits.items() if isinstance(used.get(name), int)}
        return cut | settings

    def promised(self, name: str) -> Mapping[str, Any]:
        """What the method promises by the property ``name``."""
        return self._promises.get(name, {})

    def run(
        self,
        forget: Sequence[int] = FORGET,
        retain: Sequence[int] = RETAIN,
        *,
        seed: int = 0,
        freeze: Iterable[str] = (),
        params: Mapping[str, Any] | None = None,
        batches_of: int | None = None,
    ) -> Run:
        """Call the method on a fresh copy of the model, each time from another state of the global generators.

        Args:
            forget: indices of the digits to forget.
            retain: indices of the others.
            seed: given to the method.
            freeze: names of the parameters that are not to be trained.
            params: hyperparameters of a `Method` that differ from the bench's.
            batches_of: the size of the batches that the workspace of a `Method` serves, whatever it asks for.

        Raises:
            TypeError: the method returned no module.
        """
        given = copy.deepcopy(self.original)
        # A caller's model may be in any mode; a mixed one shows whether they are all put back.
        given.train()
        list(given.modules())[-1].training = False
        for name in freeze:
            given.get_parameter(name).requires_grad = False
        before, traits = tensors(given), _traits(given)
        splits = Splits(_subset(forget), _subset(retain), _subset(VAL), _subset(TEST))
        with isolated_rng(next(self._random_states)), torch.inference_mode(False), torch.enable_grad():
            states = _global_states()
            returned = self._call(given, splits, seed, {**self.params, **(params or {})}, batches_of)
            leaked = [name for name, state in _global_states().items() if state != states[name]]
        if not isinstance(returned, nn.Module):
            raise TypeError(f"the method returned a {type(returned).__name__}, not a torch.nn.Module")
        touched = differing(before, tensors(given))
        touched += [trait for trait, value in _traits(given).items() if traits.get(trait) != value]
        return Run(given, returned, tensors(returned), touched, leaked)

    def _call(
        self, model: nn.Module, splits: Splits, seed: int, params: Mapping[str, Any], batches_of: int | None
    ) -> nn.Module:
        if self.recipe is None:
            return cast(Unlearner, self._method)(model, splits, seed)
        method = self.recipe(params, family=model_family(model))
        if batches_of is not None:
            method = _InBatches(method, batches_of)
        datasets: Mapping[str, Dataset[Any]] = vars(splits)
        return run(model, method, datasets, Hardware(torch.device("cpu")), RunOptions(seed)).model

    @cached_property
    def plain(self) -> Run:
        """The run with nothing special about it."""
        return self.run()

    def run_as_promised(self, name: str) -> Run:
        """The run under the hyperparameters that the promise ``name`` tells."""
        return self.run(params=self.promised(name)) if self.recipe and self.promised(name) else self.plain

    @cached_property
    def reads_forget_set(self) -> bool:
        """Whether as many other samples to forget give other weights, where they fill a batch."""
        return bool(differing(self.run(FORGET[:BATCH_SIZE]).tensors, self.run(FORGET[-BATCH_SIZE:]).tensors))

    def moved(self, run: Run) -> bool:
        """Whether a parameter differs from the original's."""
        return bool(differing(dict(self.original.named_parameters()), run.tensors))

    def outputs(self, model: nn.Module) -> Tensor:
        """The logits ``[N, K]`` of ``model`` for all digits, in eval mode."""
        with evaluating(model):
            logits: Tensor = model(_digits()[0])
        return logits

    def worse(self, run: Run) -> str | None:
        """What is wrong with the outcome of ``run`` and is not with that of the plain run."""
        if self.moved(self.plain) and not self.moved(run):
            return "the weights stay as they were"
        if self.outputs(self.plain.returned).isfinite().all() and not self.outputs(run.returned).isfinite().all():
            return "the outputs of the returned model are not finite"
        return None


class _InBatches(Method):
    """A method whose workspace serves batches of another size than it asks for."""

    def __init__(self, method: Method, size: int) -> None:
        self._method, self._size = method, size
        self.name = method.name  # type: ignore[misc]

    def plan(self, workspace: Workspace) -> Plan:
        return self._method.plan(cast(Workspace, _Rebatched(workspace, self._size)))


class _Rebatched:
    def __init__(self, workspace: Workspace, size: int) -> None:
        self._workspace, self._size = workspace, size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workspace, name)

    def batches(self, role: Role, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._workspace.batches(role, self._size)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer by name, also of those that a state dict leaves out."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """The names in ``a`` whose tensor is not in ``b``, or not the same there bit for bit (so that NaN equals NaN)."""
    return [name for name, tensor in a.items() if name not in b or not _same_bits(tensor, b[name])]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    first, second = (tensor.detach().reshape(-1).view(torch.uint8) for tensor in (a, b))
    return torch.equal(first, second)


def _traits(model: nn.Module) -> dict[str, bool]:
    """What can be changed of a model beside its tensors."""
    modes = {f"the mode of {name or 'the whole'}": module.training for name, module in model.named_modules()}
    flags = {f"requires_grad of {name}": p.requires_grad for name, p in model.named_parameters()}
    return modes | flags | {f"the gradient of {name}": p.grad is not None for name, p in model.named_parameters()}


def _global_states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "Python's random state": random.getstate(),
        "NumPy's random state": (kind, np.asarray(keys).tolist(), rest),
        "torch's random state": torch.get_rng_state().tolist(),
        "the grad mode": torch.is_grad_enabled(),
    }


# ---- The properties: each returns a sentence about what is wrong, or None ----


def moves(bench: Bench) -> str | None:
    """Catches the optimiser on one copy and the return of another: its figures would look like a perfect original's."""
    return None if bench.moved(bench.plain) else "the returned model has the parameters of the one that went in"


def input_untouched(bench: Bench) -> str | None:
    """Catches training in place, running statistics that drift, modes and flags not put back, gradients left behind."""
    return _told("the call changed in the model that went in:", bench.plain.touched)


def no_shared_storage(bench: Bench) -> str | None:
    """Catches shallow copies: who trains the returned model later would move the one that went in."""

    def storages(model: nn.Module) -> dict[int, str]:
        named = [*model.named_parameters(), *model.named_buffers()]
        return {tensor.untyped_storage().data_ptr(): name for name, tensor in named if tensor.numel()}

    given = storages(bench.plain.given)
    shared = [name for address, name in storages(bench.plain.returned).items() if address in given]
    return _told("the returned model and the one that went in share the memory of", shared)


def globals_restored(bench: Bench) -> str | None:
    """Catches seeding the caller's random generators, or drawing from them, and a grad mode left switched."""
    return _told("the call changed", bench.plain.leaked)


def eval_mode(bench: Bench) -> str | None:
    """Catches a model returned in train mode: dropout and batch statistics would be in every figure read from it."""
    training = [name or "the whole" for name, module in bench.plain.returned.named_modules() if module.training]
    return _told("the returned model is in train mode:", training)


def finite(bench: Bench) -> str | None:
    """Catches divergence, and a model whose outputs have another shape than before."""
    before, after = bench.outputs(bench.original), bench.outputs(bench.plain.returned)
    if after.shape != before.shape:
        return f"the outputs have the shape {list(after.shape)} and had {list(before.shape)}"
    return None if after.isfinite().all() else "the outputs of the returned model are not finite"


def deterministic(bench: Bench) -> str | None:
    """Catches randomness that does not come from the seed: nobody could make the same model again."""
    return _told("the same seed twice gives different", differing(bench.plain.tensors, bench.run().tensors))


def seeded(bench: Bench) -> str | None:
    """Catches a seed that is ignored, and a ``stochastic`` that says the wrong thing."""
    names = differing(bench.plain.tensors, bench.run(seed=1).tensors)
    if not bench.stochastic:
        return _told("the method is not stochastic, and yet another seed gives different", names)
    return "another seed gives the same weights" if bench.moved(bench.plain) and not names else None


def epochs(bench: Bench) -> str | None:
    """Catches a setting without effect: for a `Method` that has ``epochs``, one more gives other weights."""
    if bench.recipe is None or "epochs" not in bench.params:
        return None
    few, many = bench.params["epochs"], bench.params["epochs"] + 1
    same = not differing(bench.plain.tensors, bench.run(params={"epochs": many}).tensors)
    return f"epochs = {many} gives the same weights as epochs = {few}" if same and bench.moved(bench.plain) else None


def unknown_hyperparameter(bench: Bench) -> str | None:
    """Catches a misspelt setting that is swallowed: a `Method` refuses it and lists those that there are."""
    if bench.recipe is None:
        return None
    try:
        bench.recipe({**bench.params, "no_such_setting": 1}, family=model_family(bench.original))
    except UnlearnError as error:
        unlisted = [name for name in bench.recipe.Params.model_fields if not re.search(rf"\b{name}\b", str(error))]
        return _told("the error about an unknown hyperparameter does not list", unlisted)
    return "an unknown hyperparameter is accepted"


def frozen_parameters(bench: Bench) -> str | None:
    """Catches an optimiser over everything, and ``requires_grad`` switched on again: here the first half is frozen."""
    names = [name for name, _ in bench.original.named_parameters()]
    frozen = names[: len(names) // 2]
    run = bench.run(freeze=frozen)
    moved = differing({name: bench.original.get_parameter(name) for name in frozen}, run.tensors)
    return _told("frozen parameters moved:", moved) or bench.worse(run)


def one_sample(bench: Bench) -> str | None:
    """Catches what a single sample breaks: a variance over one number, a batch of one under BatchNorm."""
    return _few(bench, 1)


def small_forget_set(bench: Bench) -> str | None:
    """Catches partial batches that are skipped: of a forget set smaller than a batch nothing would be forgotten."""
    return _few(bench, 3)


def _few(bench: Bench, size: int) -> str | None:
    run, other = bench.run(range(size)), bench.run(range(size, 2 * size))
    if not differing(run.tensors, other.tensors) and bench.reads_forget_set:
        return f"a forget set of {size} is ignored: other samples give the same weights"
    return bench.worse(run)


def missing_class(bench: Bench) -> str | None:
    """Catches a forget set that is taken to show all classes: here it has the first five of ten."""
    return _forgetting(bench, _of_classes(0, 1, 2, 3, 4)[: len(FORGET)])


def whole_class(bench: Bench) -> str | None:
    """Catches a retain set that is taken to show all classes: here one is forgotten as a whole."""
    return _forgetting(bench, _of_classes(3))


def _forgetting(bench: Bench, forget: Sequence[int]) -> str | None:
    return bench.worse(bench.run(forget, [i for i in TRAIN if i not in forget]))


def forget_loss_rises(bench: Bench) -> str | None:
    """Catches an ascent that does not ascend: a sign flipped to no effect, or twice.

    Steps that are too long, dropout and running statistics make it rise a little as well, and ascent makes it explode:
    it has to be five times what it was.
    """
    images, labels = _subset(FORGET).tensors

    def loss(model: nn.Module) -> float:
        with evaluating(model):
            return nn.functional.cross_entropy(model(images), labels).item()

    before, after = loss(bench.original), loss(bench.run_as_promised("forget_loss_rises").returned)
    return None if after > 5 * before else f"the mean loss on the forget set went from {before:.3g} to {after:.3g}"


def masked(bench: Bench) -> str | None:
    """Catches what moves outside a mask: by weight decay, by momentum, in running statistics.

    The promise tells the ``share`` of the weights that may move, over all tensors together.
    """
    share = bench.promised("masked").get("share")
    if share is None:
        raise UnlearnError("the property 'masked' must be told a share: promises={'masked': {'share': 0.1}}")
    run = bench.run_as_promised("masked")
    weights = dict(bench.original.named_parameters())
    changed = sum(int((run.tensors[name] != weight).sum()) for name, weight in weights.items())
    total = sum(weight.numel() for weight in weights.values())
    if changed > round(share * total):
        return f"{changed} of {total} weights moved, more than a share of {share:g}"
    return _told("buffers are under no mask, and moved:", differing(dict(bench.original.named_buffers()), run.tensors))


def batch_invariant(bench: Bench) -> str | None:
    """Catches the square of a batch's mean gradient instead of a mean of squares: neither order nor batches may matter.

    Outputs are compared, to a hundredth of what the method changes: a weight that no output depends on is dampened by
    the ratio of two rounding errors.
    """
    reference = bench.outputs(bench.run_as_promised("batch_invariant").returned)
    params = bench.promised("batch_invariant")
    others = {"in another order": bench.run(FORGET[::-1], RETAIN[1::2] + RETAIN[::2], params=params)}
    if bench.recipe is not None:
        others["in batches of 3"] = bench.run(params=params, batches_of=3)
    effect = (reference - bench.outputs(bench.original)).abs().max()
    for how, other in others.items():
        apart = (bench.outputs(other.returned) - reference).abs().max()
        if apart > 0.01 * effect:
            return f"the samples {how} give outputs that differ by {apart / effect:.1%} of the method's effect"
    return None


def _told(what: str, names: Sequence[str]) -> str | None:
    if not names:
        return None
    return f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


Property = Callable[[Bench], str | None]


def _table(*properties: Property) -> Mapping[str, Property]:
    return {prop.__name__: prop for prop in properties}


_GENERAL = _table(
    moves,
    input_untouched,
    no_shared_storage,
    globals_restored,
    eval_mode,
    finite,
    deterministic,
    seeded,
    epochs,
    unknown_hyperparameter,
    frozen_parameters,
    one_sample,
    small_forget_set,
    missing_class,
    whole_class,
)
_PROMISED = _table(forget_loss_rises, masked, batch_invariant)
PROPERTIES: Mapping[str, Property] = {**_GENERAL, **_PROMISED}
"""Every property by its name; the last three are for methods that promise them."""
