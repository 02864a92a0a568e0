"""JPEGs are decoded to the same pixels as by Pillow, or faster to similar ones."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fiftyone_hiera
from fiftyone_hiera.images.decoding import read_image, to_rgb
from fiftyone_hiera.images.preprocessing import Preprocessing, for_image_size

_EXACT = for_image_size((224, 224))
_FAST = Preprocessing((256, 256), (224, 224), is_fast=True)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("flower.jpg"))


def _save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def _enlarge(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    return photo.resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(640, 427), (333, 251), (17, 9), (1, 1)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2, "quality": 30},
        {"progressive": True, "quality": 95},
        {"optimize": True, "restart_marker_blocks": 3},
        {"keep_rgb": True, "subsampling": 0},
    ],
    ids=str,
)
def test_pixels_equal_pillow(
    photo: Image.Image, tmp_path: Path, mode: str, size: tuple[int, int], options: Any
) -> None:
    if mode != "RGB" and "keep_rgb" in options:
        pytest.skip("keep_rgb needs RGB")

    cropped = photo.convert(mode).crop((0, 0, *size))
    path = _save(cropped, tmp_path / "photo.jpg", **options)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))

    assert np.array_equal(np.asarray(read_image(path)), expected)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(to_rgb(image)), expected)


def test_draft_mode_of_pillow_is_kept(photo: Image.Image) -> None:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG")
    drafted, expected = Image.open(buffer), Image.open(buffer)
    for image in (drafted, expected):
        image.draft("RGB", (160, 107))

    assert np.array_equal(np.asarray(to_rgb(drafted)), np.asarray(expected))
    assert expected.width < photo.width


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4000, 3000), (1000, 750)),
        ((3000, 4000), (750, 1000)),
        ((1600, 1200), (800, 600)),
        ((1500, 1023), (1500, 1023)),
        ((640, 480), (640, 480)),
        ((64, 64), (64, 64)),
        ((3000, 100), (3000, 100)),
    ],
    ids=str,
)
def test_fast_decoding_reduces_the_size(
    photo: Image.Image, tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    path = _save(_enlarge(photo, size), tmp_path / "photo.jpg")
    assert read_image(path).size == size
    assert _EXACT.to_sized_rgb(path)[0].size == size
    assert _FAST.to_sized_rgb(path)[0].size == expected


@pytest.mark.parametrize(
    ("size", "suffix", "largest", "mean"),
    [
        ((640, 480), "jpg", 1, 0.02),
        ((480, 640), "png", 1, 0.02),
        ((1001, 667), "jpg", 1, 0.02),
        ((1632, 1224), "jpg", 40, 1),
        ((4000, 3000), "jpg", 40, 1),
        ((100, 80), "jpg", 1, 0.02),
        ((2000, 7), "jpg", 1, 0.02),
    ],
    ids=str,
)
def test_fast_pixels(
    photo: Image.Image,
    tmp_path: Path,
    size: tuple[int, int],
    suffix: str,
    largest: int,
    mean: float,
) -> None:
    path = _save(_enlarge(photo, size), tmp_path / f"photo.{suffix}")
    exact, fast = (each(path) for each in (_EXACT, _FAST))
    assert fast.dtype == torch.uint8
    assert fast.is_contiguous()
    assert fast.shape == exact.shape
    difference = (fast.int() - exact.int()).abs()
    assert difference.max() <= largest
    assert difference.float().mean() <= mean


def test_fast_decoding_applies_the_orientation(photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = _enlarge(photo, (1600, 1200)).transpose(Image.Transpose.ROTATE_90)
    path = _save(turned, tmp_path / "photo.jpg", exif=exif)
    reduced, _ = _FAST.to_sized_rgb(path)
    assert reduced.width > reduced.height
    exact, fast = (each(path).float() for each in (_EXACT, _FAST))
    assert (exact - fast).abs().mean() < 1


def test_fast_decoding_is_strict(photo: Image.Image, tmp_path: Path) -> None:
    path = _save(_enlarge(photo, (1600, 1200)), tmp_path / "photo.jpg")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"Cannot read image '.*photo\.jpg': Premature"):
        _FAST(path)


def test_every_path_decodes_fast(dataset: Any, photo: Image.Image, tmp_path: Path) -> None:
    import fiftyone as fo

    options = {"dtype": "float32", "engine": "torch"}
    exact = fiftyone_hiera.load_model("hiera-nano-digits", **options)
    fast = fiftyone_hiera.load_model("hiera-nano-digits", fast_decoding=True, **options)
    path = str(_save(_enlarge(photo, (1600, 1200)), tmp_path / "photo.jpg"))
    dataset.add_sample(fo.Sample(filepath=path))
    exact.embed_samples(dataset, "exact")
    fast.embed_samples(dataset, "run")
    dataset.compute_embeddings(fast, embeddings_field="native")

    sample = dataset.first()
    assert np.array_equal(sample.run, sample.native)
    assert not np.array_equal(sample.run, sample.exact)
    assert np.dot(sample.run, sample.exact) > 0.999 * np.linalg.norm(
        sample.run
    ) * np.linalg.norm(sample.exact)
