"""Pages of samples, in the order of their IDs.

A page is one query of its own that starts behind the last ID of the page before, so that
no cursor can be lost, no list of all IDs exists, and what was listed is not listed again
while the run writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bson import ObjectId

from .fiftyone_internals import dataset_of, pipeline_of, sample_collection, stages_of

Pipeline = list[dict[str, Any]]
"""Stages of MongoDB's aggregation."""

_START = ObjectId("0" * 24)

# Stages that decide about each sample without the others. A limit, for instance, would
# begin anew on each page; lists of IDs would be sent with each
_PER_SAMPLE = {
    "ExcludeFields",
    "ExcludeLabels",
    "Exists",
    "FilterField",
    "FilterKeypoints",
    "FilterLabels",
    "LimitLabels",
    "MapLabels",
    "Match",
    "MatchFrames",
    "MatchLabels",
    "MatchTags",
    "SelectFields",
    "SelectLabels",
    "SetField",
    "SetLabelValues",
}
_FIRST = {"SelectGroupSlices"}  # elsewhere they turn samples into others of their groups


def can_be_paged(samples: Any) -> bool:
    """Return whether each page of a dataset or view can be read by itself."""
    names = [type(stage).__name__ for stage in stages_of(samples)]
    rest = names[1:] if names and names[0] in _FIRST else names
    return _PER_SAMPLE.issuperset(rest)


def in_shard(shard: tuple[int, int] | None) -> Pipeline:
    """Return the stages that keep the samples of a shard.

    Processes that start at different times must agree about it, so it depends on the ID
    alone: on the hash that MongoDB's hashed indexes use.

    Args:
        shard: the (index, count) of the shard; None keeps all samples
    """
    if shard is None:
        return []

    index, count = shard
    hashed = {"$abs": {"$toHashedIndexKey": "$_id"}}
    return [{"$match": {"$expr": {"$eq": [{"$mod": [hashed, count]}, index]}}}]


def add_stages(view: Any, samples: Any) -> Any:
    """Add the stages of a dataset or view that can be paged to a view of some samples."""
    for stage in stages_of(samples):
        if type(stage).__name__ not in _FIRST:
            view = view.add_stage(stage)

    return view


class Pages:
    """The samples of a dataset or view that exist now, page by page.

    Args:
        samples: the samples; see :func:`can_be_paged`
        shard: the shard; see :func:`in_shard`
    """

    def __init__(self, samples: Any, shard: tuple[int, int] | None) -> None:
        self._collection = sample_collection(dataset_of(samples))
        self._of_view = pipeline_of(samples)
        self._shard = in_shard(shard)
        newest = self._collection.find_one({}, ["_id"], sort=[("_id", -1)])
        self._newest: ObjectId = newest["_id"] if newest else _START

    def read(
        self, size: int, matching: dict[str, Any], fields: Sequence[str]
    ) -> Iterator[tuple[list[dict[str, Any]], ObjectId, ObjectId]]:
        """Read the pages.

        Args:
            size: the number of samples on a page
            matching: MongoDB's condition for the samples that are listed
            fields: the fields to read besides the ID

        Yields:
            tuples of the documents of a page and of the IDs that it is between: it holds
            what is listed behind the first one, up to the second one
        """
        after = _START
        while after < self._newest:
            pipeline: Pipeline = [
                *self._between(after, self._newest),
                {"$match": matching},
                {"$limit": size},
                {"$project": dict.fromkeys(["_id", *fields], True)},
            ]
            documents = list(self._collection.aggregate(pipeline, batchSize=size))
            is_last = len(documents) < size
            last = self._newest if is_last else documents[-1]["_id"]
            yield documents, after, last
            after = last

    def count(self, after: ObjectId, last: ObjectId) -> int:
        """Count the samples behind an ID, up to another one, listed or not."""
        if not self._of_view and not self._shard:
            between = {"_id": {"$gt": after, "$lte": last}}
            return int(self._collection.count_documents(between))

        found = self._collection.aggregate([*self._between(after, last), {"$count": "n"}])
        return sum(document["n"] for document in found)

    def _between(self, after: ObjectId, last: ObjectId) -> Pipeline:
        return [
            {"$match": {"_id": {"$gt": after, "$lte": last}}},
            {"$sort": {"_id": 1}},
            *self._shard,
            *self._of_view,
        ]
