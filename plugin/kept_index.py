"""The index of the last search, kept for the next one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..indexes.backends import SKLEARN
from ..runs.fiftyone_internals import (
    all_slices,
    dataset_id,
    label_path,
    sample_collection,
)

# The most samples whose vectors are compared with the database, not all read again
_MAX_CHANGED = 1000


class KeptIndex:
    """Loads similarity indexes, for one thread at a time, with the vectors of the database.

    FiftyOne's "sklearn" index centers its vectors in place when it is queried by ID or
    looks for duplicates; any later query by a vector is wrong. So the index that FiftyOne
    itself keeps is not used, and the last one loaded here is kept apart from it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: object = None
        self._state: tuple[int, Any] = (0, None)
        self._index: Any = None

    @contextlib.contextmanager
    def use(self, dataset: Any, brain_key: str) -> Iterator[Any]:
        """Load an index, or bring the last one up to date.

        Args:
            dataset: the dataset
            brain_key: the brain key of the index

        Yields:
            a :class:`fiftyone.brain.similarity.SimilarityIndex`, to be queried by vectors
            in this context only
        """
        info = dataset.get_brain_info(brain_key)
        if info.config.method != SKLEARN:
            yield dataset.load_brain_results(brain_key)
            return

        with self._lock:
            key = (dataset_id(dataset), brain_key, info.timestamp)
            state = _read_state(dataset)
            if key != self._key or not self._update(dataset, state):
                self._key = self._index = None
                self._index = dataset.load_brain_results(
                    brain_key, cache=False, load_view=False
                )
                self._key = key

            self._state = state
            yield self._index

    def _update(self, dataset: Any, state: tuple[int, Any]) -> bool:
        """Read vectors that changed; return False if all must be read."""
        config = self._index.config
        if state == self._state or config.embeddings_field is None:
            return True

        if state[0] != self._state[0]:
            return False

        # The clocks of two writers may give the same time
        changed = {"last_modified_at": {"$gte": self._state[1]}}
        found = sample_collection(dataset).find(changed, ["_id"], limit=_MAX_CHANGED + 1)
        ids = [str(document["_id"]) for document in found]
        if len(ids) > _MAX_CHANGED:
            return False

        held = _read_vectors(dataset, config, ids)
        is_label = config.patches_field is not None
        row_ids = self._index.label_ids if is_label else self._index.sample_ids
        rows = np.flatnonzero(np.isin(self._index.sample_ids, ids))
        if {*row_ids[rows]} != held.keys():
            return False

        dim = self._index.embeddings.shape[1]
        if any(len(vector) != dim for vector in held.values()):
            return False

        for row in rows:
            self._index.embeddings[row] = held[row_ids[row]]

        return True


def _read_vectors(dataset: Any, config: Any, sample_ids: list[str]) -> dict[str, Any]:
    """Read the vectors of samples, or of their labels, that have one, by ID."""
    root = ""
    if config.patches_field is not None:
        root = f"{label_path(dataset, config.patches_field)[1]}."

    paths = [f"{root}id", f"{root}{config.embeddings_field}"]
    ids, vectors = all_slices(dataset).select(sample_ids).values(paths, unwind=True)
    pairs = zip(ids, vectors, strict=True)
    return {id: vector for id, vector in pairs if vector is not None}


def _read_state(dataset: Any) -> tuple[int, Any]:
    """Return the number of samples, and the last time that one was modified."""
    samples = sample_collection(dataset)
    last = samples.find_one({}, ["last_modified_at"], sort=[("last_modified_at", -1)])
    return samples.estimated_document_count(), (last or {}).get("last_modified_at")
