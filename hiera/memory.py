"""Batches that do not fit into memory, in parts that do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Pixels: TypeAlias = "torch.Tensor | Sequence[torch.Tensor]"
"""The encoder's input for N images, stacked or one by one."""

logger = logging.getLogger(__name__)

# RuntimeErrors by which torch says so where it has no class of its own for it
_MESSAGES = (
    "out of memory",
    "can't alloc",
    "bad_alloc",
    "could not create a",
    "Failed to allocate",
)


class Halving:
    """Runs a function over batches; halves those that run out of memory.

    A size that failed once is not tried again.

    Args:
        forward: maps pixels of N images to an array of N rows
    """

    def __init__(self, forward: Callable[[Pixels], npt.NDArray[np.float32]]) -> None:
        self._forward = forward
        self._largest: int | None = None
        self._reason = ""

    def __call__(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Run the function over a batch.

        Args:
            pixels: the pixels of N >= 1 images

        Returns:
            an array of N rows

        Raises:
            MemoryError: if there is not enough memory even for one image
        """
        rows: list[npt.NDArray[np.float32]] = []
        rest = pixels
        while len(rest):
            part = rest[: self._largest]
            vectors = self._try(part)
            if vectors is None:
                self._halve(len(part))
                continue

            if len(vectors) != len(part):
                raise RuntimeError(f"{len(vectors)} results for {len(part)} images")

            rows.append(vectors)
            rest = rest[len(part) :]

        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _try(self, pixels: Pixels) -> npt.NDArray[np.float32] | None:
        # The failed attempt's tensors live as long as its exception, so that
        # must be gone before the next attempt
        try:
            return self._forward(pixels)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise

            self._reason = _reason(error)
            return None

    def _halve(self, size: int) -> None:
        if size == 1:
            raise MemoryError(
                "Out of memory while embedding a single image: free some, or choose a "
                f"smaller checkpoint or another device ({self._reason})"
            )

        self._largest = size // 2
        logger.warning(
            "Out of memory at %d images in one batch: going on with %d", size, self._largest
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True

    return any(message in str(error) for message in _MESSAGES)


def _reason(error: Exception) -> str:
    """Return the line that says it; OpenVINO begins with where it was."""
    lines = str(error).splitlines() or [type(error).__name__]
    named = [line for line in lines if any(message in line for message in _MESSAGES)]
    return (named or lines)[0]
