"""Check batches of images, of the encoder's input, and of outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ..images.decoding import is_path

_CHANNELS = (1, 3, 4)


def check_is_list(images: object) -> None:
    """Check that images, or their paths, are in a list or another iterable.

    Raises:
        ValueError: if they are not; the message says what to pass
    """
    if _is_image(images):
        found = "one image: pass [image]"
    elif isinstance(images, Mapping):
        found = f"{type(images).__name__}: pass [*images.values()]"
    elif is_path(images):
        found = f"one path: pass [{os.fspath(images)!r}]"
    elif isinstance(images, bytes):
        found = "bytes: pass [PIL.Image.open(io.BytesIO(data))]"
    elif not hasattr(images, "__iter__") and not hasattr(images, "__getitem__"):
        found = type(images).__name__
    else:
        return

    raise ValueError(f"Expected a list of images, found {found}")


def check_pixels(pixels: object, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a model's input if it is what its transforms return, of this shape.

    Raises:
        ValueError: if it is not; the message says what to pass
    """
    if (
        isinstance(pixels, torch.Tensor)
        and pixels.dtype == torch.uint8
        and tuple(pixels.shape[-3:]) == shape
    ):
        return pixels

    found = type(pixels).__name__
    if isinstance(pixels, torch.Tensor):
        found = f"{pixels.dtype} of shape {tuple(pixels.shape)}"
    elif is_path(pixels):
        found = f"the path {os.fspath(pixels)!r}, which is read with preprocess=True only"

    raise ValueError(
        "With preprocess=False, pass what model.transforms returns, a torch.uint8 tensor "
        f"of shape {shape}, or N of them stacked; found {found}"
    )


def check_finite(rows: npt.NDArray[np.float32], dtype: str) -> None:
    """Check that the output of a model, a row for each image of a batch, is finite.

    Raises:
        ValueError: if there is NaN or infinity; the message lists the images
    """
    axes = tuple(range(1, rows.ndim))
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=axes)).tolist()
    if broken:
        raise ValueError(
            f"The model returned NaN or infinity for the images {broken} of a batch of "
            f"{len(rows)} (counted from 0), computing in dtype {dtype!r}"
        )


def _is_image(images: object) -> bool:
    """Return whether this is one image, whose rows or channels are not images."""
    if isinstance(images, np.ndarray):
        return images.ndim == 2 or (images.ndim == 3 and images.shape[2] in _CHANNELS)

    if isinstance(images, torch.Tensor):
        return images.ndim == 3 and images.shape[0] in _CHANNELS

    return isinstance(images, Image.Image)
