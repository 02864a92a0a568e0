"""Embedding many samples without losing any: read, embed and store, by ID."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import fiftyone as fo
import fiftyone.core.media as fom
import fiftyone.core.utils as fou
import numpy as np
import numpy.typing as npt
import torch
from pymongo.errors import PyMongoError

from ..images.preprocessing import Preprocessing
from .jobs import Job, Part
from .options import KEPT, RunOptions
from .prefetch import Read, read_images, read_videos
from .provenance import FieldClaim, Provenance
from .report import EmbeddingError, EmbeddingReport, Failure
from .returning import Returning
from .target import Target

logger = logging.getLogger(__name__)

_DEFAULT_BATCH_SIZE = 32

# Batches that wait to be stored, before embedding waits for the database
_WAITING_WRITES = 2


@dataclass(frozen=True)
class Embedder:
    """What a run needs of a model.

    Args:
        preprocessing: from a picture to the encoder's input
        embed: from a batch of these to vectors, some perhaps not finite
        provenance: how its embeddings are computed
    """

    preprocessing: Preprocessing
    embed: Callable[[Sequence[torch.Tensor]], npt.NDArray[np.float32]]
    provenance: Provenance


@dataclass(frozen=True)
class Step:
    """How far a run is.

    Args:
        report: what it did; it changes as the run goes on
        total: how many vectors there are to make
    """

    report: EmbeddingReport
    total: int


def run(
    target: Target, embedder: Embedder, options: RunOptions, progress: Any
) -> EmbeddingReport:
    """Embed what has no vector yet; see :func:`run_in_steps`."""
    steps = Returning(run_in_steps(target, embedder, options, progress))
    for _ in steps:
        pass

    return steps.result


def run_in_steps(
    target: Target, embedder: Embedder, options: RunOptions, progress: Any
) -> Generator[Step, None, EmbeddingReport]:
    """Embed what has no vector yet, and say after each image how far it is.

    Closing the generator stops the run; what was embedded by then is stored.

    Args:
        target: what to embed, and where the vectors go
        embedder: the model
        options: the options
        progress: FiftyOne's argument of that name

    Yields:
        a :class:`Step`

    Returns:
        an :class:`EmbeddingReport`

    Raises:
        ValueError: if the field holds vectors that were made otherwise
        EmbeddingError: if the run had to stop, or if everything failed
    """
    start = time.perf_counter()
    report = EmbeddingReport()
    try:
        yield from _embed(target, embedder, options, progress, report)
    except (PyMongoError, _WriteError) as error:
        raise EmbeddingError(
            f"The database was lost, or refused to store vectors: {error}\n"
            f"{options.advice}",
            report,
        ) from error
    except MemoryError as error:
        raise EmbeddingError(f"{error}\n{options.advice}", report) from error
    finally:
        report.seconds = time.perf_counter() - start

    if report.failed and not report.embedded and not report.skipped:
        raise EmbeddingError(
            f"None of {len(report.failed)} could be embedded:\n{report}", report
        )

    return report


def _embed(
    target: Target,
    embedder: Embedder,
    options: RunOptions,
    progress: Any,
    report: EmbeddingReport,
) -> Generator[Step, None, None]:
    claim = FieldClaim(target.dataset, target.path, embedder.provenance)
    clear = check_field(target, claim, overwrite=options.overwrite, shard=options.shard)
    worklist = target.list_work(overwrite=options.overwrite, shard=options.shard)
    report.skipped = worklist.skipped

    batch_size = options.batch_size or fo.config.default_batch_size or _DEFAULT_BATCH_SIZE
    read = read_videos if target.media_type == fom.VIDEO else read_images
    reads = read(
        target.jobs(worklist),
        embedder.preprocessing,
        num_workers=fou.recommend_thread_pool_workers(options.num_workers),
        ahead=2 * batch_size,
    )
    with fou.ProgressBar(total=len(worklist), progress=progress) as bar:
        pipeline = _Pipeline(
            target, embedder, options, report, bar, batch_size, claim, clear
        )
        with contextlib.closing(reads), pipeline.writer:
            step = Step(report, len(worklist))
            yield step
            for item in itertools.chain.from_iterable(reads):
                pipeline.take(item)
                yield step

            pipeline.flush()


def check_field(
    target: Target,
    claim: FieldClaim,
    *,
    overwrite: bool,
    shard: tuple[int, int] | None = None,
) -> Callable[[], None] | None:
    """Check that a run may write to its field.

    Args:
        target: what to embed, and where the vectors go
        claim: what made the field's vectors, and what the run makes
        overwrite: whether vectors that there are may be replaced
        shard (None): the part of the samples to embed

    Returns:
        what must be done before the first write, if anything

    Raises:
        ValueError: if the run would mix its vectors with others
    """
    if claim.is_ours:
        return None

    held, inside = target.count_held()
    if not held:
        return None

    if not overwrite:
        claim.refuse(
            f"The field {target.path!r} holds {held} vectors that were made otherwise, and "
            "vectors must not be mixed. Use another field, or overwrite=True, which "
            "removes all of them before the first new one is stored."
        )

    if inside < held or shard is not None:
        claim.refuse(
            f"Of the {held} vectors in the field {target.path!r} that were made otherwise, "
            f"only some would be overwritten, and vectors must not be mixed. Use another "
            "field, overwrite all samples in one run, or remove them first by "
            "dataset.clear_sample_field() or clear_frame_field()."
        )

    return target.clear


class _Pipeline:
    """Collects what was read into batches, embeds them and hands them on."""

    def __init__(
        self,
        target: Target,
        embedder: Embedder,
        options: RunOptions,
        report: EmbeddingReport,
        bar: Any,
        batch_size: int,
        claim: FieldClaim,
        clear: Callable[[], None] | None,
    ) -> None:
        self.writer = _Writer(self._stored)
        self._target = target
        self._embedder = embedder
        self._options = options
        self._report = report
        self._bar = bar
        self._batch_size = batch_size
        self._claim = claim
        self._clear = clear
        self._is_claimed = False
        self._failed: set[str] = set()
        self._batch: list[tuple[Job, Part, torch.Tensor]] = []

    def take(self, item: Read) -> None:
        if isinstance(item.result, Exception):
            self._fail(item.job, item.parts, item.result)
            return

        self._batch.append((item.job, item.parts[0], item.result))
        if len(self._batch) == self._batch_size:
            self.flush()

    def flush(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return

        vectors = self._embedder.embed([pixels for _, _, pixels in batch])
        finite = np.isfinite(vectors).all(axis=1)
        parts = [part for _, part, _ in batch]
        good = [parts[index] for index in np.flatnonzero(finite)]
        if good:
            if not self._is_claimed:
                self._target.add_field()
                self._claim.claim(self._clear)
                self._is_claimed = True

            self.writer.submit(partial(self._store, good, vectors[finite]), len(good))
            self._untag({batch[index][0].sample_id for index in np.flatnonzero(finite)})

        for index in np.flatnonzero(~finite):
            job, part, _ = batch[index]
            self._fail(job, [part], self._not_finite(job))

    def _store(self, parts: Sequence[Part], vectors: npt.NDArray[np.float32]) -> None:
        self._claim.check()
        self._target.store(parts, vectors)

    def _untag(self, sample_ids: set[str]) -> None:
        tag = self._options.failure_tag
        if tag is not None:
            mended = sorted(sample_ids - self._failed)
            self.writer.submit(partial(self._target.untag, mended, tag), 0)

    def _fail(self, job: Job, parts: Sequence[Part], error: Exception) -> None:
        reason = " ".join(str(error).split())  # ffmpeg's take several lines
        self._report.failed += [
            Failure(part.id, job.sample_id, job.path, reason) for part in parts
        ]
        logger.warning(
            "No embedding for sample %s%s: %s",
            job.sample_id,
            f" ({_name(parts)})" if parts[0].id != job.sample_id else "",
            reason,
        )
        self._failed.add(job.sample_id)
        if self._options.failure_tag is not None:
            tag = partial(self._target.tag, [job.sample_id], self._options.failure_tag)
            self.writer.submit(tag, 0)

        self._bar.update(len(parts))
        if not self._options.skip_failures:
            # What was read before it is kept
            self.flush()
            raise EmbeddingError(
                f"{reason}\n{KEPT}, and skip_failures=True goes on without this one",
                self._report,
            ) from error

    def _not_finite(self, job: Job) -> ValueError:
        return ValueError(
            f"The model gave NaN or infinity for {job.path!r}, computing in "
            f"{self._embedder.provenance['dtype']}"
        )

    def _stored(self, count: int) -> None:
        self._report.embedded += count
        self._bar.update(count)


def _name(parts: Sequence[Part]) -> str:
    return parts[0].id if len(parts) == 1 else f"{len(parts)} frames or patches"


class _WriteError(Exception):
    """A write that failed, whatever the reason."""


class _Writer:
    """Writes in one thread, in order, while few writes wait; stops at an error."""

    def __init__(self, stored: Callable[[int], None]) -> None:
        self._stored = stored
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hiera-write")
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._broken = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            while self._waiting:
                self._finish_one()
        except _WriteError:
            if error_type is None:
                raise
        finally:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, write: Callable[[], None], count: int) -> None:
        while len(self._waiting) >= _WAITING_WRITES:
            self._finish_one()

        self._waiting.append((count, self._pool.submit(self._write, write)))

    def _finish_one(self) -> None:
        count, future = self._waiting.popleft()
        try:
            future.result()
        except Exception as error:  # FiftyOne turns some into ValueErrors
            raise _WriteError(str(error)) from error

        self._stored(count)

    def _write(self, write: Callable[[], None]) -> None:
        # A lost database takes half a minute to be noticed: not once per write
        if self._broken:
            raise RuntimeError("an earlier write failed")

        try:
            write()
        except BaseException:
            self._broken = True
            raise
