"""Pool the tokens of a stage into one embedding per image.

Each takes tokens (N, T, D) in raster order and the final LayerNorm, if there is one, and
returns (N, D).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

Norm: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Pooling: TypeAlias = Callable[[torch.Tensor, Norm | None], torch.Tensor]


def mean(tokens: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    """Average all tokens: the one to use, unless you have a reason."""
    return tokens.mean(dim=1)


def cls(tokens: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    """Take the token of the top-left corner (32 of 224 px), after attention to the rest.

    Hiera has no class token, but earlier plugins stored this one under that name.
    """
    return tokens[:, 0]


def pooler(tokens: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    """Apply the final LayerNorm to the mean, as transformers' pooler_output.

    Pretraining does not train this LayerNorm, fine-tuning does.
    """
    assert norm is not None  # load_checkpoint() refuses this pooling
    return norm(tokens.mean(dim=1))


POOLINGS: dict[str, Pooling] = {"mean": mean, "cls": cls, "pooler": pooler}
"""The poolings by name, the default first; forms show their docstrings."""
