"""Worklist: a snapshot, by ID, of what a run embeds, and the jobs it leads to.

The IDs are listed before the first write: a query for what has no embedding yet
would change its result while the run writes.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fiftyone.core.collections as foc
import fiftyone.core.labels as fol
import fiftyone.core.media as fom
import fiftyone.core.utils as fou
import numpy as np
from fiftyone import ViewField as F

from ..embedding.jobs import Job, Part
from ..embedding.patches import Box
from ..images.refusals import check_is_file
from .target import Target

# The number of samples that are looked up at once
_LOOKUP_SIZE = {fom.IMAGE: 500, fom.VIDEO: 5}

_FRAME_COUNT = "metadata.total_frame_count"


@dataclass(frozen=True)
class Worklist:
    """What a run embeds.

    Args:
        sample_ids: the IDs of the samples, in order of their files
        part_ids: the IDs of the frames or labels by sample; None for whole images
        skipped: the number of existing embeddings
    """

    sample_ids: list[str]
    part_ids: dict[str, list[str]] | None
    skipped: int

    def __len__(self) -> int:
        if self.part_ids is None:
            return len(self.sample_ids)

        return sum(map(len, self.part_ids.values()))


def list_work(
    target: Target, *, overwrite: bool, shard: tuple[int, int] | None
) -> Worklist:
    """List what a run embeds.

    Args:
        target: the samples and the field
        overwrite: whether to include what has an embedding already
        shard: the (index, count) of the part of the samples; None is all

    Returns:
        a :class:`Worklist`
    """
    frameless = _add_frames(target, shard) if target.frames_prefix else []
    total = sum(
        1 if parts is None else len(parts)
        for _, parts in _ids(target, target.samples, shard)
    )
    pending = target.samples if overwrite else _without_embeddings(target)
    rows = _ids(target, pending.sort_by("filepath"), shard)
    if not target.has_parts:
        sample_ids = [sample_id for sample_id, _ in rows]
        return Worklist(sample_ids, None, total - len(sample_ids))

    part_ids = {sample_id: parts for sample_id, parts in rows if parts}
    skipped = total - sum(map(len, part_ids.values()))
    if target.patches_field is None:
        # A video whose frames are unknown is listed as one part, which fails
        part_ids |= {sample_id: [sample_id] for sample_id in frameless}

    return Worklist(list(part_ids), part_ids, skipped)


def read_jobs(target: Target, worklist: Worklist) -> Iterator[Job]:
    """Look up the paths and the parts of a worklist, some samples at a time.

    Args:
        target: the samples and the field
        worklist: the worklist

    Yields:
        a :class:`Job` for each sample that still exists
    """
    for sample_ids in fou.iter_batches(
        worklist.sample_ids, _LOOKUP_SIZE[target.media_type]
    ):
        view = target.select(sample_ids)
        jobs = {job.sample_id: job for job in read_all_jobs(target, view)}
        for sample_id in sample_ids:
            if sample_id not in jobs:
                continue  # deleted since the worklist was made

            job = jobs[sample_id]
            if worklist.part_ids is None:
                yield job
                continue

            wanted = set(worklist.part_ids[sample_id])
            parts = [part for part in job.parts if part.id in wanted]
            yield Job(sample_id, job.path, parts)


def read_all_jobs(target: Target, view: foc.SampleCollection) -> Iterator[Job]:
    """Look up the paths and all parts of samples.

    Args:
        target: the field
        view: the samples, with those of their parts that are wanted

    Yields:
        a :class:`Job` for each sample
    """
    paths = ["id", "filepath"]
    if target.frames_prefix:
        paths += ["frames.id", "frames.frame_number"]
    if target.patches_field is not None:
        shape = "points" if _has_points(target) else "bounding_box"
        paths += [target.parts_prefix + "id", target.parts_prefix + shape]

    for sample_id, path, *rest in zip(*view.values(paths), strict=True):
        yield Job(sample_id, path or "", list(_read_parts(target, sample_id, rest)))


def match_embeddings(
    target: Target, samples: foc.SampleCollection, exists: bool
) -> foc.SampleCollection:
    """Return a view of the samples, frames or labels that have an embedding, or have none.

    Args:
        target: the field
        samples: the samples
        exists: whether to match those that have one
    """
    condition = F(target.name).exists(exists)
    if target.patches_field is not None:
        return samples.filter_labels(target.patches_field, condition)

    if target.frames_prefix:
        return samples.match_frames(condition)

    return samples.exists(target.name, exists)


def _add_frames(target: Target, shard: tuple[int, int] | None) -> list[str]:
    """Give each frame an ID in the database; return the videos whose frames are unknown."""
    uncounted = target.samples.exists(_FRAME_COUNT, False).values(["id", "filepath"])
    files = [
        sample_id
        for sample_id, path in zip(*uncounted, strict=True)
        if _in_shard(sample_id, shard) and _is_file(path)
    ]
    target.select(files).compute_metadata(progress=False)
    target.samples.exists(_FRAME_COUNT).ensure_frames()

    uncounted = target.samples.exists(_FRAME_COUNT, False).values(["id", "frames.id"])
    return [
        sample_id
        for sample_id, frames in zip(*uncounted, strict=True)
        if not frames and _in_shard(sample_id, shard)
    ]


def _without_embeddings(target: Target) -> foc.SampleCollection:
    if not target.find_field():
        return target.samples

    return match_embeddings(target, target.samples, False)


def _ids(
    target: Target, view: foc.SampleCollection, shard: tuple[int, int] | None
) -> Iterator[tuple[str, list[str] | None]]:
    """Yield the IDs of samples, each with those of its parts; None for whole images."""
    if not target.has_parts:
        for sample_id in dict.fromkeys(view.values("id")):
            if _in_shard(sample_id, shard):
                yield sample_id, None

        return

    ids, part_ids = view.values(["id", target.parts_prefix + "id"])
    for sample_id, parts in dict(zip(ids, part_ids, strict=True)).items():
        if _in_shard(sample_id, shard):
            yield sample_id, list(_flatten(parts))


def _read_parts(target: Target, sample_id: str, columns: list[Any]) -> Iterator[Part]:
    is_video, is_patches = bool(target.frames_prefix), target.patches_field is not None
    documents = list(zip(*columns[:2], strict=True)) if is_video else []
    if not documents and not (is_video and is_patches):
        documents = [(sample_id, None)]

    labels = columns[2:] if is_video else columns
    for index, (document_id, frame_number) in enumerate(documents):
        if not is_patches:
            yield Part(document_id, document_id, frame_number)
            continue

        ids, shapes = ((column[index] if is_video else column) for column in labels)
        if isinstance(ids, str):  # a single label, not a list of labels
            ids, shapes = [ids], [shapes]

        for label_id, shape in zip(ids or [], shapes or [], strict=True):
            box = _bounding_box(shape) if _has_points(target) else shape or ()
            yield Part(label_id, document_id, frame_number, box)


def _has_points(target: Target) -> bool:
    return issubclass(target.label_type, (fol.Polyline, fol.Polylines))


def _bounding_box(shapes: Sequence[Any] | None) -> Box:
    points = list(itertools.chain.from_iterable(shapes or []))
    if not points:
        return ()

    (left, top), (right, bottom) = np.min(points, axis=0), np.max(points, axis=0)
    return left, top, right - left, bottom - top


def _is_file(path: str) -> bool:
    # FiftyOne counts frames with ffprobe, which would wait at a FIFO forever
    try:
        check_is_file(path)
    except (OSError, ValueError):
        return False

    return True


def _in_shard(sample_id: str, shard: tuple[int, int] | None) -> bool:
    # By the ID alone: processes that start at different times must agree
    return shard is None or zlib.crc32(sample_id.encode()) % shard[1] == shard[0]


def _flatten(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    else:
        for value in values or []:
            yield from _flatten(value)
