"""The stages that run on the workers: reading in tasks, encoding in actors."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..embedding.embedder import Embedder
from ..embedding.prefetch import Input, Read, read_images, read_videos
from ..images.preprocessing import Preprocessing
from ..images.uris import is_uri
from .blocks import Answer, AnswerBlock, pack_answers, unpack_answers, unpack_jobs
from .spec import EncoderSpec, load_encoder

_NOTHING = np.empty((0, 0), np.float32)


def read_block(
    table: pa.Table,
    *,
    preprocessing: Mapping[str, Any],
    is_video: bool,
    num_workers: int,
    block_size: int,
) -> Iterator[pa.Table]:
    """Read and prepare the files of a block.

    Args:
        table: the block
        preprocessing: the fields of the preprocessing. Its pickle would name the folder
            of the driver's package, which need not be this node's
        is_video: whether the files are videos
        num_workers: the number of threads; with 0, the task's own reads
        block_size: the number of parts to hand over at once

    Yields:
        blocks of pixels
    """
    read = read_videos if is_video else read_images
    prepare = Preprocessing(**preprocessing)
    reads = itertools.chain.from_iterable(
        read(
            unpack_jobs(table),
            prepare,
            num_workers=num_workers,
            ahead=2 * block_size,
        )
    )
    while some := [*itertools.islice(reads, block_size)]:
        yield pack_answers(_to_block(some, prepare.crop_size))


class EncodeBlocks:
    """Embeds blocks of pixels in an actor.

    If the encoder cannot be loaded, the answer to each block says why: an error of an
    actor's constructor would be tried again, and its message be lost among Ray's own.

    Args:
        spec: the encoder
        batch_size: the number of images per forward pass
        num_threads: the number of threads, if the node has as many cores
    """

    def __init__(self, spec: EncoderSpec, batch_size: int, num_threads: int) -> None:
        # Ray limits it to the CPUs that the actor reserves
        torch.set_num_threads(min(num_threads, os.cpu_count() or 1))
        self._batch_size = batch_size
        self._stop: str | None = None
        try:
            self._embedder = load_encoder(spec)
        except Exception as error:  # noqa: BLE001  # the driver raises it
            self._stop = str(error)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Embed a block.

        Args:
            table: a block of pixels

        Returns:
            the block with embeddings instead
        """
        if self._stop is not None:
            return pack_answers(AnswerBlock([], _NOTHING, self._stop))

        (block,) = unpack_answers(table)
        try:
            return pack_answers(embed_block(block, self._embedder, self._batch_size))
        except (MemoryError, RuntimeError) as error:
            reason = f"{error} (on node {socket.gethostname()})"
            return pack_answers(AnswerBlock([], _NOTHING, reason))


def embed_block(block: AnswerBlock, embedder: Embedder, batch_size: int) -> AnswerBlock:
    """Embed a block of pixels.

    Args:
        block: the block
        embedder: the embedder
        batch_size: the number of images per forward pass

    Returns:
        the block with embeddings instead
    """
    # A copy, as torch wants to be able to write
    pixels = torch.from_numpy(block.array.copy())
    rows = [embedder.embed(batch) for batch in pixels.split(batch_size) if len(batch)]
    return AnswerBlock(block.answers, np.concatenate(rows) if rows else _NOTHING)


def _to_block(reads: Sequence[Read], size: tuple[int, int]) -> AnswerBlock:
    inputs = [read for read in reads if isinstance(read, Input)]
    pixels = np.empty((len(inputs), 3, *size), np.uint8)
    for row, item in zip(pixels, inputs, strict=True):
        row[...] = item.pixels.numpy()

    return AnswerBlock([*map(_to_answer, reads)], pixels)


def _to_answer(read: Read) -> Answer:
    if isinstance(read, Input):
        return Answer([int(read.part.id)], None, read.warnings)

    reason, path = str(read.error), read.job.path
    if not is_uri(path) and not os.path.isfile(path):
        reason = f"{reason} (on node {socket.gethostname()})"

    return Answer([int(part.id) for part in read.parts], reason)
