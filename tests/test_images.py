"""Images of every form are converted to the same upright RGB image."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fiftyone_hiera.images import decoding
from fiftyone_hiera.images.decoding import read_image, to_rgb

_ORIENTATION = 0x0112
# The transposition to store an image with, so that its orientation turns it upright
_STORE = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture
def photo() -> Image.Image:
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg")).crop((0, 0, 320, 211))


def _same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))


def _save(image: Image.Image, path: Path, **kwargs: Any) -> Path:
    image.save(path, **kwargs)
    return path


def test_forms_agree(photo: Image.Image) -> None:
    array = np.asarray(photo)
    assert _same(to_rgb(photo), array)
    assert _same(to_rgb(array), array)
    assert _same(to_rgb(torch.tensor(array).permute(2, 0, 1)), array)
    assert _same(to_rgb(np.asfortranarray(array)), array)


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 1)])
def test_grayscale_is_replicated(photo: Image.Image, shape: tuple[int, ...]) -> None:
    grey = np.asarray(photo.convert("L"))[:40, :30]
    expected = np.stack([grey] * 3, axis=2)
    assert _same(to_rgb(grey.reshape(shape)), expected)
    assert _same(to_rgb(Image.fromarray(grey)), expected)
    assert _same(to_rgb(torch.tensor(grey).unsqueeze(0)), expected)


def test_alpha_is_dropped(photo: Image.Image) -> None:
    transparent = photo.copy()
    transparent.putalpha(7)
    assert _same(to_rgb(transparent), photo)
    assert _same(to_rgb(np.asarray(transparent)), photo)


def test_16_bit_keeps_its_high_byte(photo: Image.Image, tmp_path: Path) -> None:
    grey = np.asarray(photo.convert("L"))
    deep = grey.astype(np.uint16) * 256 + 99
    expected = np.stack([grey] * 3, axis=2)
    assert _same(to_rgb(deep), expected)

    for suffix in (".png", ".tif"):
        path = _save(Image.fromarray(deep), tmp_path / f"deep{suffix}")
        assert _same(read_image(path), expected)
        assert _same(cv2.imread(str(path)), expected), "OpenCV decodes another image"


@pytest.mark.parametrize("is_file", [False, True])
@pytest.mark.parametrize(
    ("bits", "is_warned_of"), [(8, True), (12, True), (13, False), (16, False)]
)
def test_16_bit_of_few_values_is_warned_of_once(
    photo: Image.Image,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    bits: int,
    is_warned_of: bool,
    is_file: bool,
) -> None:
    grey = np.asarray(photo.convert("L")).astype(np.uint16)
    deep = grey << (bits - 8)
    path = _save(Image.fromarray(deep), tmp_path / "deep.png")
    decoding._warned_of_few_values.clear()
    assert not to_rgb(np.zeros((9, 9), np.uint16)).getbbox()
    assert not caplog.messages  # a black image is black
    for _ in range(3):
        read_image(path) if is_file else to_rgb(deep)

    assert len(caplog.messages) == is_warned_of
    for line in caplog.messages:
        assert (f"The image {str(path)!r}" if is_file else "The array") in line
        assert "no value above 4095, so it becomes nearly black" in line
        assert "12 bits: image << 4" in line
        assert "8 bits: image.astype(np.uint8)" in line


def test_big_endian_16_bit(photo: Image.Image) -> None:
    grey = np.asarray(photo.convert("L"))
    deep = (grey.astype(np.uint16) << 8).astype(">u2")
    assert _same(to_rgb(deep), to_rgb(grey))
    raw = Image.frombytes("I;16B", photo.size, deep.tobytes())
    assert _same(to_rgb(raw), to_rgb(grey))


def test_bilevel_is_black_and_white() -> None:
    bits = np.eye(9, dtype=bool)
    expected = np.stack([bits * np.uint8(255)] * 3, axis=2)
    assert _same(to_rgb(bits), expected)
    assert _same(to_rgb(Image.fromarray(bits)), expected)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "P", "LA", "PA", "RGBa", "RGBX"])
def test_other_modes_are_converted_as_pillow_does(photo: Image.Image, mode: str) -> None:
    intermediate = {"LA": "LA", "PA": "P", "RGBa": "RGBA"}.get(mode, mode)
    image = photo.convert(intermediate).convert(mode)
    assert _same(to_rgb(image), image.convert("RGB"))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_is_refused(photo: Image.Image, mode: str) -> None:
    with pytest.raises(ValueError, match=rf"mode '{mode}' \(32-bit\)"):
        to_rgb(photo.convert("L").convert(mode))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", list(_STORE))
def test_exif_orientation(
    photo: Image.Image, tmp_path: Path, suffix: str, orientation: int
) -> None:
    transpose = _STORE[orientation]
    stored = photo.transpose(transpose) if transpose is not None else photo
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 100}}.get(suffix, {})
    path = _save(stored, tmp_path / f"photo{suffix}", exif=exif, **options)

    upright = np.asarray(read_image(path))
    tolerance = 12 if suffix == ".jpg" else 0
    difference = np.abs(upright.astype(int) - np.asarray(photo)).mean()
    assert upright.shape == (211, 320, 3)
    assert difference <= tolerance / 4

    with Image.open(path) as opened:
        assert _same(to_rgb(opened), upright)


def test_orientation_of_16_bit(photo: Image.Image, tmp_path: Path) -> None:
    deep = np.asarray(photo.convert("L")).astype(np.uint16) * 256
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    path = _save(Image.fromarray(np.rot90(deep).copy()), tmp_path / "deep.png", exif=exif)
    assert _same(read_image(path), to_rgb(deep))


def test_jpeg_is_decoded_as_opencv_does(photo: Image.Image, tmp_path: Path) -> None:
    path = _save(photo, tmp_path / "photo.jpg", quality=90)
    assert _same(read_image(path), cv2.imread(str(path))[:, :, ::-1])


def test_first_frame_of_an_animation(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "animation.webp"
    frames = [photo.rotate(180)]
    photo.save(path, save_all=True, append_images=frames, lossless=True)
    assert _same(read_image(path), photo)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (
            np.zeros((4, 4, 3), np.float32),
            ValueError,
            "uint8, uint16 or bool, found float32",
        ),
        (np.zeros((4, 4, 3), np.int32), ValueError, "found int32"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"found \(4, 4, 2\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), ValueError, r"found \(2, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"found \(0, 4, 3\)"),
        (Image.new("RGB", (0, 5)), ValueError, r"empty \(0x5 px\)"),
        (torch.zeros(3, 4, 4), ValueError, "preprocess = False"),
        ("absent.jpg", ValueError, "Cannot read image 'absent.jpg': No such file"),
        (b"", TypeError, "found bytes"),
        (None, TypeError, "found NoneType"),
    ],
)
def test_unsupported_inputs_are_refused(
    image: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        to_rgb(image)


def test_bad_files_are_named(photo: Image.Image, tmp_path: Path) -> None:
    truncated = _save(photo, tmp_path / "truncated.jpg")
    truncated.write_bytes(truncated.read_bytes()[:5000])
    text = tmp_path / "text.jpg"
    text.write_text("<html>")
    empty = tmp_path / "empty.png"
    empty.touch()
    broken = _save(photo, tmp_path / "broken.png")
    broken.write_bytes(broken.read_bytes()[:60] + b"\0" * 2000)

    for path in (truncated, text, empty, broken, tmp_path, tmp_path / "absent.jpg"):
        with pytest.raises(ValueError, match="Cannot read image") as error:
            read_image(path)

        assert str(path) in str(error.value)


def test_decompression_bomb_is_named(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save(photo, tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"bomb\.png"):
        warnings.simplefilter("ignore")
        read_image(path)
