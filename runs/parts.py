"""Look up the parts of samples, and match those with or without an embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fiftyone.core.collections as foc
from fiftyone import ViewField as F

from ..embedding.jobs import Job, Part
from ..embedding.patches import Box, enclosing_box, to_box
from .fiftyone_internals import all_slices, sample_collection, stored_values
from .paging import Pages
from .target import Target

# The numbers of samples whose parts are looked up at once
_IMAGES, _WITH_PARTS = 5000, 500


def read_jobs(target: Target, view: foc.SampleCollection) -> Iterator[Job]:
    """Look up the path of each sample of a view, and all parts that the view shows."""
    columns = stored_values(view, target.input_paths)
    for sample_id, path, *rest in zip(*columns, strict=True):
        yield Job(sample_id, path or "", list(_read_parts(target, sample_id, rest)))


def stored_parts(target: Target) -> Iterator[list[tuple[str, Part]]]:
    """Look up the parts that have embeddings in a field, in the whole dataset.

    Yields:
        pages of the parts, each with the ID of its sample
    """
    pages = Pages(all_slices(target.dataset), None)
    if target.has_parts:
        for documents, _, _ in pages.read(_WITH_PARTS, {}, []):
            ids = [str(document["_id"]) for document in documents]
            jobs = read_jobs(target, match_embeddings(target, target.select(ids), True))
            yield [(job.sample_id, part) for job in jobs for part in job.parts]

        return

    collection = sample_collection(target.dataset)
    for documents, after, last in pages.read(_IMAGES, {}, []):
        # By the indexes of IDs and of what is pending: no embedding is read
        pending = {"_id": {"$gt": after, "$lte": last}, target.path: None}
        without = {document["_id"] for document in collection.find(pending, ["_id"])}
        ids = [str(d["_id"]) for d in documents if d["_id"] not in without]
        yield [(id, Part(id, id)) for id in ids]


def match_embeddings(
    target: Target, samples: foc.SampleCollection, exists: bool
) -> foc.SampleCollection:
    """Match the samples, frames or labels that have an embedding, or those without one."""
    condition = F(target.name).exists(exists)
    if target.patches_field is not None:
        return samples.filter_labels(target.patches_field, condition)

    if target.frames_prefix:
        return samples.match_frames(condition)

    return samples.exists(target.name, exists)


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
            yield Part(label_id, document_id, frame_number, _read_box(target, shape))


def _read_box(target: Target, shape: Any) -> Box | str:
    """Return the box of a label, or why it has none."""
    try:
        return enclosing_box(shape) if target.has_points else to_box(shape)
    except ValueError as error:
        return str(error)
