"""Tables of vectors, one row per image or patch, as FiftyOne's index classes read them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

Keys = list[tuple[str, str]]
"""Pairs of the ID of a row and the ID of its sample; the same for a whole image."""


class VectorTable:
    """The table of an index of any backend, read and written by FiftyOne's class alone.

    Subclasses use the client of their database instead.

    Args:
        index: the :class:`fiftyone.brain.similarity.SimilarityIndex`

    Attributes:
        rows_at_once: the fewest rows that are worth a write of their own
    """

    rows_at_once = 1024

    def __init__(self, index: Any) -> None:
        self._index = index

    def dim(self) -> int | None:
        """Return the number of dimensions; None if there is no table yet, or if unknown.

        Raises:
            ValueError: if there is a table of that name with other columns
        """
        return None

    def count(self) -> int:
        """Count the rows."""
        return int(self._index.total_index_size)

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Return those of some IDs that have a row."""
        return {*self.read(ids)} if self.count() else set()

    def keys(self) -> Iterator[Keys] | None:
        """Read the IDs of all rows in pages; None if the backend cannot list them."""
        return None  # FiftyOne's classes would read all vectors

    def read(self, ids: Sequence[str]) -> dict[str, Any]:
        """Read the vectors of those of some IDs that have a row, by ID."""
        found = self._index.get_embeddings(**{self._id_argument: [*ids]})
        vectors, sample_ids, label_ids = found
        found_ids = label_ids if self._id_argument == "label_ids" else sample_ids
        return dict(zip(map(str, found_ids), vectors, strict=True))

    def upsert(
        self, ids: Sequence[str], sample_ids: Sequence[str], vectors: Vectors
    ) -> None:
        """Write rows, instead of those with the same IDs."""
        # Some classes insert an ID once more instead of overwriting it
        self.delete([*self.existing(ids)])
        self._add(ids, sample_ids, vectors)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete rows; no-op for IDs that have none."""
        if ids:
            self._index.remove_from_index(**{self._id_argument: [*ids]}, reload=False)

    def finish(self) -> None:
        """Prepare for searches, after many writes."""

    def drop(self) -> None:
        """Delete the table."""
        self._index.cleanup()

    def close(self) -> None:
        """Close the connections."""

    @property
    def _id_argument(self) -> str:
        """The argument by which the methods of FiftyOne's classes take IDs of rows."""
        return "label_ids" if self._index.config.patches_field else "sample_ids"

    def _add(self, ids: Sequence[str], sample_ids: Sequence[str], vectors: Vectors) -> None:
        """Add rows by FiftyOne's class."""
        arguments = {"sample_ids": [*sample_ids], self._id_argument: [*ids]}
        self._index.add_to_index(vectors, **arguments, reload=False)


def check_columns(name: str, found: Collection[str], expected: Collection[str]) -> None:
    """Check that a table has the columns of FiftyOne's class.

    Raises:
        ValueError: if it has not
    """
    if {*found} != {*expected}:
        raise ValueError(
            f"The table {name!r} exists with other columns, {[*found]}: choose another name"
        )
