"""Shapes of state dicts, and from the tensors of a file to a backbone's state dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from torch import nn

from .backbone import POSITIONS, resize_positions
from .configuration import Configuration

Shapes: TypeAlias = Mapping[str, list[int]]
"""The shapes of tensors by name."""


def resize_backbone(
    tensors: Mapping[str, torch.Tensor],
    names: Iterable[str],
    saved: Configuration,
    config: Configuration,
) -> dict[str, torch.Tensor]:
    """Select the backbone's tensors and resize its position embeddings.

    See :attr:`fiftyone_hiera.hiera.checkpoint_kinds.Architecture.read_backbone`.
    """
    old, new = saved.grid_size(1), config.grid_size(1)
    positions = resize_positions(tensors[POSITIONS], old, new)
    return {**{name: tensors[name] for name in names}, POSITIONS: positions}


def shapes_of(module: nn.Module, prefix: str = "") -> dict[str, list[int]]:
    """Return the shapes of a module's state dict, with a prefix before the names."""
    return {prefix + name: [*tensor.shape] for name, tensor in module.state_dict().items()}
