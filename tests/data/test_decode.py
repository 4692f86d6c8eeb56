"""JPEGs through torchvision's decoder: as Pillow has them, whatever they are."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mlflow_unlearn.data._decode import decode, decode_pixels
from mlflow_unlearn.data.source import ImageStore
from mlflow_unlearn.data.transforms import build_transform
from mlflow_unlearn.errors import UnlearnError


def picture(width=90, height=70):
    coarse = np.random.default_rng(1).integers(0, 255, (8, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, which neither decoder does
    return encoded(picture(), exif=exif)


FILES = {
    "rgb": encoded(picture()),
    "progressive": encoded(picture(), progressive=True, quality=60),
    "no subsampling": encoded(picture(), subsampling=0),
    "odd size": encoded(picture(33, 17)),
    "grey": encoded(picture().convert("L")),
    "cmyk": encoded(picture().convert("CMYK")),
    "exif": turned(),
    "png": encoded(picture(), "PNG"),
    "16 bits": encoded(Image.fromarray(np.arange(6300, dtype=np.uint16).reshape(70, 90) * 10), "PNG"),
    "palette": encoded(picture().convert("P"), "GIF"),
    "two pictures": encoded(picture(), "MPO", save_all=True, append_images=[picture()]),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_a_file_is_what_pillow_makes_of_it(name, channels):
    transform = build_transform("none", channels=channels)
    expected, made = transform(decode(FILES[name])), transform(decode_pixels(FILES[name]))
    assert made.shape == expected.shape and made.dtype == torch.float32 and made.is_contiguous()
    # Two builds of libjpeg-turbo may round differently.
    assert (made - expected).abs().max() <= 2 / 255


@pytest.mark.parametrize("name", FILES)
def test_resizing_a_tensor_is_within_a_level_of_resizing_with_pillow(name):
    transform = build_transform("imagenet", channels=3)
    difference = (
        transform.pixels(decode(FILES[name])).int() - transform.pixels(decode_pixels(FILES[name])).int()
    ).abs()
    assert difference.max() <= 2 and difference.float().mean() < 0.1


def test_only_plain_jpegs_go_to_torchvision():
    by_torchvision = {name for name, data in FILES.items() if isinstance(decode_pixels(data), torch.Tensor)}
    assert by_torchvision == {"rgb", "progressive", "no subsampling", "odd size", "grey", "exif"}


@pytest.mark.parametrize("name", ["rgb", "progressive", "grey", "exif"])
def test_what_is_truncated_is_refused_as_pillow_refuses_it(name):
    whole = FILES[name]
    refused = 0
    for end in (0, 1, 20, 200, len(whole) // 2, len(whole) - 100, len(whole) - 2, len(whole) - 1):
        images = ImageStore(lambda _, end=end: whole[:end], ["cut.jpg"])
        try:
            expected = images[0]
        except UnlearnError as error:
            refused += 1
            with pytest.raises(UnlearnError, match="^can't decode the image 'cut.jpg'") as caught:
                images.pixels(0)
            assert str(caught.value) == str(error) and "\n" not in str(error)
        else:  # a grey image may lack its end marker
            assert np.array_equal(np.asarray(images.pixels(0)), np.asarray(expected))
    assert refused >= 6


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnlearnError, match="bomb.jpg.*exceeds limit of 2000 pixels"):
        ImageStore(lambda _: FILES["rgb"], ["bomb.jpg"]).pixels(0)
