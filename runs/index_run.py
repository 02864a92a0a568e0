"""The similarity index of a run: checked, opened, fed and settled."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from ..embedding.embedder import Embedder
from ..errors import OptionError
from ..indexes.brain_run import (
    REBUILD,
    advise_on_credentials,
    check_index,
    has_table,
    list_indexes,
    open_index,
    register_index,
)
from ..indexes.fiftyone_index import one_line
from ..indexes.options import Contents
from ..indexes.table import VectorTable, read_rows
from .fiftyone_internals import dataset_id, stages_of
from .index_feed import IndexFeed, stored_jobs
from .options import RunOptions
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


def check_index_options(target: Target, embedder: Embedder, options: RunOptions) -> None:
    """Check that a run may feed its index, before anything is embedded or connected to.

    Raises:
        ValueError: if it may not, or if there is neither a field nor an index
        ImportError: if a package is not installed
    """
    if options.index is None:
        if not target.has_field:
            raise ValueError("Nothing to store in: give an embeddings_field or a brain_key")

        if options.overwrite:
            _warn_of_indexes(target, embedder, "are overwritten in")

        return

    if target.frames_prefix:
        raise ValueError(NO_FRAMES)

    check_index(
        target.dataset,
        options.index,
        describe_contents(target, embedder),
        overwrite=_may_rebuild(target, options),
    )


@contextlib.contextmanager
def open_index_feed(
    target: Target, embedder: Embedder, options: RunOptions
) -> Iterator[IndexFeed | None]:
    """Open the index of a run.

    Yields:
        an :class:`fiftyone_hiera.runs.index_feed.IndexFeed`; None if there is no index, or
        if it reads the vectors from the field

    Raises:
        ValueError: if the index cannot be opened, or if its table is another's
    """
    index, dataset = options.index, target.dataset
    rebuild = _may_rebuild(target, options)
    if index is None or not has_table(dataset, index, overwrite=rebuild):
        yield None
        return

    table = open_index(
        dataset,
        index,
        describe_contents(target, embedder),
        rebuild=rebuild,
        check_rows=partial(_check_rows, target),
    )
    try:
        with contextlib.closing(IndexFeed(table, target)) as feed:
            yield feed
    finally:
        dataset.clear_cache()  # of an index that was loaded with the vectors of before

    advice = advise_on_credentials(dataset, index)
    if advice is not None:
        logger.warning("%s", advice)


def settle_index(
    target: Target,
    embedder: Embedder,
    options: RunOptions,
    feed: IndexFeed | None,
    report: EmbeddingReport,
) -> IndexChange | None:
    """Bring the index of a run that has ended up to date with its field.

    Raises:
        EmbeddingError: if that fails; the embeddings are stored
    """
    if options.index is None:
        if report.embedded:
            target.dataset.clear_cache()  # of indexes that have read the field before
            if not options.overwrite:
                _warn_of_indexes(target, embedder, "were added to")

        return None

    try:
        if feed is not None:
            return feed.settle()

        rows, _ = target.count_embeddings()
        if rows:
            contents = describe_contents(target, embedder)
            register_index(target.dataset, options.index, contents)
            target.dataset.clear_cache()  # as above

        return IndexChange(rows, report.embedded, 0)
    except Exception as error:
        where = f"in {target.path!r}" if target.has_field else "as far as it was fed"
        raise EmbeddingError(
            f"The embeddings are stored {where}, but the index {options.index.brain_key!r} "
            f"is not up to date: {one_line(error)}\nThe same call goes on from there",
            report,
        ) from error


def describe_contents(target: Target, embedder: Embedder) -> Contents:
    """Describe what the index of a run holds."""
    return Contents(
        dataset_id=str(dataset_id(target.dataset)),
        embeddings_field=target.name or None,
        patches_field=target.patches_field,
        dim=embedder.dim,
        provenance=embedder.provenance,
    )


def _warn_of_indexes(target: Target, embedder: Embedder, change: str) -> None:
    keys = list_indexes(target.dataset, describe_contents(target, embedder))
    if keys:
        logger.warning(
            "Embeddings %s %r, but not its indexes %s: give a brain_key to change both",
            change,
            target.path,
            keys,
        )


def _check_rows(target: Target, index: Any, table: VectorTable) -> None:
    """Compare rows of an index that FiftyOne made of a field with the field.

    Raises:
        ValueError: if one of them is another vector
    """
    parts = {
        part.id: (job.sample_id, part)
        for job in next(stored_jobs(target), [])
        for part in job.parts
    }
    existing = sorted(table.existing([*parts]))
    chosen = random.sample(existing, min(_COMPARED, len(existing)))
    pairs = [parts[id] for id in chosen]
    held = target.read([id for id, _ in pairs], [part for _, part in pairs])
    for id, row in read_rows(index, chosen).items() if chosen else ():
        # Some databases normalize, or round
        embedding = np.asarray(held[id])
        length = np.linalg.norm(row) * np.linalg.norm(embedding)
        if len(row) != len(embedding) or row @ embedding < _SAME * length:
            raise OptionError(
                "overwrite",
                f"The index holds another vector of {id} than the field {target.path!r}: "
                f"{REBUILD}",
            )


def _may_rebuild(target: Target, options: RunOptions) -> bool:
    """Return whether a run may drop its index: if it embeds all of the dataset again."""
    is_whole = options.shard is None and not stages_of(target.samples)
    return options.overwrite and is_whole
