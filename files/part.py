"""A part of the output: chunks of rows as they come, one file in the end."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .arrow import pa, pq
from .atomic import written_aside
from .layout import Format, Layout, Row, reading_part

_SUFFIX = ".parquet"

_Place = tuple[Path, int]
"""A file, and the number of a row in it."""


class OpenPart:
    """A part that is not complete, or whose rows with an error are tried again.

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

    def read_ids(self) -> tuple[set[str], set[str]]:
        """Read the IDs of the rows that are written.

        Returns:
            those with a vector, and those with an error alone
        """
        try:
            best, embedded = _find_best(self._find_files())
        except FileNotFoundError:  # another process completed the part meanwhile
            best, embedded = _find_best([self._path])

        return {*map(str, embedded)}, {*map(str, best.keys() - embedded)}

    def check_ids(self, held: set[str], ids: Sequence[str]) -> None:
        """Check that the rows that are written are rows of the part.

        Args:
            held: the IDs of the rows that are written
            ids: the IDs of the part's rows

        Raises:
            OSError: if one is not, as damaged files may be read without an error
        """
        others = held.difference(ids)
        if others:
            files = [str(path) for path in self._find_files()]
            raise OSError(
                f"One of {files} is damaged: it has the ID {min(others)!r}, which is not "
                "in the manifest there. Delete it: embed_files writes it again"
            )

    def add(self, row: Row) -> None:
        """Add a row, which is written later."""
        self._waiting.append(row)

    def flush(self) -> None:
        """Write the rows that wait as a chunk."""
        with self._unless_complete():
            self._write_chunk()

    def finish(self) -> None:
        """Write the part from its chunks, which are removed.

        A part that exists is replaced; its rows keep their order.
        """
        while self._waiting:  # until no other process removes the chunks meanwhile
            self.flush()

        with self._unless_complete():
            self._merge()

        shutil.rmtree(self._chunks, ignore_errors=True)

    @contextlib.contextmanager
    def _unless_complete(self) -> Iterator[None]:
        """Ignore what fails because another process completed the part meanwhile."""
        try:
            yield
        except FileNotFoundError:  # it removed the chunks
            if not self._path.exists():
                raise

    def _write_chunk(self) -> None:
        if not self._waiting:
            return

        # Sorted by time, after those of release 0.2.0, whose names are hexadecimal
        name = f"t{time.time_ns()}-{uuid.uuid4().hex}{_SUFFIX}"
        chunk = self._chunks / name
        with (
            written_aside(chunk, self._chunks) as aside,
            self._format.open(aside) as file,
        ):
            file.write_table(self._format.to_table(self._waiting))

        self._waiting = []

    def _merge(self) -> None:
        files = self._find_files()
        best, _ = _find_best(files)
        if len(best) != self._rows:
            raise OSError(
                f"{str(self._chunks)!r} has {len(best)} of {self._rows} rows: run again"
            )

        with (
            written_aside(self._path, self._chunks) as aside,
            self._format.open(aside) as file,
        ):
            for path in files:
                start = 0
                for table in self._read(path):
                    found = (best.pop(id, None) for id in table["id"].to_pylist())
                    places = [place for place in found if place is not None]
                    if places:
                        file.write_table(self._take(places, path, start, table))

                    start += len(table)

    def _take(
        self, places: Sequence[_Place], path: Path, start: int, table: pa.Table
    ) -> pa.Table:
        """Take the rows at some places, most of which are in a table.

        Args:
            places: the places
            path: the file that the table is read from
            start: the number of the table's first row there
            table: the table
        """
        tables, offsets, size = [table], {path: -start}, len(table)
        for other in {other for other, _ in places} - {path}:
            tables += self._read(other)
            offsets[other] = size
            size = sum(map(len, tables))

        if len(places) == size:
            return table  # as nearly always

        rows = [offsets[file] + row for file, row in places]
        return pa.concat_tables(tables).combine_chunks().take(rows)

    def _read(self, path: Path) -> Iterator[pa.Table]:
        with reading_part(path), pq.ParquetFile(path) as file:
            for index in range(file.num_row_groups):
                yield file.read_row_group(index).cast(self._format.schema)

    def _find_files(self) -> list[Path]:
        """Find the files with rows, oldest first: the part, if it exists, and chunks."""
        # In this order: another process removes the chunks when the part exists
        chunks = sorted(self._chunks.glob(f"[!.]*{_SUFFIX}"))
        return [self._path, *chunks] if self._path.exists() else chunks


def _find_best(files: Sequence[Path]) -> tuple[dict[Any, _Place], set[Any]]:
    """Find which row is the best for each ID: one with a vector, or the last one.

    Returns:
        the place of the row of each ID, in the order in which IDs first appear; and the
        IDs of those with a vector
    """
    best: dict[Any, _Place] = {}
    embedded: set[Any] = set()
    for path in files:
        with reading_part(path):
            table = pq.read_table(path, columns=["id", "error"])
            ids, errors = (column.to_pylist() for column in table)

        for row, (id, error) in enumerate(zip(ids, errors, strict=True)):
            if id in embedded:
                continue

            best[id] = path, row
            if error is None:
                embedded.add(id)

    return best, embedded
