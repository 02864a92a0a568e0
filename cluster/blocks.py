"""Blocks: the tables of one row that go from stage to stage.

Ray Data cuts and merges blocks by their bytes. A row of a few bytes would wait for
128 MB of others, so a row is a whole block here, and is handed over at once.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..embedding.jobs import Job

Array = npt.NDArray[Any]
"""Pixels or embeddings of several parts."""


@dataclass(frozen=True)
class Answer:
    """What became of parts.

    Args:
        numbers: the numbers of the parts, one if they were read
        error (None): why they failed; None if the next row of the block's array is theirs
        warnings (()): the warnings about the file
    """

    numbers: Sequence[int]
    error: str | None = None
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class AnswerBlock:
    """Answers of readers or of encoders.

    Args:
        answers: the answers
        array: an array with a row for each answer without an error: pixels after the
            readers, embeddings after the encoders
        stop (None): why no encoder can go on
    """

    answers: Sequence[Answer]
    array: Array
    stop: str | None = None


def pack_jobs(jobs: Sequence[Job]) -> pa.Table:
    """Make a block of files to read."""
    return pa.table({"jobs": pa.array([pickle.dumps(jobs)], pa.large_binary())})


def unpack_jobs(table: pa.Table) -> list[Job]:
    """Return the files of blocks, which are one unless Ray Data merged some."""
    return [job for cell in table["jobs"] for job in pickle.loads(cell.as_buffer())]


def pack_answers(block: AnswerBlock) -> pa.Table:
    """Make a block of answers; the bytes of its array are not copied."""
    array = np.ascontiguousarray(block.array)
    header = pickle.dumps((block.answers, array.dtype.str, array.shape, block.stop))
    offsets = pa.py_buffer(np.array([0, array.nbytes], np.int64))
    data = pa.py_buffer(array.reshape(-1).view(np.uint8))
    return pa.table(
        {
            "header": pa.array([header], pa.large_binary()),
            "array": pa.LargeBinaryArray.from_buffers(
                pa.large_binary(), 1, [None, offsets, data]
            ),
        }
    )


def unpack_answers(table: pa.Table) -> list[AnswerBlock]:
    """Return the answers of blocks, which are one unless Ray Data merged some."""
    blocks = []
    for header, data in zip(table["header"], table["array"], strict=True):
        answers, dtype, shape, stop = pickle.loads(header.as_buffer())
        array = np.frombuffer(data.as_buffer(), dtype).reshape(shape)
        blocks.append(AnswerBlock(answers, array, stop))

    return blocks
