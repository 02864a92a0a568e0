"""Patches: the parts of images inside boxes and polylines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Box = Sequence[float]
"""A bounding box as in FiftyOne: [x, y, width, height], relative, in [0, 1]."""

ImageArray = npt.NDArray[np.uint8]
"""An RGB image of shape (H, W, 3)."""


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
