"""Samples of handwritten digits, and a check of their embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

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


def check_embeddings(samples: Any, model: Any, field: str = "hiera") -> None:
    """Check that each sample holds the embedding of its own image.

    Args:
        samples: the samples
        model: the model
        field ("hiera"): the field
    """
    paths, stored = samples.values(["filepath", field])
    expected = model.embed_all([Image.open(path) for path in paths])
    assert all(embedding.dtype == np.float32 for embedding in stored)
    assert np.abs(np.stack(stored) - expected).max() < 1e-4
