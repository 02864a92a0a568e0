"""Recover from out of memory by halving batches."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Pixels: TypeAlias = "torch.Tensor | Sequence[torch.Tensor | npt.NDArray[np.uint8]]"
"""The encoder's input for N images, as one tensor or as N tensors or arrays."""

Arrays: TypeAlias = Sequence[npt.NDArray[np.float32]]

logger = logging.getLogger(__name__)

# Out of memory in messages of RuntimeErrors, where torch has no class for it. oneDNN says
# "could not create a primitive descriptor for ..." of operations that it does not support
_MESSAGE = re.compile(
    "out of memory|can't alloc|bad_alloc|Failed to allocate"
    "|could not create a (?:memory|memory object|primitive)$",
    re.MULTILINE,
)

# oneDNN says this for other reasons too, as a bug or forbidden executable memory
_AMBIGUOUS = "could not create a primitive"
_HINT = ". If enough memory is free, it is another fault of oneDNN on this machine"


class Halving:
    """Run a function over batches, and halve batches that run out of memory.

    It keeps the size that fits: larger batches are divided from then on.

    Args:
        forward: maps the pixels of N images, a tensor of shape (N, 3, H, W), to tensors
            of N rows each, in PyTorch's inference mode
    """

    def __init__(self, forward: Callable[[torch.Tensor], Sequence[torch.Tensor]]) -> None:
        self._forward = forward
        self._largest: int | None = None

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

    @torch.inference_mode()
    def _try(self, pixels: Pixels) -> Arrays | None:
        try:
            return [rows.cpu().numpy() for rows in self._forward(_stack(pixels))]
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise

            reason = _reason(error)

        # The exception, which kept the tensors of the failed attempt alive, is gone
        self._halve(len(pixels), reason)
        return None

    def _halve(self, size: int, reason: str) -> None:
        if size == 1:
            hint = _HINT if _AMBIGUOUS in reason else ""
            raise MemoryError(
                "Out of memory at a single image: free some memory, or choose a smaller "
                f"checkpoint or another device ({reason}){hint}"
            )

        self._largest = size // 2
        logger.warning(
            "Out of memory at a batch size of %d: continuing with %d", size, self._largest
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _stack(pixels: Pixels) -> torch.Tensor:
    if isinstance(pixels, torch.Tensor):
        return pixels

    return torch.stack([torch.as_tensor(image) for image in pixels])


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    is_known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_known or _MESSAGE.search(str(error)) is not None


def _reason(error: Exception) -> str:
    """Return the line that names the cause; OpenVINO begins with source locations."""
    lines = str(error).splitlines() or [type(error).__name__]
    return next(filter(_MESSAGE.search, lines), lines[0])
