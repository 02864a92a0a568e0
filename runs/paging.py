"""Pages of samples, in the order of their IDs, and the index of those that are pending.

A page is one query of its own that starts behind the last ID of the page before, so that
no cursor can be lost, no list of all IDs exists, and what was listed is not listed again
while the run writes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from bson import ObjectId
from pymongo.errors import PyMongoError

from .fiftyone_internals import dataset_of, pipeline_of, sample_collection
from .target import Target

Pipeline = list[dict[str, Any]]
"""Stages of MongoDB's aggregation."""

_START = ObjectId("0" * 24)

# Fewer samples are read in no time
_MANY = 50_000

logger = logging.getLogger(__name__)


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


class Pages:
    """The samples of a dataset or view that exist now, page by page.

    Args:
        samples: the samples; see :func:`fiftyone_hiera.runs.views.can_be_paged`
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
            matching: MongoDB's condition for the samples that are listed, as they are
                stored
            fields: the fields to read besides the ID

        Yields:
            tuples of the documents of a page and of the IDs that it is between: it holds
            what is listed behind the first one, up to the second one
        """
        after = _START
        while after < self._newest:
            pipeline: Pipeline = [
                *self._between(after, self._newest, matching),
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
            ids = {"_id": {"$gt": after, "$lte": last}}
            return int(self._collection.count_documents(ids))

        between = self._between(after, last, {})
        found = self._collection.aggregate([*between, {"$count": "n"}])
        return sum(document["n"] for document in found)

    def _between(
        self, after: ObjectId, last: ObjectId, matching: dict[str, Any]
    ) -> Pipeline:
        return [
            {"$match": {"_id": {"$gt": after, "$lte": last}, **matching}},
            {"$sort": {"_id": 1}},
            *self._shard,
            *self._of_view,
        ]


def add_pending_index(target: Target) -> None:
    """Add MongoDB's index of pending images to a large dataset, in another thread.

    It is called "<field>_pending" and holds the IDs and paths of the samples that have no
    embedding. MongoDB keeps it up to date, whoever writes. Without it, as where the
    database refuses it, a run that resumes reads the documents of all samples before it
    finds the first that is pending.
    """
    collection = sample_collection(target.dataset)
    if collection.estimated_document_count() < _MANY:
        return

    def add() -> None:
        try:
            collection.create_index(
                [("_id", 1), ("filepath", 1)],
                name=f"{target.path}_pending",
                partialFilterExpression={target.path: None},
            )
        except PyMongoError as error:
            logger.info("No index of the samples without %r: %s", target.path, error)

    threading.Thread(target=add, name="hiera-index", daemon=True).start()
