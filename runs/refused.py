"""Find the documents that MongoDB refuses to change, whenever it is asked."""

from __future__ import annotations

from typing import Any

from bson import ObjectId
from pymongo.errors import BulkWriteError

MOST_BYTES = 16_777_216
"""The most bytes that a document may have."""

# The codes of MongoDB's errors
_TOO_LARGE = {10334, 17419, 17420}
_INVALID = {121}


def refused_ids(error: Exception) -> dict[str, str | None]:
    """Find what MongoDB refused in a write of FiftyOne; all else may be stored.

    Args:
        error: the error of the write

    Returns:
        a dict from the IDs of labels in lists, or else of documents, to the reason; it is
        None where the document would become too large. Empty if the error is another one,
        such as a lost database
    """
    cause = error.__cause__
    if not isinstance(cause, BulkWriteError):
        return {}

    refused: dict[str, str | None] = {}
    for details in cause.details["writeErrors"]:
        if details["code"] in _TOO_LARGE | _INVALID:
            (label,) = details["op"].get("arrayFilters") or [{}]
            id = label.get("label._id") or details["op"]["q"]["_id"]
            is_large = details["code"] in _TOO_LARGE
            refused[str(id)] = None if is_large else str(details["errmsg"])

    return refused


def document_size(collection: Any, document_id: str) -> int:
    """Return the number of bytes of a document; 0 if it was deleted."""
    found = collection.aggregate(
        [
            {"$match": {"_id": ObjectId(document_id)}},
            {"$project": {"size": {"$bsonSize": "$$ROOT"}}},
        ]
    )
    return sum(document["size"] for document in found)
