"""Crop the patches of boxes and polylines out of images."""

from __future__ import annotations

import contextlib
import math
import reprlib
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

Box = Sequence[float]
"""A bounding box as in FiftyOne: [x, y, width, height], relative, in [0, 1]."""

ImageArray = npt.NDArray[np.uint8]
"""An RGB image of shape (H, W, 3)."""


def to_box(value: Any) -> Box:
    """Convert the bounding box of a label, as it is stored.

    Raises:
        ValueError: if there is none, or if it is not four finite numbers
    """
    if not _to_list(value):
        raise ValueError("the label has no bounding box")

    return _to_numbers("bounding box", value, ("x", "y", "width", "height"))


def enclosing_box(shapes: Any) -> Box:
    """Return the bounding box of a polyline, stored as a list of points for each shape.

    Raises:
        ValueError: if there are no points, or if one is not two finite numbers
    """
    points = [point for shape in _to_list(shapes) for point in _to_list(shape)]
    if not points:
        raise ValueError("the label has no points")

    array = _to_array(points)
    (left, top), (right, bottom) = array.min(axis=0), array.max(axis=0)
    return left, top, right - left, bottom - top


def extract_patch(
    image: ImageArray,
    box: Box,
    *,
    alpha: float | None = None,
    force_square: bool = False,
) -> ImageArray:
    """Crop a patch out of an image, with FiftyOne's own geometry.

    Args:
        image: the image
        box: the bounding box of the patch
        alpha (None): how much to expand or contract the box, in [-1, inf)
        force_square (False): whether to minimally make the box a square

    Returns:
        the patch, a view into the image

    Raises:
        ValueError: if the patch is empty
    """
    # A second of imports, which whole images do without
    import eta.core.geometry as etag

    x, y, width, height = box
    bounding_box = etag.BoundingBox.from_coords(x, y, x + width, y + height)
    if alpha is not None:
        bounding_box = bounding_box.pad_relative(alpha)

    patch: ImageArray = bounding_box.extract_from(image, force_square=force_square)
    if 0 in patch.shape:
        raise ValueError(
            f"the patch {[round(float(edge), 4) for edge in box]} is empty: its box is "
            "smaller than a pixel or outside of the image"
        )

    return patch


def _to_array(points: Sequence[Any]) -> npt.NDArray[Any]:
    """Convert N points to an array of shape (N, 2), quickly if all are valid."""
    with contextlib.suppress(ValueError):  # points of different lengths
        array = np.array(points)
        is_numeric = array.dtype.kind in "iuf" and array.shape[1:] == (2,)
        if is_numeric and np.isfinite(array).all():
            return array

    return np.array([_to_numbers("point", point, ("x", "y")) for point in points])


def _to_numbers(noun: str, value: Any, names: Sequence[str]) -> list[float]:
    numbers = _to_list(value)
    others = [number for number in numbers if not _is_finite(number)]
    if not others and len(numbers) == len(names):
        return [float(number) for number in numbers]

    found = f"{len(numbers)} number{'' if len(numbers) == 1 else 's'}"
    if others:
        found = f"{others[0]!r}, which is no finite number"

    raise ValueError(
        f"the {noun} {reprlib.repr(numbers)} has {found}: expected [{', '.join(names)}]"
    )


def _to_list(value: Any) -> list[Any]:
    if value is None:
        return []

    if isinstance(value, np.ndarray):
        return [*value.tolist()]

    return [*value] if isinstance(value, (list, tuple)) else [value]


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
