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

from .table import Keys, Vectors, VectorTable, check_columns

_PAGE_SIZE = 10_000

# Each write is a file and a version that lists all files: after so many, compact them
_WRITES = 64

# FiftyOne's class before brain 0.26 finds the first ten tables of a folder, by name
_MOST_TABLES = 10


class LanceDBTable(VectorTable):
    """The table of a LanceDB index, with the columns of FiftyOne's class."""

    def __init__(self, index: Any) -> None:
        super().__init__(index)
        self._name: str = index.config.table_name
        self._database = _connect(index.config)
        self._writes = 0
        self._table: Any = None
        with contextlib.suppress(ValueError):  # if there is none
            self._table = self._database.open_table(self._name)

        if not _is_new(index.config):
            self._check_findable()

    def dim(self) -> int | None:
        if self._table is None:
            return None

        check_columns(self._name, self._table.schema.names, ("id", "sample_id", "vector"))
        return int(self._table.schema.field("vector").type.list_size)

    def count(self) -> int:
        return 0 if self._table is None else int(self._table.count_rows())

    def existing(self, ids: Sequence[str]) -> set[str]:
        if self._table is None or not ids:
            return set()

        rows = self._table.search().where(_among(ids)).select(["id"]).limit(len(ids))
        return {*rows.to_arrow()["id"].to_pylist()}

    def keys(self) -> Iterator[Keys]:
        if self._table is None:
            return

        rows = self._table.search().select(["id", "sample_id"]).limit(self.count())
        for batch in rows.to_batches(_PAGE_SIZE):
            columns = (batch["id"].to_pylist(), batch["sample_id"].to_pylist())
            yield [*zip(*columns, strict=True)]

    def upsert(
        self, ids: Sequence[str], sample_ids: Sequence[str], vectors: Vectors
    ) -> None:
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
        if ids and self._table is not None:
            self._table.delete(_among(ids))

    def finish(self) -> None:
        if self._table is not None:
            if _is_new(self._index.config):
                self._build_indexes()

            self._table.optimize()

    def drop(self) -> None:
        for name in (self._name, f"{self._name}_filter"):  # the class makes one of views
            with contextlib.suppress(ValueError):  # if there is none
                self._database.drop_table(name)

    def _check_findable(self) -> None:
        """Check that FiftyOne's class finds the table, once there is one."""
        found = self._database.table_names()
        is_full = self._table is not None or len(found) >= _MOST_TABLES
        if is_full and self._name not in found:
            raise ValueError(
                f"FiftyOne's class finds {_MOST_TABLES} tables in a folder of LanceDB, and "
                f"{self._index.config.uri!r} has more: give another folder as its URI"
            )

    def _build_indexes(self) -> None:
        """Have FiftyOne's class build its indexes of IDs and vectors, if it has none yet.

        It does so whenever it adds rows, after 2,048 of them or ``min_index_rows``.
        """
        for row in self._table.search().limit(1).to_list():
            vectors = np.array([row["vector"]], np.float32)
            self._add([row["id"]], [row["sample_id"]], vectors)

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
