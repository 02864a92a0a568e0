"""From a grid of numbers to a heatmap that lies on its image."""

from __future__ import annotations

from typing import Any

import fiftyone.core.labels as fol
import numpy as np
import numpy.typing as npt

from .hiera.preprocessing import Preprocessing

Grid = npt.NDArray[np.float32]


def make_heatmap(
    values: Grid,
    limits: tuple[float, float],
    preprocessing: Preprocessing,
    size: tuple[int, int],
    **attributes: Any,
) -> fol.Heatmap:
    """Draw a grid of values as a map of the size of its image.

    Each cell of the grid becomes a plain rectangle: what lies between the centers of
    two cells was not measured. The map is uint8 and says 1 to 255 for the values between
    the limits, the same in all images, and 0 for what was cropped away.

    Args:
        values: an array of shape (h, w)
        limits: the values that become 1 and 255; those beyond are cut
        preprocessing: how the image was prepared
        size: the (width, height) in pixels of the image
        **attributes: further attributes of the label

    Returns:
        a :class:`fiftyone.core.labels.Heatmap`
    """
    low, high = limits
    levels = 1 + np.rint(254 * np.clip((values - low) / (high - low), 0, 1))
    left, top, right, bottom = preprocessing.box(size)
    columns = _cells(size[0], left, right, values.shape[1])
    rows = _cells(size[1], top, bottom, values.shape[0])

    # A border of zeros, for the cell -1
    padded = np.pad(levels.astype(np.uint8), ((0, 1), (0, 1)))
    drawn = padded[rows][:, columns]
    return fol.Heatmap(map=drawn, **attributes)


def _cells(length: int, start: float, end: float, count: int) -> npt.NDArray[np.intp]:
    """Return in which of the cells between two edges the centers of pixels are, or -1."""
    places = (np.arange(length) + 0.5 - start) / (end - start) * count
    cells = np.floor(places).astype(np.intp)
    return np.where((places >= 0) & (cells < count), cells, -1)
