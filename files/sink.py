"""The sink of results: from a manifest's rows to jobs, and from their results to parts."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np

from ..embedding.jobs import Embedded, Job, Part, Result
from .layout import VECTORS, Format, Layout, Row, count_errors
from .manifest import Manifest
from .part import OpenPart
from .report import FilesReport

logger = logging.getLogger(__name__)

# A chunk is written when it has so many rows, or so long after the one before it
_CHUNK_ROWS = 4096
_CHUNK_SECONDS = 5.0


class Sink:
    """Lists the jobs of the parts that are not complete, and writes their results.

    Only the parts that wait for results are in memory. Jobs may be read in another
    thread than results are added in.

    Args:
        manifest: the manifest
        layout: the folder of the output
        format: the form of its rows
        part_size: the number of rows in a part
        shard: the (index, count) of the share of the parts; None is all
        report: the report, which is kept up to date
        retry_failed (False): whether to try rows with an error again

    Attributes:
        total: the number of rows in parts that have something to embed
    """

    def __init__(
        self,
        manifest: Manifest,
        layout: Layout,
        format: Format,
        part_size: int,
        shard: tuple[int, int] | None,
        report: FilesReport,
        *,
        retry_failed: bool = False,
    ) -> None:
        self._manifest = manifest
        self._layout = layout
        self._format = format
        self._part_size = part_size
        self._retry_failed = retry_failed
        self._report = report

        # An empty manifest has an empty part, so that the output has a schema
        self._count = max(1, -(-manifest.rows // part_size))
        first, step = shard or (0, 1)
        mine = range(first, self._count, step)
        self._numbers = [number for number in mine if not self._skip_part(number)]
        self.total = sum(map(self._size, self._numbers))
        self._done_before = self._done
        if not mine:
            logger.warning(
                "Shard %s of %s has nothing to do: the output has %d parts of %d rows. "
                "Pass a smaller part_size to all shards",
                *shard or (),
                self._count,
                part_size,
            )

        self._open: dict[str, OpenPart] = {}
        self._missing: dict[OpenPart, int] = {}
        self._written_at = time.monotonic()

    @property
    def done(self) -> int:
        """The number of rows of :attr:`total` that exist, or are about to."""
        return self._done - self._done_before

    @property
    def _done(self) -> int:
        return self._report.skipped + self._report.embedded + self._report.failed

    def read_jobs(self) -> Iterator[Job]:
        """Read what has no row yet, or is tried again.

        Yields:
            a :class:`Job` of one part for each row; its path is the URI
        """
        for number in self._numbers:
            if self._skip_part(number):  # another process wrote it meanwhile
                continue

            size = self._size(number)
            part = OpenPart(self._layout, self._format, number, size)
            embedded, failed = part.read_ids()
            held = embedded | failed
            start = number * self._part_size
            ids, uris = self._manifest.read(start, start + size)
            part.check_ids(held, ids)
            if self._retry_failed:
                held, failed = embedded, set()

            pending = {id: uri for id, uri in zip(ids, uris, strict=True) if id not in held}
            self._report.skipped += len(embedded)
            self._report.failed += len(failed)
            if not pending:
                part.finish()
                continue

            self._missing[part] = len(pending)
            self._open.update(dict.fromkeys(pending, part))
            for id, uri in pending.items():
                yield Job(id, uri, [Part(id, id)])

    def add(self, results: Sequence[Result]) -> None:
        """Add results, and write what is complete or has waited long.

        Args:
            results: the results, perhaps none
        """
        for result in results:
            row = self._to_row(result)
            part = self._open.pop(row.id)
            part.add(row)
            self._count_row(row, result)
            self._missing[part] -= 1
            if not self._missing[part]:
                part.finish()
                del self._missing[part]
            elif part.waiting >= _CHUNK_ROWS:
                part.flush()

        if time.monotonic() - self._written_at > _CHUNK_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write all rows that wait."""
        for part in [*self._missing]:
            part.flush()

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

        if len(self._layout.find_parts()) == self._count:
            self._layout.clean()

    def _size(self, number: int) -> int:
        return min(self._part_size, self._manifest.rows - number * self._part_size)

    def _skip_part(self, number: int) -> bool:
        """Count the rows of a part, if nothing of it is left to do."""
        path = self._layout.part(number)
        if not path.exists():
            return False

        errors = count_errors(path)
        is_retried = errors or self._layout.chunks(number).exists()
        if self._retry_failed and is_retried:
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

        dtype = VECTORS[self._format.vectors]
        with np.errstate(over="ignore"):
            vector = result.embedding.astype(dtype)

        if np.isfinite(vector).all():
            return Row(id, uri, vector, None)

        error = f"The embedding of {uri!r} is too large for {self._format.vectors}"
        return Row(id, uri, None, error)

    def _count_row(self, row: Row, result: Result) -> None:
        report = self._report
        if row.error is None:
            report.embedded += 1
            report.warned += bool(isinstance(result, Embedded) and result.warnings)
            return

        report.failed += 1
        if report.wants_examples:
            report.examples.append(f"{row.id}: {row.error}")
            logger.warning("No embedding for %s: %s", row.id, row.error)
