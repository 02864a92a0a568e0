"""Write an output file: chunks of rows as they come, one file in the end."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .arrow import pa, pq
from .output_folder import OutputFolder, reading_output
from .output_rows import Row, RowFormat

_SUFFIX = ".parquet"

# A chunk is written when it has so many rows
_CHUNK_ROWS = 4096

_Place = tuple[Path, int]
"""A file, and the number of a row in it."""


class OutputFile:
    """An output file that is not complete, or whose rows with an error are tried again.

    What is written survives any cut: a chunk is at its path only when it is complete, and
    so is the output file, after which its chunks are removed. Several processes may write
    the same output file: it has each row once, whose ever.

    Args:
        folder: the folder of the output
        format: the form of its rows
        number: the number of the output file
        rows: the number of its rows
    """

    def __init__(
        self, folder: OutputFolder, format: RowFormat, number: int, rows: int
    ) -> None:
        self._format = format
        self._path = folder.file(number)
        self._chunks = folder.chunks(number)
        self._rows = rows
        self._waiting: list[Row] = []

    def read_ids(self, ids: Sequence[str]) -> tuple[set[str], set[str]]:
        """Read which of its IDs have rows that are written.

        Returns:
            the IDs with a vector, and those with an error alone

        Raises:
            OSError: if a file cannot be read, or has another ID, as damaged files may be
                read without an error
        """
        try:
            best, embedded = _find_best(self._find_files())
        except FileNotFoundError:  # another process completed the file meanwhile
            best, embedded = _find_best([self._path])

        others = {*map(str, best)}.difference(ids)
        if others:
            files = [str(path) for path in self._find_files()]
            raise OSError(
                f"One of {files} is damaged: it has the ID {min(others)!r}, which is not "
                "in the manifest there. Delete it: embed_files writes it again"
            )

        return {*map(str, embedded)}, {*map(str, best.keys() - embedded)}

    def add(self, row: Row) -> None:
        """Add a row, which is written now or later."""
        self._waiting.append(row)
        if len(self._waiting) >= _CHUNK_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait as a chunk."""
        if not self._waiting:
            return

        # Sorted by time, after those of release 0.2.0, whose names are hexadecimal
        name = f"t{time.time_ns()}-{uuid.uuid4().hex}{_SUFFIX}"
        with self._unless_complete():
            with self._format.writing(self._chunks / name, self._chunks) as file:
                file.write_table(self._format.to_table(self._waiting))

            self._waiting = []

    def finish(self) -> None:
        """Write the output file from its chunks, which are removed.

        A file that exists is replaced; its rows keep their order.
        """
        while self._waiting:  # until no other process removes the chunks meanwhile
            self.flush()

        with self._unless_complete():
            self._merge()

        shutil.rmtree(self._chunks, ignore_errors=True)

    @contextlib.contextmanager
    def _unless_complete(self) -> Iterator[None]:
        """Ignore what fails because another process completed the file meanwhile."""
        try:
            yield
        except FileNotFoundError:  # it removed the chunks
            if not self._path.exists():
                raise

    def _merge(self) -> None:
        files = self._find_files()
        best, _ = _find_best(files)
        if len(best) != self._rows:
            raise OSError(
                f"{str(self._chunks)!r} has {len(best)} of {self._rows} rows: run again"
            )

        with self._format.writing(self._path, self._chunks) as file:
            for path in files:
                start = 0
                for table in self._read(path):
                    ids = table["id"].to_pylist()
                    places = [best.pop(id) for id in ids if id in best]
                    if places:
                        file.write_table(self._take(places, path, start, table))

                    start += len(table)

    def _take(
        self, places: Sequence[_Place], path: Path, start: int, table: pa.Table
    ) -> pa.Table:
        """Take the rows at some places, most of which are in a table.

        The table has the rows of the file at ``path`` from number ``start`` on.
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
        with reading_output(path), pq.ParquetFile(path) as file:
            for index in range(file.num_row_groups):
                yield file.read_row_group(index).cast(self._format.schema)

    def _find_files(self) -> list[Path]:
        """Find the files with rows, oldest first: the output file, if any, and chunks."""
        # In this order: another process removes the chunks when the output file exists
        chunks = sorted(self._chunks.glob(f"[!.]*{_SUFFIX}"))
        return [self._path, *chunks] if self._path.exists() else chunks


def count_errors(path: Path) -> int:
    """Count the rows of an output file that have no vector, by what its footer says.

    Raises:
        OSError: if it cannot be read
    """
    with reading_output(path):
        metadata = pq.read_metadata(path)

    column = metadata.schema.names.index("error")
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return sum(
        group.num_rows - group.column(column).statistics.null_count for group in groups
    )


def _find_best(files: Sequence[Path]) -> tuple[dict[Any, _Place], set[Any]]:
    """Find which row is the best for each ID: one with a vector, or the last one.

    Returns:
        the place of the row of each ID, in the order in which IDs first appear; and the
        IDs of those with a vector
    """
    best: dict[Any, _Place] = {}
    embedded: set[Any] = set()
    for path in files:
        with reading_output(path):
            table = pq.read_table(path, columns=["id", "error"])
            ids, errors = (column.to_pylist() for column in table)

        for row, (id, error) in enumerate(zip(ids, errors, strict=True)):
            if id in embedded:
                continue

            best[id] = path, row
            if error is None:
                embedded.add(id)

    return best, embedded
