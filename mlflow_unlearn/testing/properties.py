"""The properties that a method should have: each function returns a sentence about what is wrong, or None."""

import re
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from mlflow_unlearn.engine.architectures import model_family
from mlflow_unlearn.engine.modes import evaluating
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.testing.models import FORGET, RETAIN, TRAIN, of_classes, subset
from mlflow_unlearn.testing.probe import MethodProbe, differing


def moves(probe: MethodProbe) -> str | None:
    """Catches the optimiser on one copy and the return of another: its metrics would be a perfect original's."""
    return None if probe.moved(probe.plain) else "the returned model has the parameters of the one that went in"


def input_untouched(probe: MethodProbe) -> str | None:
    """Catches training in place, drifting running statistics, modes and flags not restored, gradients left behind."""
    return _sentence("the call changed in the model that went in:", probe.plain.touched)


def no_shared_storage(probe: MethodProbe) -> str | None:
    """Catches shallow copies: training the returned model later would move the one that went in."""

    def storages(model: nn.Module) -> dict[int, str]:
        named = [*model.named_parameters(), *model.named_buffers()]
        return {tensor.untyped_storage().data_ptr(): name for name, tensor in named if tensor.numel()}

    given = storages(probe.plain.given)
    shared = [name for address, name in storages(probe.plain.returned).items() if address in given]
    return _sentence("the returned model and the one that went in share the memory of", shared)


def globals_restored(probe: MethodProbe) -> str | None:
    """Catches seeding the caller's random generators, or drawing from them, and a grad mode left switched."""
    return _sentence("the call changed", probe.plain.leaked)


def eval_mode(probe: MethodProbe) -> str | None:
    """Catches a model returned in train mode: dropout and batch statistics would be in every figure read from it."""
    training = [name or "the whole" for name, module in probe.plain.returned.named_modules() if module.training]
    return _sentence("the returned model is in train mode:", training)


def finite(probe: MethodProbe) -> str | None:
    """Catches divergence, and a model whose outputs have another shape than before."""
    before, after = probe.outputs(probe.original), probe.outputs(probe.plain.returned)
    if after.shape != before.shape:
        return f"the outputs have the shape {list(after.shape)} and had {list(before.shape)}"
    return None if after.isfinite().all() else "the outputs of the returned model are not finite"


def deterministic(probe: MethodProbe) -> str | None:
    """Catches randomness that does not come from the seed: the same model could never be made again."""
    return _sentence("the same seed twice gives different", differing(probe.plain.tensors, probe.run().tensors))


def seeded(probe: MethodProbe) -> str | None:
    """Catches a seed that is ignored, and a ``stochastic`` that is wrong."""
    names = differing(probe.plain.tensors, probe.run(seed=1).tensors)
    if not probe.stochastic:
        return _sentence("the method is not stochastic, and yet another seed gives different", names)
    return "another seed gives the same weights" if probe.moved(probe.plain) and not names else None


def epochs(probe: MethodProbe) -> str | None:
    """Catches a setting without effect: for a `Method` that has ``epochs``, one more gives other weights."""
    if probe.recipe is None or "epochs" not in probe.params:
        return None
    few, many = probe.params["epochs"], probe.params["epochs"] + 1
    same = not differing(probe.plain.tensors, probe.run(params={"epochs": many}).tensors)
    return f"epochs = {many} gives the same weights as epochs = {few}" if same and probe.moved(probe.plain) else None


def unknown_hyperparameter(probe: MethodProbe) -> str | None:
    """Catches a misspelt setting that is ignored: a `Method` refuses it and lists the valid ones."""
    if probe.recipe is None:
        return None
    try:
        probe.recipe({**probe.params, "no_such_setting": 1}, family=model_family(probe.original))
    except UnlearnError as error:
        unlisted = [name for name in probe.recipe.Params.model_fields if not re.search(rf"\b{name}\b", str(error))]
        return _sentence("the error about an unknown hyperparameter does not list", unlisted)
    return "an unknown hyperparameter is accepted"


def frozen_parameters(probe: MethodProbe) -> str | None:
    """Catches an optimiser over everything, and ``requires_grad`` switched on again: here the first half is frozen."""
    names = [name for name, _ in probe.original.named_parameters()]
    frozen = names[: len(names) // 2]
    if probe.refusal(frozen) is not None:
        return None  # what is left is too little for it, as `refuses` would find
    run = probe.run(freeze=frozen)
    moved = differing({name: probe.original.get_parameter(name) for name in frozen}, run.tensors)
    return _sentence("frozen parameters moved:", moved) or probe.worse(run)


def one_sample(probe: MethodProbe) -> str | None:
    """Catches what a single sample breaks: a variance over one number, a batch of one under BatchNorm."""
    return _few(probe, 1)


def small_forget_set(probe: MethodProbe) -> str | None:
    """Catches partial batches that are skipped: of a forget set smaller than a batch nothing would be forgotten."""
    return _few(probe, 3)


def _few(probe: MethodProbe, size: int) -> str | None:
    run, other = probe.run(range(size)), probe.run(range(size, 2 * size))
    if not differing(run.tensors, other.tensors) and probe.reads_forget_set:
        return f"a forget set of {size} is ignored: other samples give the same weights"
    return probe.worse(run)


def missing_class(probe: MethodProbe) -> str | None:
    """Catches the assumption that all classes are in the forget set: here it has the first five of ten."""
    return _forgetting(probe, of_classes(0, 1, 2, 3, 4)[: len(FORGET)])


def whole_class(probe: MethodProbe) -> str | None:
    """Catches the assumption that all classes are in the retain set: here one is forgotten as a whole.

    Another was by an earlier request: the validation and test set alone still have it.
    """
    return _forgetting(probe, of_classes(3), removed=of_classes(7))


def _forgetting(probe: MethodProbe, forget: Sequence[int], removed: Sequence[int] = ()) -> str | None:
    return probe.worse(probe.run(forget, [i for i in TRAIN if i not in (*forget, *removed)]))


def forget_loss_rises(probe: MethodProbe) -> str | None:
    """Catches an ascent that does not ascend: a sign flipped to no effect, or twice.

    Steps that are too long, dropout and running statistics make it rise a little as well, and ascent makes it explode:
    it has to be five times what it was.
    """
    images, labels = subset(FORGET).tensors

    def loss(model: nn.Module) -> float:
        with evaluating(model):
            return nn.functional.cross_entropy(model(images), labels).item()

    before, after = loss(probe.original), loss(probe.run_as_promised("forget_loss_rises").returned)
    return None if after > 5 * before else f"the mean loss on the forget set went from {before:.3g} to {after:.3g}"


def masked(probe: MethodProbe) -> str | None:
    """Catches what moves outside a mask: by weight decay, by momentum, in running statistics.

    The promise has the ``share`` of the weights that may move, over all tensors together.

    Raises:
        UnlearnError: it has none.
    """
    share = probe.promised("masked").get("share")
    if share is None:
        raise UnlearnError("the property 'masked' needs a share: promises={'masked': {'share': 0.1}}")
    run = probe.run_as_promised("masked")
    weights = dict(probe.original.named_parameters())
    changed = sum(int((run.tensors[name] != weight).sum()) for name, weight in weights.items())
    total = sum(weight.numel() for weight in weights.values())
    if changed > round(share * total):
        return f"{changed} of {total} weights moved, more than a share of {share:g}"
    moved = differing(dict(probe.original.named_buffers()), run.tensors)
    return _sentence("buffers are under no mask, and moved:", moved)


def batch_invariant(probe: MethodProbe) -> str | None:
    """Catches the square of a batch's mean gradient instead of a mean of squares: neither order nor batches may matter.

    Outputs are compared, to a hundredth of what the method changes: a weight that no output depends on is dampened by
    the ratio of two rounding errors.
    """
    reference = probe.outputs(probe.run_as_promised("batch_invariant").returned)
    params = probe.promised("batch_invariant")
    others = {"in another order": probe.run(FORGET[::-1], RETAIN[1::2] + RETAIN[::2], params=params)}
    if probe.recipe is not None:
        others["in batches of 3"] = probe.run(params=params, batches_of=3)
    effect = (reference - probe.outputs(probe.original)).abs().max()
    for how, other in others.items():
        apart = (probe.outputs(other.returned) - reference).abs().max()
        if apart > 0.01 * effect:
            return f"the samples {how} give outputs that differ by {apart / effect:.1%} of the method's effect"
    return None


def _sentence(what: str, names: Sequence[str]) -> str | None:
    if not names:
        return None
    return f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def refuses(probe: MethodProbe) -> str | None:
    """Catches a method that says it does nothing for a model and runs all the same: the run has to end by its sentence.

    In the place of all other properties, where `Method.unsuited` has a reason, and where the method needs what a
    version keeps of its training (`Method.needs`), which the models here do not have.
    """
    reason = probe.refusal()
    try:
        probe.run()
    except UnlearnError as error:
        known = reason is None or str(error) == reason
        return None if known else f"the refusal is {str(error)!r}, and announced was {reason!r}"
    return f"it runs, although it refuses the model: {reason}" if reason else "it runs without what it needs"


Property = Callable[[MethodProbe], str | None]
"""What is wrong with a method on a model, or None."""


def _table(*properties: Property) -> Mapping[str, Property]:
    return {prop.__name__: prop for prop in properties}


GENERAL = _table(
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
PROMISED = _table(forget_loss_rises, masked, batch_invariant)
PROPERTIES: Mapping[str, Property] = {**GENERAL, **PROMISED}
"""Every property by its name; the last three are for methods that promise them."""
