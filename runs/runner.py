"""Runs of ``embed_samples``: read images, embed batches, store embeddings by ID."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import fiftyone as fo
import fiftyone.core.media as fom
import fiftyone.core.utils as fou
import numpy as np
from pymongo.errors import PyMongoError

from ..cluster.start import start_embedding
from ..embedding.embedder import Embedder
from ..embedding.jobs import Embedded, Embeddings, Failed, Job, Part
from .field_claim import FieldClaim
from .index_feed import IndexFeed
from .index_model import update_index_models
from .options import KEPT, RunOptions
from .paging import add_pending_index
from .report import EmbeddingError, EmbeddingReport, Notice
from .run_index import RunIndex
from .spot_check import find_mismatch
from .target import Target
from .worklist import Worklist
from .writer import WriteError, Writer

logger = logging.getLogger(__name__)

_DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True)
class Step:
    """The progress of a run.

    Args:
        report: the report, updated as the run goes on
        worklist: what is embedded; its total may be an estimate
        is_indexing (False): whether all is embedded, and the index is brought up to date
    """

    report: EmbeddingReport
    worklist: Worklist
    is_indexing: bool = False


def run(
    target: Target, embedder: Embedder, options: RunOptions, progress: Any
) -> EmbeddingReport:
    """Run to the end and return the report; see :func:`run_in_steps`."""
    for step in run_in_steps(target, embedder, options, progress):
        report = step.report

    return report


def run_in_steps(
    target: Target, embedder: Embedder, options: RunOptions, progress: Any
) -> Generator[Step, None, None]:
    """Embed what has no embedding yet, one image after the other.

    Closing the generator stops the run; what was embedded by then is stored.

    Args:
        target: the samples, and the field for their embeddings
        embedder: the model
        options: the options
        progress: FiftyOne's argument of that name

    Yields:
        a :class:`Step`, at the start and after each image; always with the same report,
        which is complete when the generator is exhausted

    Raises:
        ValueError: if the field holds embeddings computed with different settings
        EmbeddingError: if the run had to stop, or if all inputs failed
    """
    start = time.perf_counter()
    report = EmbeddingReport()
    try:
        yield from _run(target, embedder, options, progress, report)
    except (PyMongoError, WriteError) as error:
        raise EmbeddingError(
            f"The database was lost or refused to store embeddings: {error}\n"
            f"{options.advice}",
            report,
        ) from error
    except EmbeddingError:
        raise
    except (MemoryError, RuntimeError) as error:  # torch and OpenVINO raise RuntimeErrors
        raise EmbeddingError(f"{error}\n{options.advice}", report) from error
    finally:
        report.seconds = time.perf_counter() - start

    failed = len(report.failed)
    if failed and not report.embedded and not report.skipped:
        raise EmbeddingError(f"All inputs failed ({failed} of {failed}):\n{report}", report)


@dataclass
class _Context:
    """What the steps of one run share."""

    target: Target
    options: RunOptions
    claim: FieldClaim | None
    feed: IndexFeed | None
    report: EmbeddingReport
    bar: Any
    writer: Writer
    failed_ids: set[str] = field(default_factory=set)
    warned_ids: set[str] = field(default_factory=set)


def _run(
    target: Target,
    embedder: Embedder,
    options: RunOptions,
    progress: Any,
    report: EmbeddingReport,
) -> Generator[Step, None, None]:
    index = RunIndex(target, embedder, options)
    index.check()
    claim = FieldClaim(target, embedder.provenance) if target.has_field else None
    if claim is not None:
        claim.check(
            overwrite=options.overwrite,
            shard=options.shard,
            spot_check=lambda: find_mismatch(target, embedder, options.verify),
        )
        if not (options.overwrite or target.has_parts):
            add_pending_index(target)

    with index.open() as feed:
        yield from _run_steps(target, embedder, options, progress, report, claim, feed)
        report.index = index.reconcile(report)
        update_index_models(target.dataset)

    # FiftyOne's reloads for another run in this process may have lost it from memory
    target.find_field()


def _run_steps(
    target: Target,
    embedder: Embedder,
    options: RunOptions,
    progress: Any,
    report: EmbeddingReport,
    claim: FieldClaim | None,
    feed: IndexFeed | None,
) -> Generator[Step, None, None]:
    worklist = Worklist(
        target,
        overwrite=options.overwrite,
        shard=options.shard,
        index=None if target.has_field else feed,
    )
    results = start_embedding(
        worklist.read_jobs(),
        embedder,
        options.ray,
        batch_size=(
            options.batch_size or fo.config.default_batch_size or _DEFAULT_BATCH_SIZE
        ),
        local_workers=fou.recommend_thread_pool_workers(options.num_workers),
        task_workers=options.num_workers or 0,
        is_video=target.media_type == fom.VIDEO,
        in_order=not options.skip_failures,
    )
    step = Step(report, worklist)
    yield step
    first = next(results, [])  # from here on, the total tells whether there is work
    unit = "samples (total estimated)" if worklist.is_estimate else "samples"
    bar = fou.ProgressBar(
        total=worklist.total,
        progress=progress if worklist.total else False,
        iters_str=unit,
    )

    def on_stored(count: int, refused: Sequence[Failed]) -> None:
        report.embedded += count
        bar.update(count)
        for result in refused:
            _fail(context, result)

    with bar, contextlib.closing(results), Writer(on_stored) as writer:
        context = _Context(target, options, claim, feed, report, bar, writer)
        for some in itertools.chain([first], results):
            report.skipped = worklist.skipped
            embedded = [result for result in some if isinstance(result, Embedded)]
            if embedded:
                _store(context, embedded)
                _warn(context, embedded)

            for result in some:
                if isinstance(result, Failed):
                    _fail(context, result)

            yield step

        report.skipped = worklist.skipped

    if options.index is not None:
        yield Step(report, worklist, is_indexing=True)


def _store(context: _Context, batch: Sequence[Embedded]) -> None:
    if context.claim is not None:
        context.claim.take()

    context.writer.submit(partial(_write, context, batch), len(batch))
    tag = context.options.failure_tag
    if tag is not None:
        whole = sorted({result.job.sample_id for result in batch} - context.failed_ids)
        context.writer.submit(partial(context.target.untag, whole, tag))


def _write(context: _Context, batch: Sequence[Embedded]) -> list[Failed]:
    """Write a batch to the field, and then to the index.

    Returns:
        what the database refuses to store in the field
    """
    refused: dict[str, str] = {}
    if context.claim is not None:
        refused = context.claim.store(*_columns(batch))

    stored = [result for result in batch if result.part.id not in refused]
    if context.feed is not None and stored:
        context.feed.add(*_columns(stored))

    failed: dict[tuple[str, str], tuple[Job, list[Part]]] = {}
    for result in batch:
        if (reason := refused.get(result.part.id)) is not None:
            key = result.job.sample_id, reason
            failed.setdefault(key, (result.job, []))[1].append(result.part)

    return [
        Failed(job, parts, ValueError(reason))
        for (_, reason), (job, parts) in failed.items()
    ]


def _columns(batch: Sequence[Embedded]) -> tuple[list[str], list[Part], Embeddings]:
    """Return the samples' IDs, the parts, and the embeddings of shape (N, D)."""
    return (
        [result.job.sample_id for result in batch],
        [result.part for result in batch],
        np.stack([result.embedding for result in batch]),
    )


def _warn(context: _Context, batch: Sequence[Embedded]) -> None:
    """Report the warnings about the files of a batch, and log each file's once."""
    for result in batch:
        sample_id, path = result.job.sample_id, result.job.path
        for reason in result.warnings:
            context.report.warned.append(Notice(result.part.id, sample_id, path, reason))
            if sample_id not in context.warned_ids:
                logger.warning("Sample %s: %s", sample_id, reason)

        if result.warnings:
            context.warned_ids.add(sample_id)


def _fail(context: _Context, result: Failed) -> None:
    """Report a failure, tag the sample, and stop the run if it does not skip failures."""
    job, parts = result.job, result.parts
    reason = " ".join(str(result.error).split())  # ffmpeg's has several lines
    context.report.failed += [
        Notice(part.id, job.sample_id, job.path, reason) for part in parts
    ]
    where = parts[0].id if len(parts) == 1 else f"{len(parts)} frames or patches"
    is_whole = parts[0].id == job.sample_id
    logger.warning(
        "No embedding for sample %s%s: %s",
        job.sample_id,
        "" if is_whole else f" ({where})",
        reason,
    )
    context.failed_ids.add(job.sample_id)
    tag = context.options.failure_tag
    if tag is not None:
        context.writer.submit(partial(context.target.tag, [job.sample_id], tag))

    context.bar.update(len(parts))
    if not context.options.skip_failures:
        raise EmbeddingError(
            f"{reason}\n{KEPT}; skip_failures=True continues after failures",
            context.report,
        ) from result.error
