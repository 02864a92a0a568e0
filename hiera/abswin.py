"""Hiera with absolute window position embeddings, as birder saves it.

Window Attention is Not All You Need in Hiera, Bolya et al., 2023,
https://arxiv.org/abs/2311.05613; birder, https://github.com/birder-project/birder

The network is Hiera's own but for its position embeddings, which are put together once,
at loading: one for each place in a mask unit, plus one for the place in the image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from ..images.preprocessing import Preprocessing

ARCHITECTURE = "birder.Hiera"
"""What stands for it among transformers' classes."""

NORM = "features.1."
"""What the names of the final LayerNorm's tensors begin with."""

GLOBAL_STRIDE = 16
"""How many pixels a global position embedding is for."""

_GLOBAL = "pos_embed"
_WINDOW = "pos_embed_win"
_BLOCK = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)")
_PARTS = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
}


def birder_name(name: str) -> str:
    """Return how birder names a tensor of the backbone, other than position embeddings."""
    block = _BLOCK.fullmatch(name)
    if block is None:
        return name.replace("embeddings.patch_embeddings.projection", "stem.proj")

    stage, layer, rest = block.groups()
    for ours, theirs in _PARTS.items():
        rest = rest.replace(ours, theirs)

    return f"body.stage{int(stage) + 1}.{layer}.{rest}"


def position_shapes(
    image_size: Sequence[int], unit: Sequence[int], dim: int
) -> dict[str, list[int]]:
    """Return the shapes of birder's position embeddings by name."""
    return {
        _GLOBAL: [1, dim, *(side // GLOBAL_STRIDE for side in image_size)],
        _WINDOW: [1, dim, *unit],
    }


def join_positions(
    tensors: Mapping[str, torch.Tensor], image_size: tuple[int, int], grid: tuple[int, int]
) -> torch.Tensor:
    """Put the position embeddings of each token together.

    Args:
        tensors: those of the file
        image_size: the (height, width) in pixels of the images to come
        grid: the number of their tokens, down and across

    Returns:
        a tensor of shape (1, T, D)
    """
    window, positions = tensors[_WINDOW].float(), tensors[_GLOBAL].float()
    coarse = (image_size[0] // GLOBAL_STRIDE, image_size[1] // GLOBAL_STRIDE)
    # In two steps where the size differs from the checkpoint's, as birder does it
    steps = [grid] if tuple(positions.shape[2:]) == coarse else [coarse, grid]
    for size in steps:
        positions = functional.interpolate(positions, size, mode="bicubic", antialias=True)

    down, across = (side // unit for side, unit in zip(grid, window.shape[2:], strict=True))
    joined = positions + window.tile(down, across)
    return joined.flatten(2).transpose(1, 2).contiguous()


def read_preprocessing(
    path: Path, metadata: Mapping[str, str], image_size: tuple[int, int]
) -> Preprocessing:
    """Read how images are prepared: squashed, with the mean and deviation of the file.

    Args:
        path: the path of the file
        metadata: what it says of itself
        image_size: the encoder's (height, width) in pixels

    Raises:
        ValueError: if the file does not say so
    """
    try:
        stats = json.loads(metadata["rgb_stats"])
        mean, std = tuple(stats["mean"]), tuple(stats["std"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold the weights of this model: its metadata has no "
            "'rgb_stats' with 'mean' and 'std', by which birder's files say how images "
            "are to be normalized"
        ) from error

    return Preprocessing(image_size, image_size, mean=mean, std=std, is_squashed=True)
