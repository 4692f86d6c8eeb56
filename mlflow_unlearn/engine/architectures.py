"""Architectures by name, and what is known of a module: its family, its digest, whether it is finite."""

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mlflow_unlearn.data.functions import import_function
from mlflow_unlearn.engine.ensemble import EnsembleSpec, assembled
from mlflow_unlearn.errors import UnlearnError

Family = Literal["cnn", "vit"]

SHORT_NAMES = {
    "resnet18": "torchvision:resnet18",
    "vit_tiny": "timm:vit_tiny_patch16_224",
    "vit_small": "timm:vit_small_patch16_224",
    "vit_base": "timm:vit_base_patch16_224",
}
SMALL_IMAGE = 64


def is_factory(architecture: str) -> bool:
    """Whether it names a function of the user's own: ``package.module:factory``."""
    if (ensemble := EnsembleSpec.parse(architecture)) is not None:
        return is_factory(ensemble.architecture)
    kind, colon, _ = SHORT_NAMES.get(architecture, architecture).partition(":")
    return bool(colon) and kind not in ("torchvision", "timm")


def model_family(model: nn.Module) -> Family:
    """``vit`` where transformer blocks have more parameters than convolutions, else ``cnn``.

    Published settings differ between the two. A transformer block has attention and LayerNorm side by side, and is not
    mostly convolutions itself; those of other modules are all that counts against it, such as a patch embedding. So a
    network of convolutions with some attention in it is a CNN.
    """

    def sizes(modules: Iterable[nn.Module]) -> dict[int, int]:
        return {id(p): p.numel() for module in modules for p in module.parameters()}

    convolved = sizes(m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d))
    blocks: dict[int, int] = {}
    for module in model.modules():
        kinds = [type(child) for child in module.children()]
        normalises = any(issubclass(kind, nn.LayerNorm | nn.RMSNorm) for kind in kinds)
        if normalises and any("attention" in kind.__name__.lower() for kind in kinds):
            own = sizes([module])
            if 2 * sum(own[p] for p in own.keys() & convolved.keys()) < sum(own.values()):
                blocks |= own
    outside = sum(convolved[p] for p in convolved.keys() - blocks.keys())
    return "vit" if sum(blocks.values()) > outside else "cnn"


def build_model(
    architecture: str, num_classes: int, image_shape: tuple[int, int, int], *, small: bool | None = None
) -> nn.Module:
    """A freshly initialised model, a function of its arguments alone, so that a version can record them.

    Args:
        architecture: ``timm:NAME``, ``torchvision:NAME``, ``package.module:factory`` (called without arguments if it
            takes none, else with ``num_classes``), or a short name: resnet18, vit_tiny, vit_small, vit_base; or an
            `EnsembleSpec` of one of these.
        num_classes: K.
        image_shape: ``(C, H, W)``.
        small: whether a ResNet gets the small-image stem (3 × 3, stride 1, no pooling) and a ViT the largest patch of
            16, 8, 4, 2, 1 that divides the side and leaves at least 7 a side; None: for images of up to 64 pixels.

    Raises:
        UnlearnError: the architecture cannot be built, and why.
    """
    if (ensemble := EnsembleSpec.parse(architecture)) is not None:
        build = partial(build_model, ensemble.architecture, num_classes, image_shape, small=small)
        return assembled([build() for _ in range(ensemble.members)], ensemble.prefix)
    check_architecture(architecture)
    kind, _, name = SHORT_NAMES.get(architecture, architecture).partition(":")
    if small is None:
        small = max(image_shape[1:]) <= SMALL_IMAGE
    try:
        if kind == "torchvision":
            return _torchvision(name, num_classes, image_shape[0], small)
        if kind == "timm":
            return _timm(name, num_classes, image_shape, small)
        return _factory(kind, name, num_classes)
    except UnlearnError:
        raise
    except Exception as error:  # Third-party constructors raise anything.
        raise UnlearnError(
            f"architecture {architecture!r} cannot be built for {num_classes} classes and images {list(image_shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def check_architecture(architecture: str) -> None:
    """Refuse a name that nothing has, before the images are read that a model of it is built for.

    Raises:
        UnlearnError: there is none of this name.
    """
    if (ensemble := EnsembleSpec.parse(architecture)) is not None:
        architecture = ensemble.architecture
    kind, _, name = SHORT_NAMES.get(architecture, architecture).partition(":")
    if not name:
        raise UnlearnError(
            f"unknown architecture {architecture!r}: {_nearest(architecture, SHORT_NAMES)}use timm:NAME, "
            f"torchvision:NAME, package.module:factory or one of {', '.join(SHORT_NAMES)}"
        )
    if kind == "torchvision":
        from torchvision import models

        if name not in (names := models.list_models(module=models)):
            raise UnlearnError(
                f"torchvision has no classifier {name!r}: {_nearest(name, names)}see torchvision.models.list_models()"
            )
    elif kind == "timm":
        import timm

        if not timm.is_model(name):
            raise UnlearnError(
                f"timm has no model {name!r}: {_nearest(name, timm.list_models())}see timm.list_models()"
            )


def check_parameters(model: nn.Module, name: str) -> None:
    """Refuse a module that cannot have learned anything.

    Raises:
        UnlearnError: it has no parameters, or some without values.
    """
    parameters = list(model.parameters())
    if not parameters:
        raise UnlearnError(f"{name} has no parameters, so it learns nothing: choose another version or architecture")
    if any(isinstance(p, nn.parameter.UninitializedParameter) or p.is_meta for p in parameters):
        raise UnlearnError(f"{name} has parameters without values: run it on an image, or give lazy layers their sizes")


def reinitialised_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with fresh random weights and statistics, by each module's own initialisation.

    Parameters of a module that has none (class tokens, position embeddings, scales of a module of one's own) are drawn
    from N(0, 0.02²), the usual choice for tokens and embeddings; so is every weight that no module could reset.
    """
    reinitialised = copy.deepcopy(model)
    # Children first: what a module sets in its children (such as a bias of zero) must last.
    for module in reversed(list(reinitialised.modules())):
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()
        else:
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.02)
    for parameter, old in zip(reinitialised.parameters(), model.parameters(), strict=True):
        # Equal constants are how a scale or a bias starts; anything else was out of its module's reach.
        if torch.equal(parameter, old) and parameter.min() != parameter.max():
            nn.init.normal_(parameter, std=0.02)
    return reinitialised


def builder_like(
    model: nn.Module, architecture: str | None, num_classes: int, image_shape: tuple[int, int, int]
) -> Callable[[], nn.Module]:
    """A function that builds randomly initialised models like ``model``.

    Args:
        model: the pattern.
        architecture: as `build_model` takes it; None, or one that builds other shapes, leaves `reinitialised_copy`.
        num_classes: K.
        image_shape: ``(C, H, W)``.
    """
    if architecture is not None:
        wanted = {name: value.shape for name, value in model.state_dict().items()}
        for small in (None, False, True):
            build = partial(build_model, architecture, num_classes, image_shape, small=small)
            if {name: value.shape for name, value in build().state_dict().items()} == wanted:
                return build
    return partial(reinitialised_copy, model)


def _torchvision(name: str, num_classes: int, channels: int, small: bool) -> nn.Module:
    from torchvision import models

    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    if isinstance(model, models.ResNet):
        if small:
            _use_small_stem(model, channels)
        elif channels != 3:
            model.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    elif channels != 3:
        raise UnlearnError(f"torchvision:{name} takes 3 channels, the images have {channels}: use a timm architecture")
    return model


def _timm(name: str, num_classes: int, image_shape: tuple[int, int, int], small: bool) -> nn.Module:
    import timm

    channels, height, width = image_shape
    extra: dict[str, Any] = {}
    if name.startswith(("vit_", "deit")):
        extra["img_size"] = (height, width)
        if small:
            fitting = (p for p in (16, 8, 4, 2) if height % p == width % p == 0 and min(height, width) // p >= 7)
            extra["patch_size"] = next(fitting, 1)
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels, **extra)
    if small and isinstance(model, timm.models.ResNet):
        _use_small_stem(model, channels)
    return model


def _use_small_stem(resnet: Any, channels: int) -> None:
    conv = nn.Conv2d(channels, resnet.bn1.num_features, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    resnet.conv1, resnet.maxpool = conv, nn.Identity()


def _factory(module: str, name: str, num_classes: int) -> nn.Module:
    factory = import_function(f"{module}:{name}")
    takes_classes = "num_classes" in inspect.signature(factory).parameters
    model = factory(num_classes=num_classes) if takes_classes else factory()
    if not isinstance(model, nn.Module):
        raise UnlearnError(f"{module}:{name} returns a {type(model).__name__}, not a torch.nn.Module")
    check_parameters(model, f"the module that {module}:{name} returns")
    return model


def _nearest(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def load_weights(model: nn.Module, state: Mapping[str, Tensor], architecture: str) -> None:
    """Load a state dict into ``model``, whose tensors must have the same names and shapes.

    Raises:
        UnlearnError: they do not; the message names the first four mismatches.
    """
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in own]
    problems += [
        f"{name} is {list(state[name].shape)} and should be {list(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UnlearnError(
            f"the weights do not fit architecture {architecture!r}: {'; '.join(problems[:4])}{more}: "
            "give the architecture that the version was trained with"
        )
    model.load_state_dict(dict(state))


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of the state dict, in order of name."""
    return state_digest(model.state_dict())


def state_digest(state: Mapping[str, Tensor]) -> str:
    """`weights_digest` of a state dict with tensors of any shape."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def non_finite_tensor(model: nn.Module) -> str | None:
    """The first floating-point tensor of the state dict that holds NaN or infinity, by name."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            return name
    return None
