"""Tables of vectors, one row per image or patch, as FiftyOne's index classes read them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

Keys = list[tuple[str, str]]
"""Pairs of the ID of a row and the ID of its sample; the same for a whole image."""


class VectorTable(Protocol):
    """The table of an index.

    Attributes:
        rows_at_once: the fewest rows that are worth a write of their own
    """

    rows_at_once: int

    def dim(self) -> int | None:
        """Return the number of dimensions; None if there is no table yet.

        Raises:
            ValueError: if there is one of that name with other columns
        """

    def count(self) -> int:
        """Count the rows."""

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Return those of some IDs that have a row."""

    def keys(self) -> Iterator[Keys] | None:
        """Read the IDs of all rows in pages; None if the backend cannot."""

    def upsert(
        self, ids: Sequence[str], sample_ids: Sequence[str], vectors: Vectors
    ) -> None:
        """Write rows, instead of those with the same IDs."""

    def delete(self, ids: Sequence[str]) -> None:
        """Delete rows; no-op for IDs that have none."""

    def finish(self) -> None:
        """Prepare for searches, after many writes."""

    def drop(self) -> None:
        """Delete the table."""

    def close(self) -> None:
        """Close the connections."""


def open_table(index: Any) -> VectorTable:
    """Open the table of an index.

    Args:
        index: the :class:`fiftyone.brain.similarity.SimilarityIndex`

    Returns:
        a :class:`VectorTable`
    """
    method = index.config.method
    if method == "pgvector":
        from .pgvector import PgVectorTable

        return PgVectorTable(index)

    if method == "milvus":
        from .milvus import MilvusTable

        return MilvusTable(index)

    if method == "lancedb":
        from .lancedb import LanceDBTable

        return LanceDBTable(index)

    return IndexTable(index)


def check_columns(name: str, found: Collection[str], expected: Collection[str]) -> None:
    """Check that a table has the columns of FiftyOne's class.

    Raises:
        ValueError: if it has not
    """
    if {*found} != {*expected}:
        raise ValueError(
            f"The table {name!r} exists with other columns, {[*found]}: choose another name"
        )


def read_rows(index: Any, ids: Sequence[str]) -> dict[str, Any]:
    """Read rows by FiftyOne's class.

    Args:
        index: see :func:`open_table`
        ids: their IDs

    Returns:
        a dict from IDs to vectors
    """
    vectors, sample_ids, label_ids = index.get_embeddings(**_by_id(index, ids))
    found = sample_ids if index.config.patches_field is None else label_ids
    return dict(zip(map(str, found), vectors, strict=True))


def _by_id(index: Any, ids: Sequence[str]) -> dict[str, list[str]]:
    """Return the argument by which the methods of FiftyOne's classes take IDs of rows."""
    name = "sample_ids" if index.config.patches_field is None else "label_ids"
    return {name: list(ids)}


class IndexTable:
    """The table of any other backend, by the methods of FiftyOne's index class alone.

    Args:
        index: see :func:`open_table`
    """

    rows_at_once = 1024

    def __init__(self, index: Any) -> None:
        self._index = index

    def dim(self) -> int | None:
        """See :class:`VectorTable`; always None, as the classes have no method for it."""
        return None

    def count(self) -> int:
        """See :class:`VectorTable`."""
        return int(self._index.total_index_size)

    def existing(self, ids: Sequence[str]) -> set[str]:
        """See :class:`VectorTable`."""
        if not self.count():
            return set()

        return {*read_rows(self._index, ids)}

    def keys(self) -> Iterator[Keys] | None:
        """See :class:`VectorTable`; always None, as the classes would read all vectors."""
        return None

    def upsert(
        self, ids: Sequence[str], sample_ids: Sequence[str], vectors: Vectors
    ) -> None:
        """See :class:`VectorTable`."""
        # Some classes insert an ID once more instead of overwriting it
        self.delete([*self.existing(ids)])
        keys = {"sample_ids": list(sample_ids), **_by_id(self._index, ids)}
        self._index.add_to_index(vectors, **keys, reload=False)

    def delete(self, ids: Sequence[str]) -> None:
        """See :class:`VectorTable`."""
        if ids:
            self._index.remove_from_index(**_by_id(self._index, ids), reload=False)

    def finish(self) -> None:
        """See :class:`VectorTable`."""

    def drop(self) -> None:
        """See :class:`VectorTable`."""
        self._index.cleanup()

    def close(self) -> None:
        """See :class:`VectorTable`."""
