"""Decode images of any format to upright, 8-bit RGB, by the rules of ``docs/images.md``.

Decoding is strict. Truncated files are refused, whatever
``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` says, and so are JPEGs with damaged image data.
Pillow does not report that, so simplejpeg decodes JPEGs, to the same pixels. Vector formats
are refused; Ghostscript is never run.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

from . import jpeg
from .opening import describe_content, open_file

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
log_warning = logger.warning

ImagePath: TypeAlias = "str | os.PathLike[str]"
"""The path or URI of an image file."""

ImageLike: TypeAlias = "ImagePath | Image.Image | npt.NDArray[np.generic] | torch.Tensor"
"""A path, a PIL image, a (H, W) or (H, W, C) array, or a (C, H, W) uint8 tensor."""

Source: TypeAlias = "ImagePath | bytes"
"""The path of an image file, or its content."""

Warn: TypeAlias = Callable[[str], None]
"""A function that is called with a warning about an image; the text names it."""

_CHANNELS = (1, 3, 4)
_EXIF_ORIENTATION = 0x0112

# 16-bit images whose values are below this hold data of another depth in all likelihood
_FEW_VALUES = 4096
_warned_of_few_values = threading.Event()  # once per process

# The transposition that turns an image of each EXIF orientation upright
_TRANSPOSE_METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_WIDTH_AND_HEIGHT = [_TRANSPOSE_METHODS[value] for value in (5, 6, 7, 8)]


class _StrictDecoding:
    """Context manager in which Pillow refuses truncated files, whatever it is set to.

    Threads may be inside together; the last to leave restores the setting.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._setting = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False

            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._setting


_strict_decoding = _StrictDecoding()


def read_image(
    source: Source, shortest_edge: int | None = None, *, warn: Warn = log_warning
) -> Image.Image:
    """Decode an image file.

    Args:
        source: the path of the image, or the content of its file as bytes
        shortest_edge (None): decode JPEGs at reduced size, with at least this many
            pixels on their shortest edge. By default, at full size
        warn (log_warning): called with each warning about the image

    Returns:
        an upright RGB image

    Raises:
        TypeError: if the source is neither a path nor bytes
        ValueError: if the file cannot be opened or decoded completely; the
            message gives its path and the reason
    """
    name = describe_source(source)
    try:
        with _open(source) as file:
            try:
                image = Image.open(file)
            except UnidentifiedImageError:
                file.seek(0)
                raise ValueError(describe_content(file.read(1024))) from None

            _warn_if_large(image, name, warn)
            return _pil_to_rgb(image, name, warn, shortest_edge)
    except Exception as error:  # broken files raise nearly anything
        raise ValueError(f"Cannot read {name}: {_reason(error)}") from error


def describe_source(source: Source) -> str:
    """Return how messages name an image file."""
    if isinstance(source, bytes):
        return f"image of {len(source)} bytes"

    return f"image {os.fspath(source)!r}"


def is_path(image: object) -> TypeGuard[ImagePath]:
    """Return whether this is the path of an image, not the image itself."""
    return isinstance(image, (str, os.PathLike))


def displayed_size(path: ImagePath) -> tuple[int, int]:
    """Return the (width, height) of an image file in pixels, EXIF orientation applied."""
    with _open(path) as file, Image.open(file) as image:
        is_turned = _transpose_method(image) in _SWAPS_WIDTH_AND_HEIGHT
        return image.size[::-1] if is_turned else image.size


def to_rgb(image: ImageLike, shortest_edge: int | None = None) -> Image.Image:
    """Convert an image to upright, 8-bit RGB.

    Args:
        image: a path, a PIL image of any mode, an array of shape (H, W) or (H, W, C)
            with C in {1, 3, 4} and dtype uint8, uint16 or bool, or a uint8
            tensor of shape (C, H, W)
        shortest_edge (None): for paths, see :func:`read_image`

    Returns:
        an upright RGB image

    Raises:
        TypeError: if the image has another type
        ValueError: if its shape, dtype or mode is not supported, or if the file cannot be
            read
    """
    if is_path(image):
        return read_image(image, shortest_edge)

    if isinstance(image, Image.Image):
        path = getattr(image, "filename", "")
        return _pil_to_rgb(image, describe_source(path) if path else "image", log_warning)

    if _is_tensor(image):
        if str(image.dtype) != "torch.uint8":
            raise ValueError(
                f"An image tensor must be uint8, found {image.dtype}. For tensors that "
                "model.transforms returned, set model.preprocess = False"
            )

        if image.ndim == 3:
            image = image.permute(1, 2, 0)

        return _array_to_rgb(image.cpu().numpy())

    if isinstance(image, np.ndarray):
        return _array_to_rgb(image)

    raise TypeError(
        "An image must be a path, a PIL image, a numpy array or a torch tensor, found "
        f"{type(image).__name__}"
    )


def _is_tensor(image: object) -> TypeGuard[torch.Tensor]:
    torch = sys.modules.get("torch")  # without which there are no tensors
    return torch is not None and isinstance(image, torch.Tensor)


def _open(source: Source) -> BinaryIO:
    if not isinstance(source, bytes):
        return open_file(source)

    if not source:
        raise ValueError("it is empty")

    return io.BytesIO(source)


def _pil_to_rgb(
    image: Image.Image, name: str, warn: Warn, shortest_edge: int | None = None
) -> Image.Image:
    if 0 in image.size:
        raise ValueError(
            f"The image is empty ({image.width}x{image.height} px). If it is a patch, its "
            "bounding box is smaller than a pixel or lies outside the image"
        )

    if image.format == "EPS":
        raise ValueError("it is PostScript, a vector format; render it to PNG or JPEG")

    decoded = _decode_jpeg(image, name, warn, shortest_edge)
    if decoded is not None:
        return _apply_orientation(decoded, image)

    with _strict_decoding:
        image.load()

    # After loading: some formats store EXIF data behind the pixels
    upright = _apply_orientation(image, image)
    # Pillow decodes 16-bit PGM files to 32-bit integers
    is_16_bit = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
    if is_16_bit:
        return _array_to_rgb(np.asarray(upright).astype(np.uint16), name)

    if image.mode in ("I", "F"):
        raise ValueError(
            f"Images of mode {image.mode!r} (32-bit) have no defined value range; convert "
            "it to 8 or 16 bit"
        )

    rgb = upright.convert("RGB")
    rgb.info = {}  # the EXIF orientation must not be applied twice
    return rgb


def _decode_jpeg(
    image: Image.Image, name: str, warn: Warn, shortest_edge: int | None
) -> Image.Image | None:
    """Decode a JPEG with libjpeg, which reports corrupt data; Pillow does not.

    Returns:
        the image, or None if Pillow has decoded it already or must decode it
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.fp is None:
        return None

    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)

    # Pillow decodes other modes (CMYK) and images whose size the caller reduced. They are
    # only checked here, at an eighth of their size: it parses every coefficient at a tenth
    # of the cost of Pillow's decoding
    is_plain = image.mode in ("RGB", "L") and not image.decoderconfig
    # Scales above one half take as long as the full size
    is_scaled = shortest_edge is not None and min(image.size) >= 2 * shortest_edge
    decoded = jpeg.decode(
        data,
        "RGB" if is_plain else "GRAY",
        min_edge=(shortest_edge or 0) if is_plain and is_scaled else 0,
        min_factor=1 if is_plain else 8,
    )
    if decoded is None:
        return None

    pixels, warning = decoded
    if warning is not None:
        warn(f"The {name} is damaged outside of its image data: {warning}")

    return Image.fromarray(pixels) if is_plain else None


def _apply_orientation(image: Image.Image, exif_source: Image.Image) -> Image.Image:
    """Turn an image upright by the EXIF data of the image that it was decoded from."""
    method = _transpose_method(exif_source)
    return image if method is None else image.transpose(method)


def _transpose_method(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that applies the EXIF orientation of an image."""
    try:
        return _TRANSPOSE_METHODS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  # broken EXIF raises nearly anything
        return None


def _warn_if_large(image: Image.Image, name: str, warn: Warn) -> None:
    pixels = image.width * image.height
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        warn(f"The {name} is very large: {pixels // 10**6} MP are decoded")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror

    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"

    return str(error) or type(error).__name__


def _array_to_rgb(array: npt.NDArray[np.generic], name: str = "array") -> Image.Image:
    if array.ndim == 2:
        array = array[:, :, np.newaxis]

    if array.ndim != 3 or array.shape[2] not in _CHANNELS or 0 in array.shape:
        raise ValueError(
            f"An image array must have shape (H, W) or (H, W, C) with C in {_CHANNELS}, "
            f"found {array.shape}"
        )

    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        if 0 < array.max() < _FEW_VALUES and not _warned_of_few_values.is_set():
            _warned_of_few_values.set()
            logger.warning(
                "The %s is of 16 bits and has no value above %d, so it becomes nearly "
                "black, as do all images like it: the high byte is kept. Scale such images "
                "first: values of 12 bits: image << 4, of 8 bits: image.astype(np.uint8)",
                name,
                _FEW_VALUES - 1,
            )

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
