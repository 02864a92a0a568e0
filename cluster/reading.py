"""Read files in tasks of the cluster.

Tasks run in as many processes as a node has cores: an import of torch would cost each of
them 0.5 GB and seconds.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..embedding.jobs import Job
from ..embedding.prefetch import Input, Read, read_ahead
from ..images.opening import is_uri, to_local
from ..images.preprocessing import Preprocessing


@dataclass(frozen=True)
class Answer:
    """Outcome of parts.

    Args:
        numbers: the numbers of the parts, one if they were read
        error (None): why they failed; None if the next row of the piece is theirs
        warnings (()): the warnings about the file
    """

    numbers: Sequence[int]
    error: str | None = None
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Piece:
    """Some of the parts of a block, as a reader or an encoder hands them over.

    Args:
        answers: the answers
        rows: an array with a row for each answer without an error: pixels after the
            readers, embeddings after the encoders
    """

    answers: Sequence[Answer]
    rows: npt.NDArray[Any]


def read_block(
    jobs: Sequence[Job],
    *,
    preprocessing: Mapping[str, Any],
    is_video: bool,
    num_workers: int,
    block_size: int,
) -> Iterator[Piece]:
    """Read and prepare the files of a block.

    Args:
        jobs: the files, whose parts have numbers for IDs
        preprocessing: the fields of the preprocessing. Its pickle would name the folder
            of the driver's package, which need not be this node's
        is_video: whether the files are videos
        num_workers: the number of threads; with 0, the task's own reads
        block_size: the number of parts to hand over at once

    Yields:
        pieces with pixels
    """
    reads = read_ahead(
        jobs,
        Preprocessing(**preprocessing),
        is_video=is_video,
        num_workers=num_workers,
        ahead=2 * block_size,
    )
    while some := [*itertools.islice(reads, block_size)]:
        pixels = [read.pixels for read in some if isinstance(read, Input)]
        yield Piece([*map(_to_answer, some)], np.array(pixels, np.uint8))


def _to_answer(read: Read) -> Answer:
    if isinstance(read, Input):
        return Answer([int(read.part.id)], None, read.warnings)

    reason, path = str(read.error), to_local(read.job.path)
    if not is_uri(path) and not os.path.isfile(path):
        reason = f"{reason} (on node {socket.gethostname()})"

    return Answer([int(part.id) for part in read.parts], reason)
