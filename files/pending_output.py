"""Read the jobs that an output lacks, and write their results."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np

from ..embedding.jobs import Embedded, Job, Part, Result
from .manifest import Manifest
from .output_file import OutputFile, count_errors
from .output_folder import OutputFolder
from .output_record import OutputRecord
from .output_rows import VECTORS, Row, RowFormat
from .report import FilesReport

logger = logging.getLogger(__name__)

# Rows are written so long after those before them, or when they fill a chunk
_CHUNK_SECONDS = 5.0


class PendingOutput:
    """Output files that are not complete: their jobs are read, and their results added.

    Only the files that wait for results are in memory. Jobs may be read in another thread
    than results are added in.

    Args:
        manifest: the manifest
        folder: the folder of the output
        record: its record
        report: the report, which is kept up to date
        shard (None): the (index, count) of the share of the output files; None is all
        retry_failed (False): whether to try rows with an error again

    Attributes:
        total: the number of rows in files that have something to embed
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: OutputFolder,
        record: OutputRecord,
        report: FilesReport,
        *,
        shard: tuple[int, int] | None = None,
        retry_failed: bool = False,
    ) -> None:
        self._manifest = manifest
        self._folder = folder
        self._format = RowFormat(manifest.id_type, record.vectors, record.dimension)
        self._report = report
        self._part_size = record.part_size
        self._retry_failed = retry_failed

        # An empty manifest has an empty output file, so that the output has a schema
        self._count = max(1, -(-manifest.rows // record.part_size))
        first, step = shard or (0, 1)
        mine = range(first, self._count, step)
        self._numbers = [number for number in mine if not self._skip(number)]
        self.total = sum(map(self._size, self._numbers))
        self._complete = report.skipped + report.failed
        if not mine:
            logger.warning(
                "Shard %s of %s has nothing to do: the output has %d files of %d rows. "
                "Pass a smaller part_size to all shards",
                *shard or (),
                self._count,
                record.part_size,
            )

        self._open: dict[str, OutputFile] = {}
        self._missing: dict[OutputFile, int] = {}
        self._written_at = time.monotonic()

    @property
    def done(self) -> int:
        """The number of rows of :attr:`total` that exist, or are about to."""
        report = self._report
        return report.skipped + report.embedded + report.failed - self._complete

    def read_jobs(self) -> Iterator[Job]:
        """Read the jobs of rows that do not exist yet, or are tried again.

        Yields:
            a :class:`Job` of one part for each row; its path is the URI
        """
        for number in self._numbers:
            if self._skip(number):  # another process wrote it meanwhile
                continue

            start, size = number * self._part_size, self._size(number)
            ids, uris = self._manifest.read(start, start + size)
            file = OutputFile(self._folder, self._format, number, size)
            embedded, failed = file.read_ids(ids)
            kept = embedded if self._retry_failed else embedded | failed
            self._report.skipped += len(embedded)
            self._report.failed += len(kept) - len(embedded)
            pending = {id: uri for id, uri in zip(ids, uris, strict=True) if id not in kept}
            if not pending:
                file.finish()
                continue

            self._missing[file] = len(pending)
            self._open.update(dict.fromkeys(pending, file))
            for id, uri in pending.items():
                yield Job(id, uri, [Part(id, id)])

    def add(self, results: Sequence[Result]) -> None:
        """Add results, if any, and write what is complete or has waited long."""
        for result in results:
            row = self._to_row(result)
            if row.error is None:
                self._report.embedded += 1
                self._report.warned += isinstance(result, Embedded) and bool(
                    result.warnings
                )
            else:
                self._report.add_failure(row.id, row.error)

            file = self._open.pop(row.id)
            file.add(row)
            self._missing[file] -= 1
            if not self._missing[file]:
                file.finish()
                del self._missing[file]

        if time.monotonic() - self._written_at > _CHUNK_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write all rows that wait."""
        for file in [*self._missing]:
            file.flush()

        self._written_at = time.monotonic()

    def close(self) -> None:
        """Check that all results came, and clean up if the whole output is complete.

        Raises:
            RuntimeError: if results are missing
        """
        if self._open:
            id = next(iter(self._open))
            raise RuntimeError(
                f"{len(self._open)} files have no result, the first has the ID {id!r}"
            )

        if len(self._folder.find_files()) == self._count:
            self._folder.clean()

    def _size(self, number: int) -> int:
        return min(self._part_size, self._manifest.rows - number * self._part_size)

    def _skip(self, number: int) -> bool:
        """Count the rows of an output file, if nothing of it is left to do."""
        path = self._folder.file(number)
        if not path.exists():
            return False

        errors = count_errors(path)
        if self._retry_failed and (errors or self._folder.chunks(number).exists()):
            return False

        self._report.skipped += self._size(number) - errors
        self._report.failed += errors
        return True

    def _to_row(self, result: Result) -> Row:
        id, uri = result.job.sample_id, result.job.path
        if not uri:
            return Row(id, uri, None, "Its uri in the manifest is null or empty")

        if not isinstance(result, Embedded):
            return Row(id, uri, None, " ".join(str(result.error).split()))

        with np.errstate(over="ignore"):
            vector = result.embedding.astype(VECTORS[self._format.vectors])

        if np.isfinite(vector).all():
            return Row(id, uri, vector, None)

        error = f"The embedding of {uri!r} is too large for {self._format.vectors}"
        return Row(id, uri, None, error)
