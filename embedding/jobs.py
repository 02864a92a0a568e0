"""Jobs: image and video files, and the parts of each that are embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .patches import Box


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
