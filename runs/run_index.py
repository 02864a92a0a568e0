"""The similarity index of a run: checked, opened, fed and reconciled with its field."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator

import numpy as np

from ..embedding.embedder import Embedder
from ..errors import OptionError
from ..indexes.backends import one_line
from ..indexes.brain_index import REBUILD, BrainIndex
from ..indexes.options import Contents
from ..indexes.table import VectorTable
from .fiftyone_internals import dataset_id, stages_of
from .index_feed import IndexFeed
from .index_model import find_tables
from .options import RunOptions
from .parts import stored_parts
from .report import EmbeddingError, EmbeddingReport, IndexChange
from .target import Target

logger = logging.getLogger(__name__)

# How many rows to compare, and the least cosine similarity of the same vector
_COMPARED, _SAME = 10, 0.999

NO_FRAMES = (
    "FiftyOne's brain does not support frame-level embeddings: embed the videos first, "
    "then index or map the view dataset.to_frames(sample_frames=True), which has the "
    "embeddings of the frames"
)
"""Why videos have no index and no map."""


class RunIndex:
    """The similarity index of a run, or the lack of one."""

    def __init__(self, target: Target, embedder: Embedder, options: RunOptions) -> None:
        self._target = target
        self._overwrite = options.overwrite
        self._index: BrainIndex | None = None
        self._feed: IndexFeed | None = None
        if options.index is not None:
            # It may drop its index if it embeds all of the dataset again
            is_whole = options.shard is None and not stages_of(target.samples)
            self._index = BrainIndex(
                target.dataset,
                options.index,
                Contents(
                    dataset_id=str(dataset_id(target.dataset)),
                    embeddings_field=target.name or None,
                    patches_field=target.patches_field,
                    dim=embedder.dim,
                    provenance=embedder.provenance,
                ),
                may_rebuild=options.overwrite and is_whole,
            )

    def check(self) -> None:
        """Check that the index may be fed, before anything is embedded or connected to.

        Raises:
            ValueError: if it may not, or if there is neither a field nor an index
            ImportError: if a package is not installed
        """
        if self._index is not None:
            if self._target.frames_prefix:
                raise ValueError(NO_FRAMES)

            self._index.check()
        elif not self._target.has_field:
            raise ValueError("Nothing to store in: give an embeddings_field or a brain_key")
        elif self._overwrite:
            self._warn_of_others("are overwritten in")

    @contextlib.contextmanager
    def open(self) -> Iterator[IndexFeed | None]:
        """Open the index.

        Yields:
            an :class:`fiftyone_hiera.runs.index_feed.IndexFeed`; None if there is no
            index, or if it reads the vectors from the field

        Raises:
            ValueError: if the index cannot be opened, or if its table is another's
        """
        if self._index is None or (table := self._index.open(self._check_rows)) is None:
            yield None
            return

        self._feed = IndexFeed(table, self._target)
        try:
            with contextlib.closing(self._feed):
                yield self._feed
        finally:
            # Of an index that was loaded with the vectors of before
            self._target.dataset.clear_cache()

        advice = self._index.advise_on_credentials()
        if advice is not None:
            logger.warning("%s", advice)

    def reconcile(self, report: EmbeddingReport) -> IndexChange | None:
        """Reconcile the index with its field, after all is embedded.

        Returns:
            what the run did to the index; None if there is none

        Raises:
            EmbeddingError: if that fails; the embeddings are stored
        """
        index, target = self._index, self._target
        if index is None:
            if report.embedded:
                target.dataset.clear_cache()  # as in open()
                if not self._overwrite:
                    self._warn_of_others("were added to")

            return None

        try:
            if self._feed is not None:
                return self._feed.reconcile()

            rows, _ = target.count_embeddings()
            if rows:
                index.register()
                target.dataset.clear_cache()  # as in open()

            return IndexChange(rows, report.embedded, 0)
        except Exception as error:
            where = f"in {target.path!r}" if target.has_field else "as far as it was fed"
            raise EmbeddingError(
                f"The embeddings are stored {where}, but the index "
                f"{index.options.brain_key!r} is not up to date: {one_line(error)}\n"
                "The same call goes on from there",
                report,
            ) from error

    def _warn_of_others(self, change: str) -> None:
        keys = [key for key, _ in find_tables(self._target)]
        if keys:
            logger.warning(
                "Embeddings %s %r, but not its indexes %s: give a brain_key to change both",
                change,
                self._target.path,
                keys,
            )

    def _check_rows(self, table: VectorTable) -> None:
        """Compare rows of an index that FiftyOne made of a field with the field.

        Raises:
            ValueError: if one of them is another vector
        """
        target = self._target
        parts = {
            part.id: (sample_id, part) for sample_id, part in next(stored_parts(target), [])
        }
        existing = sorted(table.existing([*parts]))
        chosen = random.sample(existing, min(_COMPARED, len(existing)))
        held = target.read([parts[id] for id in chosen])
        for id, row in table.read(chosen).items() if chosen else ():
            # Some databases normalize, or round
            embedding = np.asarray(held[id])
            length = np.linalg.norm(row) * np.linalg.norm(embedding)
            if len(row) != len(embedding) or row @ embedding < _SAME * length:
                raise OptionError(
                    "overwrite",
                    f"The index holds another vector of {id} than the field "
                    f"{target.path!r}: {REBUILD}",
                )
