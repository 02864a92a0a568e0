"""The source of results on Ray, in place of :func:`embedding.local.embed_locally`."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence

from ..embedding.embedder import Embedder
from ..embedding.jobs import Failed, Job, Result, check_row
from .blocks import AnswerBlock
from .encoding import embed_block
from .ledger import Ledger
from .options import RayOptions
from .session import Actors, connect
from .spec import describe_encoder
from .stream import Stream, StreamSettings, read_one_by_one

# After so many seconds without a result, blocks on their way may be lost
_PATIENCE = 20


def embed_on_ray(
    jobs: Iterable[Job],
    embedder: Embedder,
    options: RayOptions,
    *,
    is_video: bool = False,
    batch_size: int,
    num_workers: int = 0,
) -> Generator[list[Result], None, None]:
    """Embed the parts of files on a cluster.

    A file that kills the process that reads it takes its block with it. What is lost is
    read again, each file in a task of its own, and embedded in this process.

    Args:
        jobs: the files
        embedder: the embedder of this process; the encoders of the cluster are the same
        options: the cluster
        is_video (False): whether the files are videos
        batch_size: the number of images per forward pass
        num_workers (0): the number of threads of each task that reads; with 0, its own

    Yields:
        lists of results, one for each part; an empty list while there is none

    Raises:
        ValueError: if the cluster cannot be used
        RuntimeError: if no encoder can be loaded or can go on
    """
    jobs = iter(jobs)
    first = next(jobs, None)
    if first is None:
        return

    with connect(options) as actors:
        settings = StreamSettings(
            describe_encoder(embedder, actors.device),
            embedder.preprocessing,
            actors,
            is_video=is_video,
            batch_size=batch_size,
            num_workers=num_workers,
            block_size=options.block_size,
        )
        ledger = Ledger(most_blocks(actors))
        blocks = _in_blocks(
            itertools.chain([first], jobs), options.block_size, is_video=is_video
        )
        with Stream(blocks, ledger, settings) as stream:
            for block in stream.read(_PATIENCE):
                yield [] if block is None else _to_results(block, ledger, embedder)

        yield from _embed_again(ledger.missing(), embedder, settings)


def most_blocks(actors: Actors) -> int:
    """Return how many blocks may be on their way at once.

    Enough that no reader and no encoder waits for the driver; more would only take
    memory.
    """
    return 3 * actors.num_readers + 4 * actors.count + 2


def _embed_again(
    jobs: Sequence[Job], embedder: Embedder, settings: StreamSettings
) -> Generator[list[Result], None, None]:
    """Embed files that were lost; those that are lost again have failed."""
    ledger = Ledger(len(jobs))
    for read in read_one_by_one(jobs, ledger, settings):
        if read is None:
            yield []
            continue

        for pixels in read:
            embeddings = embed_block(pixels, embedder, settings.batch_size)
            yield _to_results(embeddings, ledger, embedder)

    for job in ledger.missing():
        kind = "video" if settings.is_video else "image"
        message = f"Cannot read {kind} {job.path!r}: it killed each process that read it"
        yield [Failed(job, job.parts, ValueError(message))]


def _in_blocks(
    jobs: Iterable[Job], block_size: int, *, is_video: bool
) -> Iterator[list[Job]]:
    """Group files to blocks of about so many parts; a video is a block, however long.

    No file is in two blocks, and so each is read once.
    """
    block: list[Job] = []
    size = 0
    for job in jobs:
        block.append(job)
        size += len(job.parts)
        if is_video or size >= block_size:
            yield block
            block, size = [], 0

    if block:
        yield block


def _to_results(block: AnswerBlock, ledger: Ledger, embedder: Embedder) -> list[Result]:
    if block.stop is not None:
        raise RuntimeError(block.stop)

    results: list[Result] = []
    rows = iter(block.array)
    for answer in block.answers:
        embedding = None if answer.error else next(rows)
        settled = ledger.settle(answer.numbers)
        if embedding is not None:
            dtype = embedder.settings.dtype
            results += [
                check_row(job, part, embedding, dtype, answer.warnings)
                for job, part in settled
            ]
        elif settled:
            parts = [part for _, part in settled]
            results.append(Failed(settled[0][0], parts, ValueError(answer.error)))

    return results
