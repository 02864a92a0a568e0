"""Spot checks: whether the embeddings in a field are those that a model computes.

The provenance in a field's info says so, but embeddings can come into the field by other
ways: by a merge of datasets, a clone, an import, or ``compute_embeddings``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from bson import ObjectId

from ..embedding.embedder import Embedder
from ..embedding.jobs import Job, Part
from ..embedding.prefetch import Input, read_images, read_videos
from .fiftyone_internals import all_slices, sample_collection
from .parts import match_embeddings, read_jobs
from .target import Target

# How many files to try for an embedding, if they cannot be read
_FILES = 4

# How many samples to search for an embedding at a place, and how many places to try
_NEARBY = 2000
_PLACES = 4

# The largest relative distances that rounding makes. Measured between batch sizes, engines
# and dtypes: 1e-6 in float32, 5e-3 in bfloat16, 7e-4 in float16; GPUs round otherwise.
# Other poolings and preprocessings are 5e-2 and more away
_TOLERANCES = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 5e-3}


def find_mismatch(target: Target, embedder: Embedder, count: int) -> str | None:
    """Embed a few images of a field again, and compare.

    The embeddings are spread over the field in the order of the samples' IDs. Those whose
    files cannot be read are left out for others.

    Args:
        target: the field
        embedder: the model
        count: the number of embeddings to compare

    Returns:
        a sentence about the first embedding that is not the model's, or None
    """
    return compare(target, embedder, pick_inputs(target, embedder, count))


def pick_inputs(target: Target, embedder: Embedder, count: int) -> list[Input]:
    """Read some of the images whose embeddings are in a field.

    Args:
        target: the field
        embedder: the model
        count: the number of embeddings

    Returns:
        the inputs; fewer if there are fewer embeddings, or if files cannot be read
    """
    inputs: dict[str, Input] = {}
    for share, jobs in _spread(target, count):
        if len(inputs) == count:
            break

        for job in jobs:
            part = _pick_part(job, share, len(inputs), is_video=bool(target.frames_prefix))
            if part.id in inputs:
                continue

            read = _read(job, part, embedder)
            if isinstance(read, Input):
                inputs[part.id] = read
                break

    return [*inputs.values()]


def compare(target: Target, embedder: Embedder, inputs: list[Input]) -> str | None:
    """Compare embeddings in a field with those of a model.

    Args:
        target: the field
        embedder: the model
        inputs: the inputs of the embeddings

    Returns:
        see :func:`find_mismatch`
    """
    if not inputs:
        return None

    embeddings = embedder.embed([item.pixels for item in inputs])
    sample_ids = [item.job.sample_id for item in inputs]
    held = target.read(sample_ids, [item.part for item in inputs])
    dtype = embedder.provenance["dtype"]
    for item, embedding in zip(inputs, embeddings, strict=True):
        stored = held.get(item.part.id)
        if stored is None:
            continue  # deleted meanwhile

        difference = _differ(stored, embedding, _TOLERANCES[dtype])
        if difference is not None:
            return (
                f"The embedding of {item.part.id} ({item.job.path!r}) in the field "
                f"{target.path!r} is not this model's, or the file has changed since: "
                f"{difference}."
            )

    return None


def _spread(target: Target, count: int) -> Iterator[tuple[Fraction, list[Job]]]:
    """Yield places from 0 to 1 among the IDs, and samples with embeddings there."""
    if not count or not target.find_field():
        return

    first = _read_jobs(target, [{"$sort": {"_id": 1}}])
    if not first:
        return

    yield Fraction(0), first

    # At IDs, not at rows: finding the n-th row would read all rows before it
    newest = sample_collection(target.dataset).find_one({}, ["_id"], sort=[("_id", -1)])
    low, high = int(first[0].sample_id, 16), int(str(newest["_id"]), 16)
    nearby = {"$limit": _NEARBY}
    yield Fraction(1), _read_jobs(target, [{"$sort": {"_id": -1}}, nearby])
    for share in itertools.islice(_shares(), _PLACES * count):
        start = ObjectId(f"{low + int((high - low) * share):024x}")
        behind = {"$match": {"_id": {"$gte": start}}}
        yield share, _read_jobs(target, [behind, {"$sort": {"_id": 1}}, nearby])


def _shares() -> Iterator[Fraction]:
    """Yield 1/2, 1/4, 3/4, 1/8, 3/8, ..."""
    for power in itertools.count(1):
        yield from (Fraction(odd, 2**power) for odd in range(1, 2**power, 2))


def _read_jobs(target: Target, pipeline: list[dict[str, Any]]) -> list[Job]:
    samples = all_slices(target.dataset).mongo(pipeline)
    view = match_embeddings(target, samples, True).limit(_FILES)
    return [job for job in read_jobs(target, view) if job.parts]


def _pick_part(job: Job, share: Fraction, index: int, *, is_video: bool) -> Part:
    # A late frame would take the time to decode those before it
    last = len(job.parts) - 1
    return job.parts[min(index, last) if is_video else int(last * share)]


def _read(job: Job, part: Part, embedder: Embedder) -> object:
    read = read_images if part.frame_number is None else read_videos
    jobs = [Job(job.sample_id, job.path, [part])]
    reads = read(jobs, embedder.preprocessing, num_workers=0, ahead=1)
    return next(itertools.chain.from_iterable(reads))


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
