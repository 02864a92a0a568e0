"""Recover from out of memory by halving batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Pixels: TypeAlias = "torch.Tensor | Sequence[torch.Tensor]"
"""The encoder's input for N images, as one tensor or as N."""

Arrays: TypeAlias = Sequence[npt.NDArray[np.float32]]

logger = logging.getLogger(__name__)

# Out of memory in messages of RuntimeErrors, where torch has no class for it
_MESSAGES = (
    "out of memory",
    "can't alloc",
    "bad_alloc",
    "could not create a",
    "Failed to allocate",
)


class Halving:
    """Runs a function over batches, and halves batches that run out of memory.

    A batch size that failed is not tried again.

    Args:
        forward: maps the pixels of N images to arrays of N rows each
    """

    def __init__(self, forward: Callable[[Pixels], Arrays]) -> None:
        self._forward = forward
        self._largest: int | None = None
        self._reason = ""

    def __call__(self, pixels: Pixels) -> Arrays:
        """Run the function over a batch.

        Args:
            pixels: the pixels of N >= 1 images

        Returns:
            the arrays of N rows each

        Raises:
            MemoryError: if there is not enough memory even for one image
        """
        parts: list[Arrays] = []
        rest = pixels
        while len(rest):
            part = rest[: self._largest]
            arrays = self._try(part)
            if arrays is None:
                self._halve(len(part))
                continue

            if any(len(rows) != len(part) for rows in arrays):
                raise RuntimeError(
                    f"{[len(rows) for rows in arrays]} results for {len(part)} images"
                )

            parts.append(arrays)
            rest = rest[len(part) :]

        if len(parts) == 1:
            return parts[0]

        return [np.concatenate(rows) for rows in zip(*parts, strict=True)]

    def _try(self, pixels: Pixels) -> Arrays | None:
        # The exception keeps the tensors of the failed attempt alive, so it must be gone
        # before the next attempt
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
                "Out of memory at a single image: free some memory, or choose a smaller "
                f"checkpoint or another device ({self._reason})"
            )

        self._largest = size // 2
        logger.warning(
            "Out of memory at a batch size of %d: continuing with %d", size, self._largest
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True

    return any(message in str(error) for message in _MESSAGES)


def _reason(error: Exception) -> str:
    """Return the line that names the cause; OpenVINO begins with source locations."""
    lines = str(error).splitlines() or [type(error).__name__]
    named = [line for line in lines if any(message in line for message in _MESSAGES)]
    return (named or lines)[0]
