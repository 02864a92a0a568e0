"""The stage that embeds, in actors."""

from __future__ import annotations

import os
import socket

import numpy as np
import pyarrow as pa
import torch

from ..embedding.embedder import Embedder
from .blocks import AnswerBlock, pack_answers, unpack_answers
from .spec import EncoderSpec, load_encoder

_NOTHING = np.empty((0, 0), np.float32)


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
