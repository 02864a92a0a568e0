"""Run ``embed_samples``: read images, embed batches, store embeddings by ID."""

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
from pymongo.errors import PyMongoError

from ..cluster.start import start_embedding
from ..embedding.embedder import Embedder
from ..embedding.jobs import Embedded, Failed
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


def embed_samples(
    target: Target, embedder: Embedder, options: RunOptions, progress: Any
) -> EmbeddingReport:
    """Embed what has no embedding yet; see :func:`embed_in_steps`."""
    for step in embed_in_steps(target, embedder, options, progress):
        report = step.report

    return report


def embed_in_steps(
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
        yield from _Run(target, embedder, options, progress, report).steps()
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
class _Run:
    """Embeds, stores and reports; see :func:`embed_in_steps` for the arguments."""

    target: Target
    embedder: Embedder
    options: RunOptions
    progress: Any
    report: EmbeddingReport
    claim: FieldClaim | None = None
    feed: IndexFeed | None = None
    failed_ids: set[str] = field(default_factory=set)
    warned_ids: set[str] = field(default_factory=set)
    bar: Any = field(init=False)
    writer: Writer = field(init=False)

    def steps(self) -> Generator[Step, None, None]:
        """Check everything, embed, and bring the index up to date."""
        target, embedder, options = self.target, self.embedder, self.options
        index = RunIndex(target, embedder, options)
        index.check()
        if target.has_field:
            self.claim = FieldClaim(target, embedder.provenance)
            self.claim.check(
                overwrite=options.overwrite,
                shard=options.shard,
                spot_check=lambda: find_mismatch(target, embedder, options.verify),
            )
            if not (options.overwrite or target.has_parts):
                add_pending_index(target)

        with index.open() as self.feed:
            yield from self._embed()
            self.report.index = index.reconcile(self.report)
            update_index_models(target.dataset)

        # FiftyOne's reloads for another run in this process may have lost it from memory
        target.find_field()

    def _embed(self) -> Generator[Step, None, None]:
        options = self.options
        worklist = Worklist(
            self.target,
            overwrite=options.overwrite,
            shard=options.shard,
            index=None if self.target.has_field else self.feed,
        )
        results = start_embedding(
            worklist.list_jobs(),
            self.embedder,
            options.ray,
            batch_size=(
                options.batch_size or fo.config.default_batch_size or _DEFAULT_BATCH_SIZE
            ),
            local_workers=fou.recommend_thread_pool_workers(options.num_workers),
            task_workers=options.num_workers or 0,
            is_video=self.target.media_type == fom.VIDEO,
            in_order=not options.skip_failures,
        )
        step = Step(self.report, worklist)
        yield step
        first = next(results, [])  # from here on, the total tells whether there is work
        self.bar = fou.ProgressBar(
            total=worklist.total,
            progress=self.progress if worklist.total else False,
            iters_str="samples (total estimated)" if worklist.is_estimate else "samples",
        )
        with self.bar, contextlib.closing(results), Writer(self._on_stored) as writer:
            self.writer = writer
            for some in itertools.chain([first], results):
                self.report.skipped = worklist.skipped
                embedded = [result for result in some if isinstance(result, Embedded)]
                if embedded:
                    self._store(embedded)
                    self._warn(embedded)

                for result in some:
                    if isinstance(result, Failed):
                        self._fail(result)

                yield step

            self.report.skipped = worklist.skipped

        if options.index is not None:
            yield Step(self.report, worklist, is_indexing=True)

    def _store(self, batch: Sequence[Embedded]) -> None:
        if self.claim is not None:
            self.claim.take()

        self.writer.submit(partial(self._write, batch), len(batch))
        tag = self.options.failure_tag
        if tag is not None:
            whole = sorted({result.job.sample_id for result in batch} - self.failed_ids)
            self.writer.submit(partial(self.target.untag, whole, tag))

    def _write(self, batch: Sequence[Embedded]) -> list[Failed]:
        """Write a batch to the field and the index; return what the field refuses."""
        refused = self.claim.store(batch) if self.claim is not None else {}
        if self.feed is not None:
            self.feed.add([result for result in batch if result.part.id not in refused])

        failed: dict[tuple[str, str], list[Embedded]] = {}
        for result in batch:
            if (reason := refused.get(result.part.id)) is not None:
                failed.setdefault((result.job.sample_id, reason), []).append(result)

        return [
            Failed(some[0].job, [result.part for result in some], ValueError(reason))
            for (_, reason), some in failed.items()
        ]

    def _on_stored(self, count: int, refused: Sequence[Failed]) -> None:
        self.report.embedded += count
        self.bar.update(count)
        for result in refused:
            self._fail(result)

    def _warn(self, batch: Sequence[Embedded]) -> None:
        """Report the warnings about the files of a batch, and log each file's once."""
        for result in batch:
            sample_id, path = result.job.sample_id, result.job.path
            for reason in result.warnings:
                notice = Notice(result.part.id, sample_id, path, reason)
                self.report.warned.append(notice)
                if sample_id not in self.warned_ids:
                    logger.warning("Sample %s: %s", sample_id, reason)

            if result.warnings:
                self.warned_ids.add(sample_id)

    def _fail(self, result: Failed) -> None:
        """Report a failure, tag the sample, and stop unless failures are skipped."""
        job, parts = result.job, result.parts
        reason = " ".join(str(result.error).split())  # ffmpeg's has several lines
        self.report.failed += [
            Notice(part.id, job.sample_id, job.path, reason) for part in parts
        ]
        which = parts[0].id if len(parts) == 1 else f"{len(parts)} frames or patches"
        where = "" if parts[0].id == job.sample_id else f" ({which})"
        logger.warning("No embedding for sample %s%s: %s", job.sample_id, where, reason)
        self.failed_ids.add(job.sample_id)
        tag = self.options.failure_tag
        if tag is not None:
            self.writer.submit(partial(self.target.tag, [job.sample_id], tag))

        self.bar.update(len(parts))
        if not self.options.skip_failures:
            raise EmbeddingError(
                f"{reason}\n{KEPT}; skip_failures=True continues after failures",
                self.report,
            ) from result.error
