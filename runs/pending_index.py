"""The index of the samples that have no embedding, by which a run finds them at once.

Without it, a run that resumes reads the documents of all samples before it finds the
first that is pending. MongoDB keeps the index as embeddings are stored, removed or
cleared by hand, so it is always right.
"""

from __future__ import annotations

import logging
import threading

from pymongo.errors import PyMongoError

from .fiftyone_internals import sample_collection
from .target import Target

# Fewer samples are read in no time
_MANY = 50_000

logger = logging.getLogger(__name__)


def add_pending_index(target: Target) -> None:
    """Add the index of a field to a large dataset, in another thread.

    It is called "<field>_pending" and holds the IDs and paths of the samples that have no
    embedding. Where the database refuses, runs work without it.

    Args:
        target: the field, of whole images
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
