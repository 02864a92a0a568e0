"""The stage that reads files, in tasks.

It runs in as many processes as a node has cores: an import of torch would cost each of
them 0.5 GB and seconds.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ..embedding.prefetch import Input, Read, read_images, read_videos
from ..images.opening import is_uri, to_local
from ..images.preprocessing import Preprocessing
from .blocks import Answer, AnswerBlock, pack_answers, unpack_jobs


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


def _to_block(reads: Sequence[Read], size: tuple[int, int]) -> AnswerBlock:
    inputs = [read for read in reads if isinstance(read, Input)]
    pixels = np.empty((len(inputs), 3, *size), np.uint8)
    for row, item in zip(pixels, inputs, strict=True):
        row[...] = item.pixels

    return AnswerBlock([*map(_to_answer, reads)], pixels)


def _to_answer(read: Read) -> Answer:
    if isinstance(read, Input):
        return Answer([int(read.part.id)], None, read.warnings)

    reason, path = str(read.error), to_local(read.job.path)
    if not is_uri(path) and not os.path.isfile(path):
        reason = f"{reason} (on node {socket.gethostname()})"

    return Answer([int(part.id) for part in read.parts], reason)
