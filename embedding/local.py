"""Embed files in this process: threads read ahead of the encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence

from .embedder import Embedder
from .jobs import Job, Result, check_row
from .prefetch import Input, read_ahead


def embed_locally(
    jobs: Iterable[Job],
    embedder: Embedder,
    *,
    is_video: bool = False,
    batch_size: int,
    num_workers: int,
    in_order: bool = False,
) -> Generator[list[Result], None, None]:
    """Embed the parts of files.

    Args:
        jobs: the files
        embedder: the embedder
        is_video (False): whether the files are videos
        batch_size: the number of images per forward pass
        num_workers: the number of threads that read; with 0, the calling thread does
        in_order (False): whether to embed what was read before a failure, so that it
            comes before it

    Yields:
        lists of results, one for each part; an empty list after each part that waits
        for its batch
    """
    reads = read_ahead(
        jobs,
        embedder.preprocessing,
        is_video=is_video,
        num_workers=num_workers,
        ahead=2 * batch_size,
    )
    with contextlib.closing(reads):
        batch: list[Input] = []
        for item in reads:
            if isinstance(item, Input):
                batch.append(item)
                if len(batch) < batch_size:
                    yield []
                    continue

                yield _embed_batch(batch, embedder)
                batch = []
                continue

            if in_order:
                yield _embed_batch(batch, embedder)
                batch = []

            yield [item]

        yield _embed_batch(batch, embedder)


def _embed_batch(inputs: Sequence[Input], embedder: Embedder) -> list[Result]:
    if not inputs:
        return []

    embeddings = embedder.embed([item.pixels for item in inputs])
    dtype = embedder.settings.dtype
    return [
        check_row(item.job, item.part, embedding, dtype, item.warnings)
        for item, embedding in zip(inputs, embeddings, strict=True)
    ]
