"""Compare a few embeddings in a field with those that a model computes, and adopt a field.

The provenance in a field's info tells which model computed them, but embeddings can come
into the field by other ways: by a merge of datasets, a clone, an import, or
``compute_embeddings``.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np

from ..embedding.arguments import to_integer
from ..embedding.embedder import Embedder
from ..embedding.jobs import Job, Part
from ..embedding.prefetch import Input, read_ahead
from .field_claim import FieldClaim
from .fiftyone_internals import all_slices, sample_collection
from .paging import Pipeline
from .parts import match_embeddings, read_jobs
from .target import Target

logger = logging.getLogger(__name__)

# A child of FiftyOne's own logger, whose handler and level apply to it
_shown_logger = logging.getLogger("fiftyone.hiera")

# How many samples to try for each embedding, if files cannot be read
_SPARE = 4

# Larger datasets are sampled before it is known which samples have an embedding; so many
# samples for each that is wanted
_MANY = 20_000
_SAMPLED = 200

# The largest relative distances that rounding makes. Measured between batch sizes, engines
# and dtypes: 1e-6 in float32, 5e-3 in bfloat16, 7e-4 in float16; GPUs round otherwise.
# Other poolings and preprocessings are 5e-2 and more away
_TOLERANCES = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 5e-3}


def find_mismatch(target: Target, embedder: Embedder, count: int) -> str | None:
    """Find an embedding in a field that is not a model's, comparing at most ``count``.

    Returns:
        a sentence about the first such embedding, or None
    """
    if not count or not target.find_field():
        return None

    if inputs := _pick_inputs(target, embedder, count):
        return _compare(target, embedder, inputs)

    if _first_jobs(target):
        logger.warning(
            "The embeddings in %r were not checked: none of the files that were tried can "
            "be read",
            target.path,
        )

    return None


def adopt(target: Target, embedder: Embedder, verify: int) -> None:
    """Record a model's provenance for the embeddings that a field holds.

    It is recorded after ``verify`` of them, at least 1, were compared with the model's.

    Raises:
        ValueError: if an embedding is not the model's, if none can be compared, or if the
            field is read-only
    """
    count = to_integer("verify", verify, 1)
    claim = FieldClaim(target, embedder.provenance)
    held, _ = target.count_embeddings()
    if not held:
        raise ValueError(f"The field {target.path!r} holds no embeddings")

    inputs = _pick_inputs(target, embedder, count, is_thorough=True)
    if not inputs:
        raise ValueError(
            f"Cannot check the embeddings in {target.path!r}: none of the files that were "
            "tried can be read"
        )

    mismatch = _compare(target, embedder, inputs)
    if mismatch is not None:
        raise ValueError(f"{mismatch} Nothing was recorded.")

    claim.adopt()
    _shown_logger.info(
        "Adopted the %d embeddings in %r, after comparing %d of them",
        held,
        target.path,
        len(inputs),
    )


def _pick_inputs(
    target: Target, embedder: Embedder, count: int, *, is_thorough: bool = False
) -> list[Input]:
    """Read some of the images whose embeddings are in a field.

    They are those of the samples with the first and the last ID, and of others at random,
    of which only some are tried if there are many, unless ``is_thorough``. Those whose
    files cannot be read are left out for others. Of a view that shows other inputs than
    those stored, they are its own.
    """
    found = (
        _first_jobs(target),
        _last_jobs(target),
        _random_jobs(target, _SPARE * count, is_thorough=is_thorough),
    )
    inputs: dict[str, Input] = {}
    for index, jobs in enumerate(found):
        most = min(count, index + 1) if index < 2 else count
        for job in jobs:
            if len(inputs) == most:
                break

            part = _pick_part(job, index)
            read = None if part.id in inputs else _read(job, part, embedder)
            if isinstance(read, Input):
                inputs[part.id] = read

    return [*inputs.values()]


def _compare(target: Target, embedder: Embedder, inputs: list[Input]) -> str | None:
    """Embed inputs again and compare with a field; see :func:`find_mismatch`."""
    embeddings = embedder.embed([item.pixels for item in inputs])
    held = target.read([(item.job.sample_id, item.part) for item in inputs])
    tolerance = _TOLERANCES[embedder.provenance["dtype"]]
    for item, embedding in zip(inputs, embeddings, strict=True):
        stored = held.get(item.part.id)
        if stored is None:
            continue  # deleted meanwhile

        difference = _differ(stored, embedding, tolerance)
        if difference is not None:
            return (
                f"The embedding of {item.part.id} ({item.job.path!r}) in the field "
                f"{target.path!r} is not this model's, or the file has changed since: "
                f"{difference}."
            )

    return None


def _first_jobs(target: Target) -> list[Job]:
    return _find_jobs(target, [{"$sort": {"_id": 1}}], [{"$limit": _SPARE}])


def _last_jobs(target: Target) -> list[Job]:
    # Behind the last ones, embedded samples may be far
    last: Pipeline = [{"$sort": {"_id": -1}}, {"$limit": _MANY}]
    return _find_jobs(target, last, [{"$limit": _SPARE}])


def _random_jobs(target: Target, count: int, *, is_thorough: bool) -> list[Job]:
    many = sample_collection(target.dataset).estimated_document_count() > _MANY
    if many and not is_thorough:
        few: Pipeline = [{"$sample": {"size": _SAMPLED * count}}]
        return _find_jobs(target, few, [{"$limit": count}])

    return _find_jobs(target, [], [{"$sample": {"size": count}}])


def _find_jobs(target: Target, among: Pipeline, pick: Pipeline) -> list[Job]:
    """Find samples with embeddings, among some of them, and pick a few.

    They are of the whole dataset. If a view shows other inputs than those stored, they are
    of the view: nothing says which inputs other embeddings in the field are of.
    """
    samples = target.samples if target.changes_inputs else all_slices(target.dataset)
    held = match_embeddings(target, samples.mongo(among), True)
    return [job for job in read_jobs(target, held.mongo(pick)) if job.parts]


def _pick_part(job: Job, index: int) -> Part:
    # A late frame would take the time to decode those before it
    if job.parts[0].frame_number is not None:
        return job.parts[min(index, len(job.parts) - 1)]

    return random.choice(job.parts) if index == 2 else job.parts[-index]


def _read(job: Job, part: Part, embedder: Embedder) -> object:
    jobs = [Job(job.sample_id, job.path, [part])]
    is_video = part.frame_number is not None
    reads = read_ahead(
        jobs, embedder.preprocessing, is_video=is_video, num_workers=0, ahead=1
    )
    return next(reads)


def _differ(held: Any, embedding: Any, tolerance: float) -> str | None:
    """Say how an embedding differs from that of a model, or return None."""
    held = np.asarray(held, np.float64)
    if held.shape != embedding.shape:
        return f"it has {held.size} dimensions, not {embedding.size}"

    length = float(np.linalg.norm(embedding))
    distance = float(np.linalg.norm(held - embedding)) / max(length, 1e-12)
    if distance <= tolerance:
        return None

    return f"its relative distance is {distance:.2g}, where rounding makes {tolerance:g}"
