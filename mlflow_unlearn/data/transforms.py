"""From a PIL image to the tensor that a model takes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mlflow_unlearn.data.functions import import_function
from mlflow_unlearn.errors import UnlearnError, did_you_mean
from mlflow_unlearn.spelling import spelled

Transform = Callable[[Image.Image], Tensor]
TransformStep = Callable[[Any], Any]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images, as torchvision's models use
_KNOWN = ("none", "imagenet", "timm", "python:module:function")


def _torchvision() -> Any:
    """Its transforms: a command that ends in a look-up does not wait for them."""
    from torchvision.transforms import v2  # takes a second to import

    return v2


class PixelTransform:
    """A transform in two steps, ``pixels`` and ``scale``: what is between them is a quarter of the size and is kept.

    Attributes:
        channels: as for ``build_transform``.
        crop: changes the geometry; takes PIL images and tensors.
        normalise: of float images in [0, 1]; may change them in place.
    """

    def __init__(
        self, channels: int | None, crop: TransformStep | None = None, normalise: TransformStep | None = None
    ) -> None:
        """Put the steps together; without any, images are only scaled to [0, 1]."""
        _torchvision()  # before processes are forked that read images
        self.channels, self.crop, self.normalise = channels, crop, normalise

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Both steps: a float32 tensor ``[C, H, W]``."""
        return self.scale(self.pixels(image))

    def pixels(self, image: Image.Image | Tensor) -> Tensor:
        """The pixels ``[C, H, W]`` (uint8) that the model sees, of a PIL image or a decoded ``[1 or 3, H, W]``."""
        if isinstance(image, Tensor) and image.shape[0] == 1 and self.channels == 3:
            image = image.expand(3, -1, -1)
        elif isinstance(image, Tensor) and image.shape[0] == 3 and self.channels == 1:
            image = _torchvision().functional.to_pil_image(image)
        if isinstance(image, Image.Image):
            image = to_channels(image, self.channels)
        if self.crop is not None:
            image = self.crop(image)
        pixels: Tensor = image if isinstance(image, Tensor) else _torchvision().functional.pil_to_tensor(image)
        # Decoders interleave the channels: so would batches, and convolutions would round differently.
        return pixels.contiguous()

    def scale(self, pixels: Tensor) -> Tensor:
        """Floats of pixels ``[…, C, H, W]``, bit by bit the same for one image and for a batch."""
        scaled: Tensor = _torchvision().functional.to_dtype(pixels, torch.float32, scale=True)
        return scaled if self.normalise is None else self.normalise(scaled)


def build_transform(spec: str, *, channels: int | None, model: nn.Module | None = None) -> Transform:
    """The deterministic transform behind a spec.

    Args:
        spec: ``none`` (float32 in [0, 1], nothing else), ``imagenet`` (resize 256, crop 224, ImageNet's mean and
            deviation), ``timm`` (the timm model's own configuration) or ``python:module:function`` (the function
            takes the PIL image and returns ``[C, H, W]``).
        channels: 1 or 3: images are turned into grey or RGB first; None keeps 8-bit grey as one channel and turns all
            else into RGB.
        model: the model, for ``timm``.

    Raises:
        UnlearnError: unknown spec, channels that the transform can't make, or ``timm`` without a timm model.
    """
    if channels not in (None, 1, 3):
        raise UnlearnError(f"the model takes {channels} channels: images have 1 or 3")
    if spec == "none":
        return PixelTransform(channels)
    if spec == "imagenet":
        v2 = _torchvision()
        crop = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
        return PixelTransform(_fixed(spec, 3, channels), crop, v2.Normalize(_MEAN, _STD, inplace=True))
    steps: list[Any]
    if spec == "timm":
        config = _timm_config(model)
        channels = _fixed(spec, config["input_size"][0], channels)
        from timm.data import create_transform  # takes seconds to import

        steps = [create_transform(**config, is_training=False)]
    elif spec.startswith("python:"):
        steps = [import_function(spec.removeprefix("python:"))]
    else:
        raise UnlearnError(f"unknown transform {spec!r}: {did_you_mean(spec, _KNOWN)}")
    transform: Transform = _torchvision().Compose([partial(to_channels, channels=channels), *steps])
    return transform


def to_channels(image: Image.Image, channels: int | None) -> Image.Image:
    """The image as 8-bit grey (1) or RGB (3); with None, 8-bit grey stays and all else becomes RGB.

    Alpha is dropped, as torchvision's own loader does; 16-bit grey is scaled (Pillow alone would clip it to white).

    Raises:
        UnlearnError: a mode that Pillow can't convert, or floats, whose range is unknown.
    """
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        image = Image.fromarray(np.rint(np.clip(np.asarray(image, np.float64), 0, 65535) / 257).astype(np.uint8))
    mode = "L" if channels == 1 or (channels is None and image.mode == "L") else "RGB"
    try:
        if image.mode == "F":
            raise ValueError("floats have no known range")
        grey = image.mode in ("1", "L", "LA")
        # Not every mode goes straight to grey.
        return image.convert(mode) if grey or mode == "RGB" else image.convert("RGB").convert("L")
    except ValueError as error:
        raise UnlearnError(
            f"can't turn an image of mode {image.mode!r} into {mode} ({error}): save it as RGB"
        ) from error


def _fixed(spec: str, makes: int, takes: int | None) -> int:
    if takes not in (None, makes):
        raise UnlearnError(
            f"{spelled('transform', spec)} makes {makes} channels and the model takes {takes}: use "
            f"{spelled('transform', 'none')}"
        )
    return makes


def _timm_config(model: nn.Module | None) -> dict[str, Any]:
    if not getattr(model, "pretrained_cfg", None):
        raise UnlearnError(
            f"{spelled('transform', 'timm')} needs a timm model and got {type(model).__name__}: use "
            f"{spelled('transform', 'imagenet')} or none"
        )
    from timm.data import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(model)
    return config
