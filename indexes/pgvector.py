"""The table of a pgvector index, written by PostgreSQL's binary COPY."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg2
from psycopg2 import sql

from .table import Keys, Vectors, VectorTable, check_columns

_PAGE_SIZE = 10_000

# https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY-FORMAT
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = struct.pack("!h", -1)


class PgVectorTable(VectorTable):
    """The table of a pgvector index, with the columns of FiftyOne's class."""

    rows_at_once = 1

    def __init__(self, index: Any) -> None:
        super().__init__(index)
        self._name = sql.Identifier(index.config.table_name)
        # Releases of the brain before 0.24 have no other type
        self._type = getattr(index.config, "vector_type", "vector")
        self._connection: Any = None
        index.close_connections()

    def dim(self) -> int | None:
        columns = dict(
            self._fetch(
                "SELECT attname, atttypmod FROM pg_attribute WHERE attnum > 0 "
                "AND NOT attisdropped AND attrelid = to_regclass(quote_ident(%s))",
                self._index.config.table_name,
            )
        )
        if not columns:
            return None

        expected = ("id", "sample_id", "embedding_vector")
        check_columns(self._index.config.table_name, columns, expected)
        return int(columns["embedding_vector"])

    def count(self) -> int:
        if self.dim() is None:
            return 0

        return int(self._fetch("SELECT count(*) FROM {table}")[0][0])

    def existing(self, ids: Sequence[str]) -> set[str]:
        if self.dim() is None:
            return set()

        rows = self._fetch("SELECT id FROM {table} WHERE id = ANY(%s)", [*ids])
        return {row[0] for row in rows}

    def keys(self) -> Iterator[Keys]:
        if self.dim() is None:
            return

        last = ""
        while page := self._fetch(
            "SELECT id, sample_id FROM {table} WHERE id > %s ORDER BY id LIMIT %s",
            last,
            _PAGE_SIZE,
        ):
            yield page
            last = page[-1][0]

    def upsert(
        self, ids: Sequence[str], sample_ids: Sequence[str], vectors: Vectors
    ) -> None:
        rows = io.BytesIO(
            b"".join([_HEADER, *self._encode(ids, sample_ids, vectors), _TRAILER])
        )
        column = f"embedding_vector {self._type}({vectors.shape[1]:d})"
        with self._cursor() as cursor:
            self._execute(
                cursor,
                "CREATE TABLE IF NOT EXISTS {table} "
                f"(id TEXT PRIMARY KEY, sample_id TEXT, {column}); "
                "CREATE TEMP TABLE IF NOT EXISTS hiera_rows (LIKE {table}) "
                "ON COMMIT DELETE ROWS",
            )
            cursor.copy_expert("COPY hiera_rows FROM STDIN WITH BINARY", rows)
            self._execute(
                cursor,
                "INSERT INTO {table} SELECT * FROM hiera_rows ON CONFLICT (id) "
                "DO UPDATE SET sample_id = EXCLUDED.sample_id, "
                "embedding_vector = EXCLUDED.embedding_vector",
            )

    def delete(self, ids: Sequence[str]) -> None:
        if self.dim() is not None:
            with self._cursor() as cursor:
                self._execute(cursor, "DELETE FROM {table} WHERE id = ANY(%s)", [*ids])

    def finish(self) -> None:
        # Built once, it takes half of the time of adding row by row to one that exists
        config = self._index.config
        found = self._fetch(
            "SELECT 1 FROM pg_indexes WHERE tablename = %s AND indexname = %s",
            config.table_name,
            config.index_name,
        )
        if found or self.dim() is None:
            return

        _ = self._index.total_index_size  # connects again
        # It has the second name before brain 0.25
        create = getattr(self._index, "create_index", None)
        (create or self._index.create_hnsw_index)()
        self._index.close_connections()

    def drop(self) -> None:
        # With its indexes. Before brain 0.25, FiftyOne's class does not connect again
        with self._cursor() as cursor:
            self._execute(cursor, "DROP TABLE IF EXISTS {table}")

        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _encode(
        self, ids: Sequence[str], sample_ids: Sequence[str], vectors: Vectors
    ) -> Iterator[bytes]:
        """Encode rows: the number of columns, then the length and the bytes of each."""
        numbers = vectors.astype(">f2" if self._type == "halfvec" else ">f4")
        for key, sample_id, row in zip(ids, sample_ids, numbers, strict=True):
            yield struct.pack("!h", 3)
            # pgvector's binary form: the number of dimensions, a zero, the numbers
            vector = struct.pack("!hh", len(row), 0) + row.tobytes()
            for value in (key.encode(), sample_id.encode(), vector):
                yield struct.pack("!i", len(value)) + value

    def _fetch(self, query: str, *values: Any) -> list[Any]:
        with self._cursor() as cursor:
            self._execute(cursor, query, *values)
            return [*cursor.fetchall()]

    def _execute(self, cursor: Any, query: str, *values: Any) -> None:
        cursor.execute(sql.SQL(query).format(table=self._name), values)

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[Any]:
        """Run one transaction, on a new connection if the last one was lost."""
        if self._connection is None or self._connection.closed:
            self._connection = _connect(self._index.config)

        with self._connection, self._connection.cursor() as cursor:
            yield cursor


def _connect(config: Any) -> Any:
    """Connect as FiftyOne's class does."""
    names = {"sslcert": "ssl_cert", "sslkey": "ssl_key", "sslrootcert": "ssl_root_cert"}
    options = {name: getattr(config, attribute) for name, attribute in names.items()}
    given = {name: value for name, value in options.items() if value}
    return psycopg2.connect(config.connection_string, **given)
