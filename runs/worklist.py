"""List what a run embeds, page by page while it is embedded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import fiftyone.core.collections as foc
import fiftyone.core.media as fom
import fiftyone.core.utils as fou
from bson import ObjectId
from pymongo.errors import ExecutionTimeout

from ..embedding.jobs import Job, Part
from ..images.opening import check_is_file
from .fiftyone_internals import pipeline_of, sample_collection
from .index_feed import IndexFeed
from .paging import Pages, in_shard
from .parts import match_embeddings, read_jobs
from .target import Target
from .views import add_stages, can_be_paged, changes

# The number of samples on a page
_PAGE_SIZE = {fom.IMAGE: 500, fom.VIDEO: 5}

# How long to count what is pending before it is estimated
_COUNTING_MS = 300
_SAMPLED = 1000

_FRAME_COUNT = "metadata.total_frame_count"

_Snapshot = Mapping[str, Set[str]]
"""The IDs of parts by those of their samples; none for whole images."""


@dataclass(frozen=True)
class _Page:
    """Jobs, and the number of embeddings that exist between them and earlier ones."""

    jobs: Sequence[Job]
    skipped: int


class Worklist:
    """Lists what a run embeds.

    It is about the samples that exist when it is made. They are listed in the order of
    their IDs. Of views with stages such as ``limit``, ``take`` or ``sort_by``, the IDs are
    read at once, as they would change while the run writes; of all others, a page at a
    time. What is embedded is what the view shows: if it may be other than what is stored,
    it is read with the IDs. What has an embedding already is what has one in the database.

    Args:
        target: the samples and the field
        overwrite: whether to include what has an embedding already
        shard: the (index, count) of the shard; None is all samples
        index (None): where the embeddings are, if the target has no field

    Attributes:
        is_estimate: whether :attr:`total` is an estimate
        skipped: the number of existing embeddings found so far, complete when
            :meth:`list_jobs` is exhausted
    """

    def __init__(
        self,
        target: Target,
        *,
        overwrite: bool,
        shard: tuple[int, int] | None,
        index: IndexFeed | None = None,
    ) -> None:
        self._target = target
        # Without a field, all is listed, and then looked up in the index
        self._overwrite = overwrite or index is not None
        self._shard = shard
        self._page_size = _PAGE_SIZE[target.media_type]
        self._pending = {} if self._overwrite else {target.path: None}
        self._shown: dict[str, tuple[str, Part]] = {}  # paths and parts by the parts' IDs
        self._listed = 0
        self.skipped = 0
        self._pages = self._read_pages()
        self._expected, is_exact = self._count()
        # It was counted as the view shows it
        self.is_estimate = not is_exact or changes(target.samples, [target.path])
        if index is not None and not overwrite:
            self._pages = map(partial(_without_indexed, index), self._pages)
            if held := index.count():
                self._expected, self.is_estimate = max(0, self._expected - held), True

    @property
    def total(self) -> int:
        """The number of embeddings to compute, at first as counted or estimated."""
        return max(self._expected, self._listed)

    def list_jobs(self) -> Iterator[Job]:
        """List the jobs, the next page of them while the caller works on one.

        Yields:
            a :class:`Job` for each sample that has something to embed
        """
        with ThreadPoolExecutor(1, thread_name_prefix="hiera-list") as pool:
            following = pool.submit(next, self._pages, None)
            while (page := following.result()) is not None:
                following = pool.submit(next, self._pages, None)
                self._listed += sum(len(job.parts) for job in page.jobs)
                self.skipped += page.skipped
                yield from page.jobs

        self._expected, self.is_estimate = self._listed, False

    def _read_pages(self) -> Iterator[_Page]:
        if can_be_paged(self._target.samples):
            return self._page_parts() if self._target.has_parts else self._page_images()

        pages = self._page_snapshot(self._take_snapshot())
        return map(self._as_shown, pages) if self._shown else pages

    def _page_images(self) -> Iterator[_Page]:
        pages = Pages(self._target.samples, self._shard)
        for documents, after, last in pages.read(
            self._page_size, self._pending, ["filepath"]
        ):
            yield _Page([*map(_to_job, documents)], 0)

            # By the index of IDs: what has an embedding already is not read. The view may
            # be one that samples leave when they are embedded
            if not self._overwrite:
                yield _Page([], max(0, pages.count(after, last) - len(documents)))

    def _page_parts(self) -> Iterator[_Page]:
        pages = Pages(self._target.samples, self._shard)
        for documents, _, _ in pages.read(self._page_size, {}, []):
            yield self._look_up_parts([str(document["_id"]) for document in documents])

    def _page_snapshot(self, parts: _Snapshot) -> Iterator[_Page]:
        for ids in fou.iter_batches([*parts], self._page_size):
            if self._target.has_parts:
                yield self._look_up_parts(ids, parts)
                continue

            collection = sample_collection(self._target.dataset)
            among = {"_id": {"$in": [*map(ObjectId, ids)]}}
            documents = list(collection.find({**among, **self._pending}, ["filepath"]))
            is_there = collection.count_documents(among)
            yield _Page([*map(_to_job, documents)], is_there - len(documents))

    def _take_snapshot(self) -> _Snapshot:
        """Read the IDs of samples, and those of their parts if parts are embedded.

        If the view changes what is embedded, that is read, too.
        """
        target = self._target
        view = target.samples.mongo(in_shard(self._shard))
        if target.frames_prefix:
            self._add_frames(view.values("id"))

        if not target.changes_inputs:
            if target.has_parts:
                return _part_ids(target, view)

            return dict.fromkeys(view.values("id"), frozenset())

        snapshot: dict[str, set[str]] = {}
        for job in read_jobs(target, view):
            if not ObjectId.is_valid(job.sample_id):
                raise ValueError(
                    f"The view shows a sample {job.sample_id!r} that the dataset does not "
                    "store: pass a view without mongo() stages that make other samples"
                )

            snapshot.setdefault(job.sample_id, set()).update(part.id for part in job.parts)
            self._shown.update((part.id, (job.path, part)) for part in job.parts)

        for ids in fou.iter_batches([*snapshot], self._page_size):
            self._check_labels(ids, snapshot)

        return snapshot

    def _as_shown(self, page: _Page) -> _Page:
        """Replace the paths and parts of a page by those that the view shows."""
        jobs: list[Job] = []
        for job in page.jobs:
            parts: dict[str, list[Part]] = {}
            for stored in job.parts:
                path, part = self._shown.get(stored.id, (job.path, stored))
                parts.setdefault(path, []).append(part)

            jobs += [Job(job.sample_id, path, some) for path, some in parts.items()]

        return _Page(jobs, page.skipped)

    def _look_up_parts(self, ids: Sequence[str], wanted: _Snapshot | None = None) -> _Page:
        """Look up the parts of samples that a snapshot, or else the view's stages, keep."""
        target = self._target
        samples = target.samples if wanted is None else target.dataset
        frameless = self._add_frames(ids) if target.frames_prefix else []
        view = add_stages(target.select(ids), samples)
        there: _Snapshot = _part_ids(target, view)
        if wanted is not None:
            there = {id: parts & wanted[id] for id, parts in there.items()}
        elif target.changes_inputs:
            self._check_labels(ids, there)

        pending, listed = self._without_embeddings(view), there
        if changes(samples, [target.path]):
            stored = _part_ids(target, self._without_embeddings(target.select(ids)))
            pending = view
            listed = {id: parts & stored.get(id, set()) for id, parts in there.items()}

        jobs = [
            Job(job.sample_id, job.path, parts)
            for job in read_jobs(target, pending)
            if (parts := [part for part in job.parts if part.id in listed[job.sample_id]])
        ]
        skipped = sum(map(len, there.values())) - sum(len(job.parts) for job in jobs)
        if target.patches_field is None:
            # A video whose frames are unknown is listed as one part, which fails
            jobs += read_jobs(target, target.select(frameless))

        return _Page(jobs, skipped)

    def _check_labels(self, ids: Sequence[str], shown: _Snapshot) -> None:
        """Check that the labels of a view can hold embeddings: that they are stored."""
        target = self._target
        if target.patches_field is None:
            return

        for id, stored in _part_ids(target, target.select(ids)).items():
            if shown.get(id, set()) - stored:
                raise ValueError(
                    f"The view shows labels of sample {id} in {target.patches_field!r} "
                    "that the dataset does not store there: pass the field that stores "
                    "them as patches_field"
                )

    def _without_embeddings(self, view: foc.SampleCollection) -> foc.SampleCollection:
        if self._overwrite or not self._target.find_field():
            return view

        return match_embeddings(self._target, view, False)

    def _add_frames(self, ids: Sequence[str]) -> list[str]:
        """Give frames IDs in the database; return the videos whose frames are unknown."""
        videos = self._target.select(ids)
        uncounted = videos.exists(_FRAME_COUNT, False).values(["id", "filepath"])
        files = [id for id, path in zip(*uncounted, strict=True) if _is_file(path)]
        self._target.select(files).compute_metadata(progress=False)
        videos.exists(_FRAME_COUNT).ensure_frames()

        uncounted = videos.exists(_FRAME_COUNT, False).values(["id", "frames.id"])
        return [id for id, frames in zip(*uncounted, strict=True) if not frames]

    def _count(self) -> tuple[int, bool]:
        """Count or estimate what is pending; return the number and whether it is exact."""
        target = self._target
        if target.has_parts:
            view = self._without_embeddings(target.samples)
            return view.mongo(in_shard(self._shard)).count(f"{target.parts_prefix}id"), True

        collection = sample_collection(target.dataset)
        pending = [
            *pipeline_of(target.samples),
            *in_shard(self._shard),
            {"$match": self._pending},
            {"$count": "n"},
        ]
        with contextlib.suppress(ExecutionTimeout):
            found = collection.aggregate(pending, maxTimeMS=_COUNTING_MS)
            return sum(document["n"] for document in found), True

        sampled = collection.aggregate([{"$sample": {"size": _SAMPLED}}, *pending])
        share = sum(document["n"] for document in sampled) / _SAMPLED
        return round(share * collection.estimated_document_count()), False


def _without_indexed(index: IndexFeed, page: _Page) -> _Page:
    """Return a page without what is in an index already."""
    existing = index.existing([part.id for job in page.jobs for part in job.parts])
    rest = ((job, [p for p in job.parts if p.id not in existing]) for job in page.jobs)
    jobs = [Job(job.sample_id, job.path, parts) for job, parts in rest if parts]
    return _Page(jobs, page.skipped + len(existing))


def _part_ids(target: Target, view: foc.SampleCollection) -> dict[str, set[str]]:
    """Return the IDs of parts by sample, also of one that the view shows twice."""
    found: dict[str, set[str]] = {}
    for id, parts in zip(*view.values(["id", f"{target.parts_prefix}id"]), strict=True):
        found.setdefault(id, set()).update(_flatten(parts))

    return found


def _to_job(document: dict[str, Any]) -> Job:
    sample_id = str(document["_id"])
    return Job(sample_id, document.get("filepath") or "", [Part(sample_id, sample_id)])


def _is_file(path: str) -> bool:
    # FiftyOne counts frames with ffprobe, which would wait at a FIFO forever
    try:
        check_is_file(path)
    except (OSError, ValueError):
        return False

    return True


def _flatten(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    else:
        for value in values or []:
            yield from _flatten(value)
