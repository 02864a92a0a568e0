"""Draw a grid of values as a heatmap label of the size of its image."""

from __future__ import annotations

from typing import Any

import fiftyone.core.labels as fol
import numpy as np
import numpy.typing as npt

from ..images.preprocessing import Preprocessing

Values = npt.NDArray[np.float32]


def make_heatmap(
    values: Values,
    limits: tuple[float, float],
    preprocessing: Preprocessing,
    size: tuple[int, int],
    **attributes: Any,
) -> fol.Heatmap:
    """Draw a grid of values as a heatmap of the size of its image.

    Each cell of the grid becomes a uniform rectangle; values are not interpolated.

    Args:
        values: an array of shape (h, w)
        limits: the values that map to 1 and 255; others are clipped
        preprocessing: the preprocessing of the image
        size: the (width, height) in pixels of the image
        **attributes: further attributes of the label

    Returns:
        a :class:`fiftyone.core.labels.Heatmap`, whose map is uint8: 1 to 255 inside
        the crop, and 0 outside
    """
    low, high = limits
    levels = 1 + np.rint(254 * np.clip((values - low) / (high - low), 0, 1))
    left, top, right, bottom = preprocessing.crop_box(size)
    columns = _cells(size[0], left, right, values.shape[1])
    rows = _cells(size[1], top, bottom, values.shape[0])

    # The index -1 selects this border of zeros
    padded = np.pad(levels.astype(np.uint8), ((0, 1), (0, 1)))
    return fol.Heatmap(map=padded[rows][:, columns], **attributes)


def _cells(length: int, start: float, end: float, count: int) -> npt.NDArray[np.intp]:
    """Return the cell of each pixel along an axis, or -1 outside of all cells.

    Args:
        length: the number of pixels
        start: the position in pixels where the first cell starts
        end: the position in pixels where the last cell ends
        count: the number of cells
    """
    positions = (np.arange(length) + 0.5 - start) / (end - start) * count
    cells = np.floor(positions).astype(np.intp)
    return np.where((positions >= 0) & (cells < count), cells, -1)
