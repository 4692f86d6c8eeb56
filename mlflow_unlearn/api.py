"""`unlearn` and `evaluate`: the Python entry points."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.engine.architectures import model_family
from mlflow_unlearn.engine.frozen_prefix import resolve
from mlflow_unlearn.engine.hardware import Hardware, Precision, resolve_hardware
from mlflow_unlearn.engine.loop import Epoch, Outcome, RunOptions, run
from mlflow_unlearn.engine.predictions import attack_target, evaluate_splits
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.errors import UnlearnError, UnlearnWarning
from mlflow_unlearn.evidence.audit import decide, recorded
from mlflow_unlearn.methods import BUILTIN, get_method
from mlflow_unlearn.methods.exact import retrain_shards
from mlflow_unlearn.metrics.attacks.detection import Detection
from mlflow_unlearn.metrics.attacks.share import Share
from mlflow_unlearn.metrics.attacks.suite import attack_with_controls, share_between
from mlflow_unlearn.metrics.suite import Metrics, compute_metrics
from mlflow_unlearn.rng import checked_seed


@dataclass(frozen=True)
class Result(Outcome):
    """The outcome of `unlearn`.

    Attributes:
        model: a new module in eval mode, on the input's device.
        history: one mapping per epoch; for LoTUS ``epoch``, ``acc_forget``, ``acc_val`` (the constant ``A_u``),
            ``delta``, ``temperature`` (all before the epoch's pass), ``loss``, ``seconds``.
        final: ``acc_forget``, ``acc_val`` and ``delta`` of the returned model.
        warnings: sentences about what did not stop the method and may spoil its result.
        seconds: wall-clock time of the whole call.
        trained: samples that went through the model for a gradient, each as often as it did.
        params: the hyperparameters used, defaults included.
    """

    params: Mapping[str, Any]


@dataclass(frozen=True)
class AuditResult:
    """The outcome of `audit`.

    Attributes:
        attacks: by model (``audited``, ``original``, and of two golds on ``gold 1``, …), then by attack.
        not_measured: attacks that the models at hand do not allow, and why.
        share_remembered: 1 where nothing was done, 0 for retraining; or why it cannot be measured.
        decision: "told apart", "not told apart" or "not decided".
        why: in a sentence.
    """

    attacks: Mapping[str, Mapping[str, Detection]]
    not_measured: Mapping[str, str]
    share_remembered: Share | str
    decision: str
    why: str


def unlearn(
    model: nn.Module,
    splits: Splits,
    method: str = "lotus",
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
    *,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
    num_workers: int | None = 0,
    compile: bool = False,
    progress: bool = False,
    cache_teacher: bool | None = None,
    teacher: Teacher | None = None,
    prefix: str = "none",
    fresh: Callable[[], nn.Module] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Result:
    """Make a copy of ``model`` forget ``splits.forget``.

    The input model, its mode and ``requires_grad`` flags, the global random states and the grad mode are untouched.
    Same seed, same machine, same versions: bit-identical weights. If the method's rule stops before the first pass,
    the result is an unchanged copy with an empty history.

    Args:
        model: an image classifier, images ``[N, C, H, W]`` to logits ``[N, K]``.
        splits: the four sets.
        method: a registered name.
        params: hyperparameters; what is missing takes the published setting of the model's family (CNN or ViT).
        seed: of everything random, in ``[0, 2⁶⁴)``.
        device: "cpu", "cuda", …; None takes CUDA where there is one.
        precision: "fp32", "tf32", "bf16", or "auto" (the fastest in a few timed steps).
        num_workers: data-loading processes; None: by data and machine.
        compile: compile the model for its training passes (`torch.compile`): a minute or so, which pays in long runs.
        progress: bars on standard error, if that is a terminal.
        cache_teacher: whether the teacher's logits are computed once; None decides by watching the inputs.
        teacher: shared by several calls on the same model, splits and seed, so that they compute its logits once; one
            that was made for another model or other splits is refused.
        prefix: name of the first module that is trained, such as "layer4": the layers before it stay frozen and run
            once; "auto" chooses it, or none, by `mlflow_unlearn.engine.frozen_prefix.resolve`,
            "none" trains all. Unused beside a ``teacher``, which brings its own.
        fresh: builds a randomly initialised model of the same architecture, for ``retrain``; without it each module's
            own ``reset_parameters`` makes one of a copy.
        on_epoch: called with each epoch's mapping as it is recorded.

    Raises:
        UnlearnError: bad input, in one sentence.
    """
    start = time.perf_counter()
    if not isinstance(model, nn.Module):
        raise UnlearnError(f"the model is a {type(model).__name__}, not a torch.nn.Module")
    if next(model.parameters(), None) is None:
        raise UnlearnError("the model has no parameters: there is nothing to unlearn")
    hardware = resolve_hardware(
        model,
        splits.retain,
        device=device,
        precision=precision,
        num_workers=num_workers,
        compile=compile,
        progress=progress,
    )
    options = RunOptions(
        seed=seed,
        teacher=teacher,
        cache_teacher=cache_teacher,
        prefix=resolve(model, prefix, vars(splits)) if teacher is None else None,
        model_factory=fresh,
        on_epoch=on_epoch,
    )
    result = unlearn_on(hardware, model, splits, method, params, options)
    for sentence in result.warnings:
        warnings.warn(sentence, UnlearnWarning, stacklevel=2)
    return replace(result, seconds=time.perf_counter() - start)


def unlearn_on(
    hardware: Hardware,
    model: nn.Module,
    splits: Splits,
    method: str,
    params: Mapping[str, Any] | None,
    options: RunOptions,
) -> Result:
    """`unlearn` where device, precision and layout are decided; what the method warns of is in the result alone.

    Args:
        hardware: device, precision and layout.
        model: an image classifier, images ``[N, C, H, W]`` to logits ``[N, K]``.
        splits: the four sets.
        method: a registered name.
        params: hyperparameters; what is missing takes the published setting of the model's family.
        options: seed, teacher, callbacks.

    Raises:
        UnlearnError: bad input, in one sentence.
    """
    start = time.perf_counter()
    recipe = get_method(method)(params, family=model_family(model))
    options = replace(options, seed=checked_seed(options.seed))
    if options.teacher is not None:
        options.teacher.check(model, vars(splits))
    if options.sharded is not None and recipe.by_shards:
        outcome = retrain_shards(model, options.sharded, splits.retain, recipe, hardware, options)
    else:
        outcome = run(model, recipe, vars(splits), hardware, options)
    # What a plugin's method does besides is not known here, and so nothing is claimed of it.
    exactness = outcome.exactness if method in BUILTIN else None
    seconds = time.perf_counter() - start
    params = recipe.params.model_dump()
    return Result(**{**vars(outcome), "seconds": seconds, "params": params, "exactness": exactness})


def evaluate(
    model: nn.Module,
    splits: Splits,
    original: nn.Module | None = None,
    gold: nn.Module | None = None,
    seed: int = 0,
    *,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
    num_workers: int | None = 0,
    progress: bool = False,
) -> Metrics:
    """Every metric of ``model`` that its references allow; see ``docs/metrics.md``.

    Args:
        model: to be measured; left exactly as it was found, as are the others.
        splits: the four sets.
        original: the model before unlearning; ``rf_jsd`` needs it.
        gold: retrained without the forget set; ``jsd`` and ``avg_gap`` need it.
        seed: of the bootstrap and of the folds of the attack.
        device: "cpu", "cuda", …; None takes CUDA where there is one.
        precision: "fp32", "tf32", "bf16" or "auto".
        num_workers: data-loading processes; None: by data and machine.
        progress: bars on standard error, if that is a terminal.

    Returns:
        A mapping of metric key to float; ``.missing`` has the reason for each key that was not computed, and
        ``.collapsed`` is one where the model has collapsed, so that only its accuracies are there.

    Raises:
        UnlearnError: outputs that are not finite logits ``[N, K]``, or not of one K; labels ≥ K.
    """
    checked_seed(seed)
    hardware = resolve_hardware(
        model, splits.test, device=device, precision=precision, num_workers=num_workers, progress=progress
    )
    outputs = evaluate_splits(model, splits, hardware)
    gold_outputs = original_test = None
    if gold is not None:
        gold_outputs = outputs if gold is model else evaluate_splits(gold, splits, hardware, name="gold")
    if original is model:
        original_test = outputs["test"]
    elif original is not None:
        original_test = evaluate_splits(original, splits, hardware, only=("test",), name="original")["test"]
    return compute_metrics(outputs, original_test=original_test, gold=gold_outputs, seed=seed)


def audit(
    model: nn.Module,
    splits: Splits,
    original: nn.Module,
    golds: Sequence[nn.Module] = (),
    seed: int = 0,
    *,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
    num_workers: int | None = 0,
    progress: bool = False,
) -> AuditResult:
    """Attack ``model`` as strongly as ``golds`` allow, with a control for each attack; see ``docs/audit.md``.

    Args:
        model: to be attacked; left exactly as it was found, as are the others.
        splits: the four sets; of these, the forget set and the test set, which no model has seen, are read.
        original: the model before unlearning, which the attacks must tell apart.
        golds: retrained without the forget set: with one, attacks are calibrated by sample; from two on, each is held
            back in turn, and must not be told apart.
        seed: of halves, folds, permutations and the bootstrap.
        device: "cpu", "cuda", …; None takes CUDA where there is one.
        precision: "fp32", "tf32", "bf16" or "auto".
        num_workers: data-loading processes; None: by data and machine.
        progress: bars on standard error, if that is a terminal.

    Raises:
        UnlearnError: outputs that are not finite logits ``[N, K]``, or not of one K; labels ≥ K.
    """
    checked_seed(seed)
    hardware = resolve_hardware(
        model, splits.test, device=device, precision=precision, num_workers=num_workers, progress=progress
    )
    audited = attack_target(model, splits, hardware)
    before = audited if original is model else attack_target(original, splits, hardware, name="original")
    retrained = [attack_target(gold, splits, hardware, name="gold") for gold in golds]
    found, missing = attack_with_controls(audited, before, retrained, None, seed=seed)
    decision, why = decide({name: recorded(detections) for name, detections in found.items()})
    return AuditResult(found, missing, share_between(audited, before, retrained, seed=seed), decision, why)
