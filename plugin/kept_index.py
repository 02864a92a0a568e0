"""Load the index of a search, and keep it for the next one."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from ..indexes.backends import SKLEARN
from ..runs.fiftyone_internals import all_slices, dataset_id, sample_collection
from ..runs.index_model import embeddings_path

# The most samples whose vectors are compared with the database, not all read again
_MAX_CHANGED = 1000

# Writers that begin before a search may end after it, and clocks differ
_MARGIN = timedelta(seconds=5)


class KeptIndex:
    """Loads similarity indexes, for one thread at a time, with the vectors of the database.

    FiftyOne's "sklearn" index centers its vectors in place when it is queried by ID or
    looks for duplicates; any later query by a vector is wrong. So the index that FiftyOne
    itself keeps is not used, and the last one loaded here is kept apart from it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: object = None
        self._since: datetime | None = None
        self._index: Any = None

    @contextlib.contextmanager
    def use(self, dataset: Any, brain_key: str) -> Iterator[Any]:
        """Load an index, or bring the last one up to date.

        Yields:
            a :class:`fiftyone.brain.similarity.SimilarityIndex`, to be queried by vectors
            in this context only

        Raises:
            ValueError: if the run that was to make the index did not end
        """
        info = dataset.get_brain_info(brain_key)
        if info.config.method != SKLEARN:
            yield _load(dataset, brain_key)
            return

        path = embeddings_path(dataset, info.config)
        if path is not None and dataset.get_field(path) is None:
            raise ValueError(
                f"The index {brain_key!r} is of the field {path!r}, which does not exist: "
                "compute it again"
            )

        with self._lock:
            samples = sample_collection(dataset)
            count, since = samples.estimated_document_count(), _now(samples)
            key = (dataset_id(dataset), brain_key, info.timestamp, count)
            if key != self._key or not self._update(dataset, path):
                self._key = self._index = None
                self._index = _load_vectors(dataset, brain_key, path)
                self._key = key

            self._since = since
            yield self._index

    def _update(self, dataset: Any, path: str | None) -> bool:
        """Read vectors that changed; return False if all must be read."""
        if path is None:
            return True

        changed = {"last_modified_at": {"$gt": self._since}}
        found = sample_collection(dataset).find(changed, ["_id"], limit=_MAX_CHANGED + 1)
        ids = [str(document["_id"]) for document in found]
        if len(ids) > _MAX_CHANGED:
            return False

        held = _read_vectors(all_slices(dataset).select(ids), path)
        is_label = self._index.config.patches_field is not None
        row_ids = self._index.label_ids if is_label else self._index.sample_ids
        rows = np.flatnonzero(np.isin(self._index.sample_ids, ids))
        if {*row_ids[rows]} != held.keys():
            return False

        dim = self._index.embeddings.shape[1]
        if any(len(row) != dim or not np.isfinite(row).all() for row in held.values()):
            return False

        for row in rows:
            self._index.embeddings[row] = held[row_ids[row]]

        return True


def _load(dataset: Any, brain_key: str, **kwargs: Any) -> Any:
    index = dataset.load_brain_results(brain_key, **kwargs)
    if index is None:
        raise ValueError(f"The index {brain_key!r} is not complete: compute it again")

    return index


def _load_vectors(dataset: Any, brain_key: str, path: str | None) -> Any:
    """Load an index whose vectors are in a field, or in the run if there is no path."""
    try:
        index = _load(dataset, brain_key, cache=False, load_view=False)
        if np.isfinite(index.embeddings).all():
            return index

        reason = "some of its vectors are not finite"
    except ValueError as error:
        reason = str(error)

    if path is not None:
        vectors = _read_vectors(all_slices(dataset), path)
        ((dim, _),) = Counter(map(len, vectors.values())).most_common(1)
        for id, row in vectors.items():
            if len(row) != dim or not np.isfinite(row).all():
                reason = (
                    f"the vector of {id} in {path!r} has {len(row)} numbers, of which "
                    f"{np.isfinite(row).sum()} are finite, and most others have {dim}. "
                    "Remove it, and call embed_samples() again"
                )
                break

    raise ValueError(f"The index {brain_key!r} cannot be searched: {reason}")


def _read_vectors(samples: Any, path: str) -> dict[str, Any]:
    """Read the vectors of samples, or of their labels, that have one, by ID."""
    paths = [f"{path.rpartition('.')[0]}.id".removeprefix("."), path]
    pairs = zip(*samples.values(paths, unwind=True), strict=True)
    return {id: vector for id, vector in pairs if vector is not None}


def _now(samples: Any) -> datetime:
    """Return a time that later writes are behind, whichever clock they are timed by."""
    now = datetime.now(UTC).replace(tzinfo=None) - _MARGIN
    last = samples.find_one({}, ["last_modified_at"], sort=[("last_modified_at", -1)])
    return min(now, (last or {}).get("last_modified_at") or now)
