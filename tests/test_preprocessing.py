"""Preprocessing equals that of transformers' PIL processor, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pil_processor import META, PilProcessor

from fiftyone_hiera.hiera.encoder import Normalization
from fiftyone_hiera.images.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    for_image_size,
)

_SIZES = [
    (640, 480),
    (480, 640),
    (256, 256),
    (641, 479),
    (333, 257),
    (257, 333),
    (225, 1001),
    (1001, 225),
    (31, 37),
    (1, 1),
    (2, 300),
    (1920, 1080),
]


def _noise(size: tuple[int, int], seed: int = 51) -> Image.Image:
    width, height = size
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))


def _normalize(pixels: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    preprocessing = Preprocessing((256, 256), (224, 224), mean=mean, std=std)
    return Normalization(preprocessing, torch.device("cpu"))(pixels.unsqueeze(0))


@pytest.mark.parametrize("size", _SIZES, ids=str)
def test_equals_transformers(size: tuple[int, int]) -> None:
    image = _noise(size)
    processor = PilProcessor(**META)
    # Some releases cannot infer the channel axis of a 1x1 px image
    options = {"return_tensors": "pt", "input_data_format": "channels_last"}
    expected = processor(image, **options).pixel_values
    pixels = for_image_size((224, 224))(image)
    assert pixels.dtype == torch.uint8
    assert torch.equal(_normalize(pixels, IMAGENET_MEAN, IMAGENET_STD), expected)


@pytest.mark.parametrize("size", [(300, 1), (1, 300), (2001, 7), (7, 2001)], ids=str)
@pytest.mark.parametrize("resample", [2, 3])
def test_elongated_images_differ_by_one_gray_level(
    size: tuple[int, int], resample: int
) -> None:
    image = _noise(size)
    processor = PilProcessor(**{**META, "resample": resample, "do_normalize": False})
    options = {"return_tensors": "pt", "input_data_format": "channels_last"}
    expected = processor(image, **options).pixel_values[0] * 255
    pixels = Preprocessing((256, 256), (224, 224), resample)(image)
    difference = (pixels - expected).abs()
    assert difference.max() < 1.01
    assert (difference > 0.5).float().mean() < 0.001


def test_every_value_is_normalized_exactly() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    steps = {"do_resize": False, "do_center_crop": False, "do_convert_rgb": False}
    processor = PilProcessor(**{**META, **steps})
    expected = processor(values.numpy(), return_tensors="pt").pixel_values
    assert torch.equal(_normalize(values, IMAGENET_MEAN, IMAGENET_STD), expected)


def test_normalization_is_undone_exactly() -> None:
    preprocessing = Preprocessing((256, 256), (224, 224))
    values = torch.arange(256, dtype=torch.uint8).expand(2, 3, 1, -1)
    normalize = Normalization(preprocessing, torch.device("cpu"))
    assert torch.equal(normalize.undo(normalize(values)), values)


def test_normalization_does_not_modify_its_input() -> None:
    pixels = torch.full((1, 3, 2, 2), 9, dtype=torch.uint8)
    _normalize(pixels[0], IMAGENET_MEAN, IMAGENET_STD)
    assert (pixels == 9).all()


@pytest.mark.parametrize(
    ("image_size", "resize_size"),
    [((224, 224), (256, 256)), ((64, 64), (73, 73)), ((448, 224), (512, 256))],
)
def test_for_image_size(image_size: tuple[int, int], resize_size: tuple[int, int]) -> None:
    preprocessing = for_image_size(image_size)
    assert preprocessing == Preprocessing(resize_size, image_size)
    assert preprocessing == for_image_size((224, 224)).at(image_size)
    for size in ((99, 77), (77, 99), (500, 20)):
        assert preprocessing(_noise(size)).shape == (3, *image_size)


@pytest.mark.parametrize("image_size", [(448, 224), (96, 320), (224, 224)], ids=str)
def test_margin_of_the_crop(image_size: tuple[int, int]) -> None:
    height, width = image_size
    preprocessing = for_image_size(image_size)
    for scale in (1, 3):
        left, top, right, bottom = preprocessing.crop_box((scale * width, scale * height))
        assert (right - left) / (scale * width) == pytest.approx(7 / 8, abs=0.01)
        assert (bottom - top) / (scale * height) == pytest.approx(7 / 8, abs=0.01)

    # Images of another aspect ratio have the same margin along one side
    left, top, right, bottom = preprocessing.crop_box((300, 300))
    inside = max((right - left) / 300, (bottom - top) / 300)
    assert inside == pytest.approx(7 / 8, abs=0.01)
