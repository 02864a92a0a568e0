"""Patches: the parts of images that boxes and polylines enclose."""

from __future__ import annotations

from collections.abc import Sequence

import eta.core.geometry as etag
import numpy as np
import numpy.typing as npt

Box = Sequence[float]
"""A bounding box as FiftyOne has it: [x, y, width, height], relative, in [0, 1]."""

Picture = npt.NDArray[np.uint8]
"""An RGB picture of shape (H, W, 3)."""


def extract_patch(
    picture: Picture, box: Box, *, alpha: float | None = None, force_square: bool = False
) -> Picture:
    """Cut a patch out of a picture, with FiftyOne's own geometry.

    Args:
        picture: the picture
        box: the bounding box of the patch
        alpha (None): how much to expand or contract the box, in [-1, inf)
        force_square (False): whether to minimally make the box a square

    Returns:
        the patch, a view into the picture

    Raises:
        ValueError: if the patch is empty
    """
    x, y, width, height = box
    bounding_box = etag.BoundingBox.from_coords(x, y, x + width, y + height)
    if alpha is not None:
        bounding_box = bounding_box.pad_relative(alpha)

    patch: Picture = bounding_box.extract_from(picture, force_square=force_square)
    if 0 in patch.shape:
        raise ValueError(
            f"the patch {[round(float(edge), 4) for edge in box]} is empty: its box is "
            "smaller than a pixel or outside of the image"
        )

    return patch
