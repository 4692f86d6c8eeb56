import pickle

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

from mlflow_unlearn.data.transforms import build_transform, to_channels
from mlflow_unlearn.errors import UnlearnError

COLOUR = Image.new("RGB", (300, 280), (255, 51, 0))


def test_none_scales_to_the_unit_interval_and_nothing_else(scan):
    grey = scan(3, 0)
    image = build_transform("none", channels=None)(grey)
    assert type(image) is torch.Tensor and image.dtype == torch.float32
    assert torch.allclose(image, torch.from_numpy(np.array(grey)).float()[None] / 255)
    assert build_transform("none", channels=None)(COLOUR)[:, 0, 0].tolist() == pytest.approx([1, 0.2, 0])
    assert build_transform("none", channels=3)(grey).shape == (3, 16, 16)
    assert build_transform("none", channels=1)(COLOUR).shape == (1, 280, 300)


@pytest.mark.parametrize("channels", [None, 3])
def test_imagenet_is_what_torchvisions_weights_use(scan, channels):
    reference = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    image = scan(5, 1).resize((400, 300)).convert("RGB")
    made = build_transform("imagenet", channels=channels)(image)
    assert torch.allclose(made, reference(image), atol=1e-6)
    # deviation is normalised: (1 − 0.485) / 0.229 for a red of 1
    assert build_transform("imagenet", channels=channels)(COLOUR)[0, 0, 0] == pytest.approx(0.515 / 0.229)


def test_timm_follows_the_models_configuration(scan):
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    made = build_transform("timm", channels=3, model=model)(COLOUR)
    # this model's mean and deviation are 0.5: 1 → 1, 0.2 → −0.6, 0 → −1
    assert made.shape == (3, 224, 224) and made[:, 0, 0].tolist() == pytest.approx([1, -0.6, -1], abs=1e-6)
    assert build_transform("timm", channels=None, model=model)(scan(1, 0)).shape == (3, 224, 224)


def halved(image):
    return torch.full((1, 2, 2), np.asarray(image).mean() / 2)


def test_python_function_is_the_transform_and_gets_the_converted_image(tmp_path):
    code = "import torch\ndef mode(image): return torch.full((1, 1, 1), float(len(image.mode)))\n"
    (tmp_path / "made_transform.py").write_text(code)
    assert build_transform("python:made_transform:mode", channels=1)(COLOUR).item() == 1
    assert build_transform("python:made_transform:mode", channels=3)(COLOUR).item() == 3


@pytest.mark.parametrize(
    ("spec", "channels", "message"),
    [
        ("imagnet", 3, "unknown transform 'imagnet': did you mean 'imagenet'.*'none', 'imagenet', 'timm', 'python:"),
        ("imagenet", 1, "makes 3 channels and the model takes 1"),
        ("none", 4, "takes 4 channels"),
        ("timm", 3, "needs a timm model and got Linear"),
        ("python:x", 3, "'x' names no function: write package.module:function"),
    ],
)
def test_bad_specs_are_refused(spec, channels, message):
    with pytest.raises(UnlearnError, match=message):
        build_transform(spec, channels=channels, model=torch.nn.Linear(1, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_grey_and_rgb(mode):
    # White stays white and black black in each mode that can be made from RGB.
    grey = Image.fromarray(np.array([[0, 255]] * 2, np.uint8)).convert("RGB")
    image = {"PA": "P", "RGBa": "RGBA"}.get(mode, mode)
    image = grey.convert("P" if mode == "PA" else image).convert(mode)
    for channels, result in ((1, "L"), (3, "RGB"), (None, "L" if mode == "L" else "RGB")):
        made = to_channels(image, channels)
        assert made.mode == result
        assert np.asarray(made.convert("L"))[0].tolist() == [0, 255]


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 257, 25700, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "16.png")
    with Image.open(tmp_path / "16.png") as image:
        assert image.mode.startswith("I")
        assert np.asarray(to_channels(image, 1))[0].tolist() == [0, 1, 100, 255]
        assert np.asarray(to_channels(image, 3))[0, :, 1].tolist() == [0, 1, 100, 255]
    assert np.asarray(to_channels(Image.fromarray(values.astype(np.int32)), 1))[0].tolist() == [0, 1, 100, 255]


def test_transparency_is_dropped_and_palettes_are_looked_up():
    clear = Image.new("RGBA", (1, 1), (10, 20, 30, 0))
    assert to_channels(clear, 3).getpixel((0, 0)) == (10, 20, 30)
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert to_channels(palette, 3).getpixel((0, 0)) == (200, 100, 50)


@pytest.mark.parametrize("mode", ["F", "La"])
def test_modes_without_a_known_range_are_refused(mode):
    with pytest.raises(UnlearnError, match=f"mode '{mode}' into RGB.*save it as RGB"):
        to_channels(Image.new(mode, (2, 2)), 3)


@pytest.mark.parametrize("spec", ["none", "imagenet", "timm"])
def test_transforms_reach_workers(spec):
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False) if spec == "timm" else None
    transform = build_transform(spec, channels=3, model=model)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(COLOUR), transform(COLOUR))
