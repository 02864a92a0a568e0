"""Any image as an upright, 8-bit RGB picture.

These are the rules for every path by which an image reaches the encoder:

- EXIF orientation is applied, so the picture is as it is displayed. EXIF data
  that cannot be parsed counts as none.
- Grey is replicated to three channels, an alpha channel is dropped, palettes
  and CMYK are converted, ICC profiles are ignored.
- 16-bit grey keeps its high byte (``value >> 8``), as OpenCV does.
- Of an animation or a multi-page file the first frame is used.
- 32-bit integer and floating-point pictures have no defined range and are
  refused.
- Decoding is strict: truncated files are refused, whatever
  ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` says, and so are JPEGs in which
  libjpeg finds corrupt data, of which Pillow alone says nothing. JPEGs are
  therefore decoded by simplejpeg, to the very same pixels.
- Vector formats are refused; Ghostscript is never run.
"""

from __future__ import annotations

import logging
import os
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

from .diagnostics import check_is_file, describe_content
from .monkeypatch import Override

logger = logging.getLogger(__name__)

ImageLike: TypeAlias = "Image.Image | npt.NDArray[np.generic] | torch.Tensor"
"""A PIL image, a (H, W) or (H, W, C) array, or a (C, H, W) uint8 tensor."""

_CHANNELS = (1, 3, 4)
_EXIF_ORIENTATION = 0x0112

# From the value of the tag, as the EXIF standard defines it, to what undoes it
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SWAPPING = [_UPRIGHT[value] for value in (5, 6, 7, 8)]

_strict_decoding = Override(ImageFile, "LOAD_TRUNCATED_IMAGES", False)


def read_image(
    path: str | os.PathLike[str], shortest_edge: int | None = None
) -> Image.Image:
    """Read an image file.

    Args:
        path: the path of the image
        shortest_edge (None): lets JPEGs be decoded to a fraction of their size,
            as long as their shorter side keeps this length in pixels

    Returns:
        an upright RGB image

    Raises:
        ValueError: if the file cannot be opened or decoded completely; the
            message names it and says why
    """
    try:
        check_is_file(path)
        with open(path, "rb") as file:
            try:
                image = Image.open(file)
            except UnidentifiedImageError:
                file.seek(0)
                raise ValueError(describe_content(file.read(1024))) from None

            _warn_if_large(path, image)
            return _pil_to_rgb(image, shortest_edge)
    except Exception as error:  # broken files raise nearly anything
        raise ValueError(
            f"Cannot read image {os.fspath(path)!r}: {_reason(error)}"
        ) from error


def upright_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the (width, height) in pixels of an image file as it is displayed.

    Args:
        path: the path of an image that can be read
    """
    with Image.open(path) as image:
        turn = _orientation(image)
        return image.size[::-1] if turn in _SWAPPING else image.size


def to_rgb(image: ImageLike) -> Image.Image:
    """Convert an image in memory.

    Args:
        image: a PIL image of any mode, an array of shape (H, W) or (H, W, C)
            with C in {1, 3, 4} and of type uint8, uint16 or bool, or a uint8
            tensor of shape (C, H, W)

    Returns:
        an upright RGB image

    Raises:
        TypeError: if the image is none of these
        ValueError: if its shape, type or mode is not supported
    """
    if isinstance(image, Image.Image):
        return _pil_to_rgb(image)

    if isinstance(image, torch.Tensor):
        if image.dtype != torch.uint8:
            raise ValueError(
                f"An image tensor must be uint8, found {image.dtype}. Tensors made by "
                "model.transforms go in with model.preprocess = False"
            )

        if image.ndim == 3:
            image = image.permute(1, 2, 0)

        return _array_to_rgb(image.cpu().numpy())

    if isinstance(image, np.ndarray):
        return _array_to_rgb(image)

    raise TypeError(
        "An image must be a PIL image, a numpy array or a torch tensor, found "
        f"{type(image).__name__}"
    )


def _pil_to_rgb(image: Image.Image, shortest_edge: int | None = None) -> Image.Image:
    if 0 in image.size:
        raise ValueError(
            f"The picture is empty ({image.width}x{image.height} px). A patch is, if its "
            "box is smaller than a pixel or outside of the image"
        )

    if image.format == "EPS":
        raise ValueError("it is PostScript, which is no picture of pixels; render it first")

    picture = _decode_jpeg(image, shortest_edge)
    if picture is not None:
        return _upright(picture, image)

    with _strict_decoding:
        image.load()

    # 16-bit PGM files come with that range, but as 32 bits
    is_deep = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")

    upright = _upright(image, image)
    if is_deep:
        return _array_to_rgb(np.asarray(upright).astype(np.uint16))

    if image.mode in ("I", "F"):
        raise ValueError(
            f"Pictures of mode {image.mode!r} (32-bit) have no defined range of values; "
            "convert them to 8 or 16 bit"
        )

    picture = upright.convert("RGB")
    picture.info = {}  # an orientation that was applied must not be applied again
    return picture


def _decode_jpeg(image: Image.Image, shortest_edge: int | None) -> Image.Image | None:
    """Decode a JPEG by libjpeg itself, which tells whether it is intact.

    Pillow decodes on past corrupt data.

    Returns:
        the picture, or None if it is for Pillow to decode, or decoded already
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.fp is None:
        return None

    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)

    # Of other modes (CMYK), and where the user chose a size, only whether it is intact:
    # an eighth of the size costs a tenth of Pillow's decoding, and sees each coefficient
    is_plain = image.mode in ("RGB", "L") and not image.decoderconfig
    # Fractions above a half take as long as the whole
    is_scaled = shortest_edge is not None and min(image.size) >= 2 * shortest_edge
    least = shortest_edge if is_plain and is_scaled else 0
    try:
        array = simplejpeg.decode_jpeg(
            data,
            "RGB" if is_plain else "GRAY",
            min_height=least,
            min_width=least,
            min_factor=1 if is_plain else 8,
        )
    except ValueError as error:
        if str(error).startswith(("Corrupt JPEG", "Premature end")):
            raise

        return None  # its other complaints are Pillow's to judge

    return Image.fromarray(array) if is_plain else None


def _upright(picture: Image.Image, file: Image.Image) -> Image.Image:
    """Turn a picture as the EXIF data of its file say."""
    turn = _orientation(file)
    return picture if turn is None else picture.transpose(turn)


def _orientation(file: Image.Image) -> Image.Transpose | None:
    """Return what turns the picture of a file upright."""
    try:
        return _UPRIGHT.get(file.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  # broken EXIF raises nearly anything
        return None


def _warn_if_large(path: str | os.PathLike[str], image: Image.Image) -> None:
    pixels = image.width * image.height
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        logger.warning(
            "%r is a very large picture: %d MP, of which all are decoded",
            os.fspath(path),
            pixels // 10**6,
        )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror

    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"

    return str(error) or type(error).__name__


def _array_to_rgb(array: npt.NDArray[np.generic]) -> Image.Image:
    if array.ndim == 2:
        array = array[:, :, np.newaxis]

    if array.ndim != 3 or array.shape[2] not in _CHANNELS or 0 in array.shape:
        raise ValueError(
            f"An image array must have shape (H, W) or (H, W, C) with C in {_CHANNELS}, "
            f"found {array.shape}"
        )

    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = (array >> 8).astype(np.uint8)  # type: ignore[operator]  # checked above
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ValueError(
            f"An image array must be uint8, uint16 or bool, found {array.dtype}"
        )

    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)

    return Image.fromarray(np.ascontiguousarray(array[:, :, :3]))
