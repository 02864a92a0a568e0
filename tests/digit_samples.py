"""Samples of handwritten digits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from digits import Digit


def digit_samples(
    digits: Iterable[Digit], parts: Iterable[list[float]] | None = None, **fields: Any
) -> list[Any]:
    """Return a sample for each digit.

    Args:
        digits: the digits
        parts (None): bounding boxes, of which each sample has a detection in the field
            ``parts``
        **fields: further fields of each sample
    """
    import fiftyone as fo

    samples = []
    for digit in digits:
        sample = fo.Sample(filepath=str(digit.path), digit=digit.label, **fields)
        if parts is not None:
            boxes = [fo.Detection(label="part", bounding_box=box) for box in parts]
            sample["parts"] = fo.Detections(detections=boxes)

        samples.append(sample)

    return samples
