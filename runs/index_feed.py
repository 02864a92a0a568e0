"""Feed a similarity index while embedding, and reconcile it with its field."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence

import fiftyone.core.utils as fou
import numpy as np

from ..embedding.jobs import Embedded, Embeddings, Part
from ..indexes.backends import one_line
from ..indexes.table import Keys, VectorTable
from .parts import match_embeddings, read_jobs, stored_parts
from .report import IndexChange
from .target import Target

logger = logging.getLogger(__name__)

# The number of rows that are written or deleted at once
_AT_ONCE = 1000


class IndexFeed:
    """Writes embeddings to the table of an index, after they are stored in their field.

    If the index is lost, the embeddings are still stored in the field, and
    :meth:`reconcile` adds what is missing. Without a field, the loss is an error at once.

    Args:
        table: the table
        target: the field; or, without one, the samples
    """

    def __init__(self, table: VectorTable, target: Target) -> None:
        self._table = table
        self._target = target
        self._rows: list[tuple[str, str, Embeddings]] = []
        self._added = 0
        self._is_lost = False
        self._lock = threading.Lock()  # the worklist's thread reads, the writer's writes

    def add(self, batch: Sequence[Embedded]) -> None:
        """Write embeddings to the index, once there are enough of them for a write."""
        if self._is_lost:
            return

        with self._lock:
            self._rows += [(r.part.id, r.job.sample_id, r.embedding) for r in batch]
            if len(self._rows) < self._table.rows_at_once:
                return

            try:
                self._flush()
            except Exception as error:
                if not self._target.has_field:
                    raise

                self._is_lost = True
                self._rows = []
                logger.warning(
                    "The index cannot be fed any more: %s. The run goes on without it, and "
                    "the embeddings are stored in %r",
                    one_line(error),
                    self._target.path,
                )

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Return those of the IDs of images or patches that are in the index.

        Raises:
            RuntimeError: if the index cannot be read
        """
        with self._lock:
            try:
                return self._table.existing(ids)
            except Exception as error:
                raise RuntimeError(
                    f"The index cannot be read: {one_line(error)}"
                ) from error

    def count(self) -> int:
        """Count the rows of the index."""
        with self._lock:
            return self._table.count()

    def reconcile(self) -> IndexChange:
        """Add what the index lacks, and remove what the dataset does not have any more.

        Returns:
            an :class:`fiftyone_hiera.runs.report.IndexChange`
        """
        with self._lock:
            self._flush()
            stored = self._add_missing() if self._target.has_field else None
            removed = self._remove_others() if self._table.count() != stored else 0
            self._table.finish()
            return IndexChange(self._table.count(), self._added, removed)

    def close(self) -> None:
        """Write what waits to be written, if that is possible, and close the table."""
        with self._lock, contextlib.suppress(Exception), contextlib.closing(self._table):
            self._flush()

    def _flush(self) -> None:
        self._write(self._rows)
        self._rows = []

    def _write(self, rows: Sequence[tuple[str, str, Embeddings]]) -> None:
        if rows:
            ids, sample_ids, embeddings = zip(*rows, strict=True)
            vectors = np.stack(embeddings).astype(np.float32, copy=False)
            self._table.upsert(ids, sample_ids, vectors)
            self._added += len(ids)

    def _add_missing(self) -> int:
        """Add the embeddings of the field that the index lacks; return how many it has."""
        stored = 0
        for parts in stored_parts(self._target):
            stored += len(parts)
            existing = self._table.existing([part.id for _, part in parts])
            missing = [
                (sample_id, part) for sample_id, part in parts if part.id not in existing
            ]
            for some in fou.iter_batches(missing, _AT_ONCE):
                self._add_from_field(some)

        return stored

    def _add_from_field(self, parts: Sequence[tuple[str, Part]]) -> None:
        held = self._target.read(parts)
        self._write(
            [
                (part.id, sample_id, held[part.id])
                for sample_id, part in parts
                if held.get(part.id) is not None  # deleted meanwhile
            ]
        )

    def _remove_others(self) -> int:
        """Remove the rows that are not of this dataset any more."""
        pages = self._table.keys()
        if pages is None:
            logger.warning(
                "This backend cannot list what is in an index: rows of deleted samples, if "
                "there are any, stay in it"
            )
            return 0

        others = [id for page in pages for id in self._not_in_dataset(page)]
        for some in fou.iter_batches(others, _AT_ONCE):
            self._table.delete(some)

        return len(others)

    def _not_in_dataset(self, keys: Keys) -> Iterator[str]:
        target = self._target
        view = target.select([*{sample_id for _, sample_id in keys}])
        if target.has_field:
            view = match_embeddings(target, view, True)

        there = {part.id for job in read_jobs(target, view) for part in job.parts}
        return (id for id, _ in keys if id not in there)
