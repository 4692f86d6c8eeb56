"""From the bytes of an image file to its pixels."""

import io
from contextlib import suppress

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor


def decode(data: bytes) -> Image.Image:
    """The image, decoded by Pillow."""
    with _opened(data) as image:
        image.load()
        return image


def decode_pixels(data: bytes) -> Image.Image | Tensor:
    """The pixels ``[C, H, W]`` (uint8) of a grey or RGB JPEG, decoded by torchvision; all else is left to Pillow.

    Both use libjpeg-turbo and gave the same pixels wherever we looked, but resizing a tensor takes half the time.
    Pillow reads the header: it recognises what is not a plain JPEG, and refuses decompression bombs.
    """
    from torchvision.io import decode_jpeg  # takes a second to import, the first time

    with _opened(data) as image:
        if image.format == "JPEG" and image.mode in ("L", "RGB"):
            with suppress(RuntimeError):  # Pillow has the last word on what is broken.
                pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
                return pixels
        image.load()
        return image


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:  # whose text names the buffer
        raise ValueError("not an image format that Pillow knows" if data else "the file is empty") from error
