"""The table of a LanceDB index, written by merges of many rows.

Before brain 0.26, FiftyOne's class reads and writes the whole table each time that it adds
rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa

from .table import Keys, Vectors, check_columns

_PAGE_SIZE = 10_000

# Each write is a file and a version that lists all files: after so many, compact them
_WRITES = 64

# So many tables lists lancedb 0.40 unless it is told otherwise, in the order of their names
_LISTED = 10


class LanceDBTable:
    """See :class:`fiftyone_hiera.indexes.table.VectorTable`.

    Args:
        index: a :class:`fiftyone.brain.internal.core.lancedb.LanceDBSimilarityIndex`
    """

    rows_at_once = 1024

    def __init__(self, index: Any) -> None:
        self._index = index
        self._name: str = index.config.table_name
        self._database = _connect(index.config)
        self._writes = 0
        self._table: Any = None
        with contextlib.suppress(ValueError):  # if there is none
            self._table = self._database.open_table(self._name)

        if not _is_new(index.config):
            self._check_listed()

    def dim(self) -> int | None:
        """See the base."""
        if self._table is None:
            return None

        check_columns(self._name, self._table.schema.names, ("id", "sample_id", "vector"))
        return int(self._table.schema.field("vector").type.list_size)

    def count(self) -> int:
        """See the base."""
        return 0 if self._table is None else int(self._table.count_rows())

    def existing(self, ids: Sequence[str]) -> set[str]:
        """See the base."""
        if self._table is None or not ids:
            return set()

        rows = self._table.search().where(_among(ids)).select(["id"]).limit(len(ids))
        return {*rows.to_arrow()["id"].to_pylist()}

    def keys(self) -> Iterator[Keys]:
        """See the base."""
        if self._table is None:
            return

        rows = self._table.search().select(["id", "sample_id"]).limit(self.count())
        for batch in rows.to_batches(_PAGE_SIZE):
            columns = (batch["id"].to_pylist(), batch["sample_id"].to_pylist())
            yield [*zip(*columns, strict=True)]

    def upsert(
        self, ids: Sequence[str], sample_ids: Sequence[str], vectors: Vectors
    ) -> None:
        """See the base."""
        numbers = pa.array(vectors.reshape(-1), pa.float32())
        rows = pa.table(
            {
                "id": pa.array(ids, pa.string()),
                "sample_id": pa.array(sample_ids, pa.string()),
                "vector": pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1]),
            }
        )
        if self._table is None:
            self._table = self._database.create_table(
                self._name, schema=rows.schema, exist_ok=True
            )

        merge = self._table.merge_insert("id").when_matched_update_all()
        merge.when_not_matched_insert_all().execute(rows)
        self._writes += 1
        if self._writes % _WRITES == 0:
            self._table.optimize()

    def delete(self, ids: Sequence[str]) -> None:
        """See the base."""
        if ids and self._table is not None:
            self._table.delete(_among(ids))

    def finish(self) -> None:
        """See the base."""
        if self._table is None:
            return

        if _is_new(self._index.config):
            self._build_indexes()

        self._table.optimize()

    def drop(self) -> None:
        """See the base."""
        for name in (self._name, f"{self._name}_filter"):  # the class makes one of views
            with contextlib.suppress(ValueError):  # if there is none
                self._database.drop_table(name)

    def close(self) -> None:
        """See the base."""

    def _check_listed(self) -> None:
        """Check that table_names() lists the table, so that FiftyOne's class finds it."""
        listed = [*self._database.table_names()]
        if self._name not in listed and (self._table is not None or len(listed) >= _LISTED):
            raise ValueError(
                f"FiftyOne's class finds {_LISTED} tables in a folder of LanceDB, and "
                f"{self._index.config.uri!r} has more: give another folder as its URI"
            )

    def _build_indexes(self) -> None:
        """Have FiftyOne's class build its indexes of IDs and vectors, if it has none yet.

        It does so whenever it adds rows, after 2,048 of them or ``min_index_rows``.
        """
        for row in self._table.search().limit(1).to_list():
            is_label = self._index.config.patches_field is not None
            self._index.add_to_index(
                np.array([row["vector"]], np.float32),
                [row["sample_id"]],
                label_ids=[row["id"]] if is_label else None,
                reload=False,
            )

        self._table.checkout_latest()


def _is_new(config: Any) -> bool:
    """Return whether FiftyOne's class is that of brain 0.26 or later."""
    return hasattr(config, "resolve_uri")


def _connect(config: Any) -> Any:
    """Connect as FiftyOne's class does."""
    if not _is_new(config):
        return lancedb.connect(config.uri)

    return lancedb.connect(
        config.resolve_uri(), storage_options=config.storage_options or None
    )


def _among(ids: Sequence[str]) -> str:
    quoted = ",".join(f"'{id}'" for id in ids)
    return f"id IN ({quoted})"
