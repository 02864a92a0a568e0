"""The similarity index of a run: checked, opened, fed and settled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..embedding.embedder import Embedder
from ..indexes.brain_run import (
    Contents,
    check_index,
    has_table,
    one_line,
    open_index,
    register_index,
)
from .fiftyone_internals import dataset_id, stages_of
from .index_feed import IndexFeed
from .options import RunOptions
from .report import EmbeddingError, EmbeddingReport, IndexChange
from .target import Target

NO_FRAMES = (
    "FiftyOne's brain does not support frame-level embeddings: embed the videos first, "
    "then index or map dataset.to_frames()"
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

    contents = describe_contents(target, embedder)
    feed = IndexFeed(open_index(dataset, index, contents, rebuild=rebuild), target)
    with contextlib.closing(feed):
        yield feed


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
        return None

    try:
        change = None if feed is None else feed.settle()
        if feed is None and target.find_field():
            contents = describe_contents(target, embedder)
            register_index(target.dataset, options.index, contents)
    except Exception as error:
        where = f"in {target.path!r}" if target.has_field else "as far as it was fed"
        raise EmbeddingError(
            f"The embeddings are stored {where}, but the index {options.index.brain_key!r} "
            f"is not up to date: {one_line(error)}\nThe same call brings it up to date",
            report,
        ) from error

    target.dataset.clear_cache()  # of an index that was loaded with the vectors of before
    return change


def describe_contents(target: Target, embedder: Embedder) -> Contents:
    """Describe what the index of a run holds."""
    return Contents(
        dataset_id=str(dataset_id(target.dataset)),
        embeddings_field=target.name or None,
        patches_field=target.patches_field,
        dim=embedder.dim,
        provenance=embedder.provenance,
    )


def _may_rebuild(target: Target, options: RunOptions) -> bool:
    """Return whether a run may drop its index: if all of it is at hand again."""
    if not options.overwrite or options.shard is not None:
        return False

    return target.has_field or not stages_of(target.samples)
