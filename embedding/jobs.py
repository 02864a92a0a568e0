"""Describe what to embed of each file, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .patches import Box

Embeddings = npt.NDArray[np.float32]
"""N embeddings, of shape (N, D), or one, of shape (D,)."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one embedding is computed from: an image, a frame, or a patch of either.

    Args:
        id: the ID of the sample, frame or label
        document_id: the ID of the sample or frame that holds it
        frame_number: the number of the frame; None for an image, and for a
            video whose frames are unknown
        box: the bounding box of the patch; None for the whole image; a reason if the
            label has no valid one
    """

    id: str
    document_id: str
    frame_number: int | None = None
    box: Box | str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """The parts of one file to embed.

    Args:
        sample_id: the ID of the file's sample
        path: the path of the file
        parts: the parts
    """

    sample_id: str
    path: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Embedded:
    """An embedding.

    Args:
        job: the file
        part: the part of it
        embedding: a float32 array of shape (D,)
        warnings (()): the warnings about the file
    """

    job: Job
    part: Part
    embedding: Embeddings
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Failed:
    """Parts of a file that have no embedding.

    Args:
        job: the file
        parts: the parts
        error: the error; its message names the file
    """

    job: Job
    parts: Sequence[Part]
    error: ValueError


Result = Embedded | Failed


def check_row(
    job: Job, part: Part, embedding: Embeddings, dtype: str, warnings: Sequence[str]
) -> Result:
    """Return the result of an embedding that was computed in a dtype: finite, or failed."""
    if np.isfinite(embedding).all():
        return Embedded(job, part, embedding, warnings)

    message = f"NaN or infinity in the embedding of {job.path!r} in {dtype}"
    return Failed(job, [part], ValueError(message))
