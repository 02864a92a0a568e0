"""A part of the output: chunks of rows as they come, one file in the end."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .arrow import pa, pq
from .atomic import written_aside
from .layout import Format, Layout, Row

_SUFFIX = ".parquet"


class OpenPart:
    """A part that is not complete.

    What is written survives any cut: a chunk is at its path only when it is complete, and
    so is the part, after which its chunks are removed. Several processes may write the
    same part: it has each row once, whose ever.

    Args:
        layout: the folder of the output
        format: the form of its rows
        number: the number of the part
        rows: the number of its rows
    """

    def __init__(self, layout: Layout, format: Format, number: int, rows: int) -> None:
        self._format = format
        self._path = layout.part(number)
        self._chunks = layout.chunks(number)
        self._rows = rows
        self._waiting: list[Row] = []

    @property
    def waiting(self) -> int:
        """The number of rows that are not written yet."""
        return len(self._waiting)

    def read_ids(self) -> tuple[set[str], int]:
        """Read the IDs of the rows that are written.

        Returns:
            the IDs, and how many of them have no vector
        """
        ids: set[str] = set()
        failed: set[str] = set()
        for chunk in self._find_chunks():
            table = pq.read_table(chunk, columns=["id", "error"])
            for value, error in zip(*(column.to_pylist() for column in table), strict=True):
                ids.add(str(value))
                if error is not None:
                    failed.add(str(value))

        return ids, len(failed)

    def add(self, row: Row) -> None:
        """Add a row, which is written later."""
        self._waiting.append(row)

    def flush(self) -> None:
        """Write the rows that wait as a chunk."""
        with self._unless_complete():
            self._write_chunk()

        self._waiting = []

    def finish(self) -> None:
        """Write the part from its chunks, which are removed."""
        self.flush()
        with self._unless_complete():
            self._merge()

        shutil.rmtree(self._chunks, ignore_errors=True)

    @contextlib.contextmanager
    def _unless_complete(self) -> Iterator[None]:
        """Ignore what fails because another process completed the part meanwhile."""
        try:
            yield
        except OSError:
            if not self._path.exists():
                raise

    def _write_chunk(self) -> None:
        if not self._waiting:
            return

        chunk = self._chunks / (uuid.uuid4().hex + _SUFFIX)
        with (
            written_aside(chunk, self._chunks) as aside,
            self._format.open(aside) as file,
        ):
            file.write_table(self._format.to_table(self._waiting))

    def _merge(self) -> None:
        seen: set[Any] = set()
        with written_aside(self._path, self._chunks) as aside:
            with self._format.open(aside) as file:
                for chunk in self._find_chunks():
                    table = pq.read_table(chunk, schema=self._format.schema)
                    ids = table["id"].to_pylist()
                    is_new = pa.array([id not in seen for id in ids], pa.bool_())
                    file.write_table(table.filter(is_new))
                    seen.update(ids)

            if len(seen) != self._rows:
                raise OSError(
                    f"{str(self._chunks)!r} has {len(seen)} of {self._rows} rows: run again"
                )

    def _find_chunks(self) -> list[Path]:
        return sorted(self._chunks.glob(f"[!.]*{_SUFFIX}"))
