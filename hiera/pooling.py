"""Poolings: from the tokens of a stage to one embedding per image.

Each takes tokens (N, T, D) in raster order and the final LayerNorm, and returns (N, D).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

Norm: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Pooling: TypeAlias = Callable[[torch.Tensor, Norm], torch.Tensor]


def mean(tokens: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Average the tokens."""
    return tokens.mean(dim=1)


def cls(tokens: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Take token 0.

    Hiera has no class token: this is the token of the top-left cell of the grid (32 px
    of 224), after attention to the rest of the image.
    """
    return tokens[:, 0]


def pooler(tokens: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Apply the final LayerNorm to the mean.

    This is transformers' ``pooler_output``. MAE pretraining does not train this
    LayerNorm, fine-tuning does.
    """
    return norm(tokens.mean(dim=1))


POOLINGS: dict[str, Pooling] = {"mean": mean, "cls": cls, "pooler": pooler}
"""The poolings by name, the default first."""
