"""The collection of a Milvus index, written by upserts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .table import Keys, Vectors, VectorTable, check_columns

# Milvus returns at most 16,384 rows at once
_PAGE_SIZE = 10_000


class MilvusTable(VectorTable):
    """The collection of a Milvus index, with the fields of FiftyOne's class."""

    rows_at_once = 1

    def dim(self) -> int | None:
        if self._index.collection is None:
            return None

        fields = {field.name: field for field in self._index.collection.schema.fields}
        check_columns(self._index.collection.name, fields, ("pk", "vector", "sample_id"))
        return int(fields["vector"].params["dim"])

    def count(self) -> int:
        # The collection's own number counts deleted rows, and no new ones
        return sum(int(row["count(*)"]) for row in self._query("", ["count(*)"]))

    def existing(self, ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(ids), _PAGE_SIZE):
            expression = _among(ids[start : start + _PAGE_SIZE])
            found |= {row["pk"] for row in self._query(expression, ["pk"])}

        return found

    def keys(self) -> Iterator[Keys]:
        if self._index.collection is None:
            return

        rows = self._index.collection.query_iterator(
            batch_size=_PAGE_SIZE,
            expr='pk > ""',
            output_fields=["pk", "sample_id"],
            consistency_level="Strong",
        )
        while page := rows.next():
            yield [(row["pk"], row["sample_id"]) for row in page]

        rows.close()

    def upsert(
        self, ids: Sequence[str], sample_ids: Sequence[str], vectors: Vectors
    ) -> None:
        if self._index.collection is None:
            # FiftyOne's class makes the collection with the first rows
            self._add(ids, sample_ids, vectors)
        else:
            self._index.collection.upsert([[*ids], [*vectors], [*sample_ids]])

    def delete(self, ids: Sequence[str]) -> None:
        if ids and self._index.collection is not None:
            self._index.collection.delete(_among(ids))

    def finish(self) -> None:
        if self._index.collection is not None:
            self._index.collection.flush()

    def _query(self, expression: str, fields: list[str]) -> Any:
        if self._index.collection is None:
            return []

        return self._index.collection.query(
            expression, output_fields=fields, consistency_level="Strong"
        )


def _among(ids: Sequence[str]) -> str:
    quoted = ",".join(f'"{id}"' for id in ids)
    return f"pk in [{quoted}]"
