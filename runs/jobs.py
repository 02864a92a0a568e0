"""The work of a run: files, and the parts of each that become vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .patches import Box


@dataclass(frozen=True)
class Part:
    """What becomes one vector: an image, a frame, or a patch of either.

    Args:
        id: the ID of the sample, frame or label
        document_id: the ID of the sample or frame that holds it
        frame_number: the number of the frame; None for an image, and for a
            video of which no frames are known
        box: the patch; None for the whole, empty if the label has no points
    """

    id: str
    document_id: str
    frame_number: int | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Job:
    """The parts of one file that are to be embedded.

    Args:
        sample_id: the ID of the file's sample
        path: the path of the file
        parts: the parts
    """

    sample_id: str
    path: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Worklist:
    """The work of a run, settled before it begins.

    Args:
        sample_ids: the samples, in order of their files
        part_ids: of each sample the frames or labels; None for whole images
        skipped: how many vectors there are already
    """

    sample_ids: list[str]
    part_ids: dict[str, list[str]] | None
    skipped: int

    def __len__(self) -> int:
        if self.part_ids is None:
            return len(self.sample_ids)

        return sum(map(len, self.part_ids.values()))
