"""Hiera with absolute window position embeddings, as birder saves it.

Window Attention is Not All You Need in Hiera, Bolya et al., 2023,
https://arxiv.org/abs/2311.05613; birder, https://github.com/birder-project/birder

The network is Hiera's own except for its position embeddings: a token has the sum of one
for its place in its mask unit and one for its place in the image. The sums are computed
once, at loading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ..images.preprocessing import Preprocessing
from .backbone import POSITIONS, Backbone
from .configuration import Configuration
from .weights_file import Shapes, read_metadata, shapes_of

NORM = "features.1."
"""The prefix of the final LayerNorm's tensors."""

# The side in pixels of what one global position embedding covers
_GLOBAL_STRIDE = 16

_GLOBAL = "pos_embed"
_WINDOW = "pos_embed_win"
_BLOCK = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)")
_PARTS = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
}


def abswin_shapes(config: Configuration) -> Shapes:
    """Return the shapes of a file's tensors by birder's names."""
    backbone = shapes_of(Backbone(config))
    del backbone[POSITIONS]
    dim = config.embed_dim
    grid = [side // _GLOBAL_STRIDE for side in config.image_size]
    return {
        **{_birder_name(name): shape for name, shape in backbone.items()},
        _GLOBAL: [1, dim, *grid],
        _WINDOW: [1, dim, *config.masked_unit_size],
        **shapes_of(nn.LayerNorm(config.stage_dim(config.num_stages)), NORM),
    }


def read_backbone(
    tensors: Mapping[str, torch.Tensor],
    names: Iterable[str],
    saved: Configuration,
    config: Configuration,
) -> dict[str, torch.Tensor]:
    """Rename the backbone's tensors and join its position embeddings.

    See :attr:`fiftyone_hiera.hiera.checkpoint_kinds.Architecture.read_backbone`.
    """
    renamed = {name: tensors[_birder_name(name)] for name in names if name != POSITIONS}
    window, positions = tensors[_WINDOW].float(), tensors[_GLOBAL].float()
    grid = config.grid_size(1)
    coarse = [side // _GLOBAL_STRIDE for side in config.image_size]
    # In two steps where the size differs from the checkpoint's, as birder does it
    steps = [grid] if [*positions.shape[2:]] == coarse else [coarse, grid]
    for size in steps:
        positions = functional.interpolate(positions, size, mode="bicubic", antialias=True)

    down, across = (side // unit for side, unit in zip(grid, window.shape[2:], strict=True))
    joined = positions + window.tile(down, across)
    return {**renamed, POSITIONS: joined.flatten(2).transpose(1, 2).contiguous()}


def _birder_name(name: str) -> str:
    """Return birder's name of a tensor of the backbone, other than position embeddings."""
    block = _BLOCK.fullmatch(name)
    if block is None:
        return name.replace("embeddings.patch_embeddings.projection", "stem.proj")

    stage, layer, rest = block.groups()
    for ours, theirs in _PARTS.items():
        rest = rest.replace(ours, theirs)

    return f"body.stage{int(stage) + 1}.{layer}.{rest}"


def read_preprocessing(path: Path, image_size: tuple[int, int]) -> Preprocessing:
    """Read the mean and standard deviation; the aspect ratio of images is not preserved.

    See :attr:`fiftyone_hiera.hiera.checkpoint_kinds.Architecture.read_preprocessing`.

    Raises:
        ValueError: if the metadata of the file has no mean and standard deviation
    """
    metadata = read_metadata(path)
    try:
        stats = json.loads(metadata["rgb_stats"])
        mean, std = tuple(stats["mean"]), tuple(stats["std"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold the weights of this model: its metadata has no "
            "'rgb_stats' with 'mean' and 'std', which define how images are normalized"
        ) from error

    return Preprocessing(image_size, image_size, mean=mean, std=std, is_squashed=True)
