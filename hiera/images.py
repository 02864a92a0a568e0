"""Any image as an upright, 8-bit RGB picture.

These are the rules for every path by which an image reaches the encoder:

- EXIF orientation is applied, so the picture is as it is displayed.
- Grey is replicated to three channels, an alpha channel is dropped, palettes
  and CMYK are converted, ICC profiles are ignored.
- 16-bit grey keeps its high byte (``value >> 8``), as OpenCV does.
- Of an animation or a multi-page file the first frame is used.
- 32-bit integer and floating-point pictures have no defined range and are
  refused.
"""

from __future__ import annotations

import os
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

ImageLike: TypeAlias = "Image.Image | npt.NDArray[np.generic] | torch.Tensor"
"""A PIL image, a (H, W) or (H, W, C) array, or a (C, H, W) uint8 tensor."""

_CHANNELS = (1, 3, 4)


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file.

    Args:
        path: the path of the image

    Returns:
        an upright RGB image

    Raises:
        ValueError: if the file cannot be opened or decoded completely; the
            message names it
    """
    try:
        with open(path, "rb") as file:
            return to_rgb(Image.open(file))
    except UnidentifiedImageError as error:
        raise ValueError(
            f"Cannot read image {os.fspath(path)!r}: its content is in no format that "
            "Pillow knows"
        ) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's plugins raise SyntaxError for some broken headers
        raise ValueError(f"Cannot read image {os.fspath(path)!r}: {error}") from error


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


def _pil_to_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(
            f"The picture is empty ({image.width}x{image.height} px). A patch is, if its "
            "box is smaller than a pixel or outside of the image"
        )

    image = ImageOps.exif_transpose(image)

    if image.mode.startswith("I;16"):
        return _array_to_rgb(np.asarray(image))

    if image.mode in ("I", "F"):
        raise ValueError(
            f"Pictures of mode {image.mode!r} (32-bit) have no defined range of values; "
            "convert them to 8 or 16 bit"
        )

    return image.convert("RGB")


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
