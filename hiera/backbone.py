"""The backbone: from normalized pixels to the tokens of its stages.

Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles,
Ryali et al., ICML 2023, https://arxiv.org/abs/2306.00989

The parameters have the names and shapes of transformers' ``HieraModel``, so its
checkpoints load unchanged, and the outputs are equal up to float32 rounding. Only the
order of the tokens in between differs: here the tokens of a mask unit are adjacent, there
they are far apart. Attention within a mask unit can therefore use four-dimensional views,
for which fast kernels exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from .configuration import Configuration

POSITIONS = "embeddings.position_embeddings"
"""The name of the position embeddings in the state dict."""


class Backbone(nn.Module):
    """A Hiera without a head and without its final LayerNorm.

    Args:
        config: the configuration
        stages (None): the stages whose tokens are returned, from 1, ascending. By
            default, the last. Stages after the last of these are not computed
    """

    order: torch.Tensor

    def __init__(self, config: Configuration, stages: Sequence[int] | None = None) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.stages = tuple(stages or [config.num_stages])

        # On the CPU, even where the parameters are made on the meta device
        self.register_buffer("order", _unit_order(config, 1), persistent=False)
        for stage in self.stages:
            raster = _unit_order(config, stage).argsort()
            self.register_buffer(f"raster{stage}", raster, persistent=False)

    def reduce(self, dtype: torch.dtype) -> None:
        """Compute attention and MLPs in a dtype.

        Patch embedding, residual sums and the projections between stages stay float32:
        they are a twentieth of the work and would cause most of the error.

        Args:
            dtype: the dtype
        """
        for module in self.modules():
            if isinstance(module, (_Attention, _Mlp)):
                module.to(dtype)

    def fuse_attention(self, value: bool) -> None:
        """Choose between torch's fused attention and separate operations.

        Args:
            value: whether to use fused attention
        """
        for module in self.modules():
            if isinstance(module, _Attention):
                module.is_fused = value

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the tokens of :attr:`stages`.

        Args:
            pixels: a tensor of shape (N, 3, H, W)

        Returns:
            a tensor of shape (N, T, D) for each stage, in raster order
        """
        tokens: torch.Tensor = self.embeddings(pixels).index_select(1, self.order)
        wanted = []
        for index, stage in enumerate(self.encoder.stages[: max(self.stages)]):
            tokens = stage(tokens)
            if index + 1 in self.stages:
                raster = self.get_buffer(f"raster{index + 1}")
                wanted.append(tokens.index_select(1, raster))

        return tuple(wanted)


class _Embeddings(nn.Module):
    """The patch embedding, as a convolution or as a matrix product."""

    def __init__(self, config: Configuration) -> None:
        super().__init__()
        shape = (1, math.prod(config.grid_size(1)), config.embed_dim)
        self.patch_embeddings = _PatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.empty(shape))
        self.is_unfolded = False
        self._unfold = nn.Unfold(
            config.patch_size, padding=config.patch_padding, stride=config.patch_stride
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        projection = self.patch_embeddings.projection
        if self.is_unfolded:
            patches = functional.linear(
                self._unfold(pixels).transpose(1, 2),
                projection.weight.flatten(1),
                projection.bias,
            )
        else:
            patches = projection(pixels).flatten(2).transpose(1, 2)

        return patches + self.position_embeddings


class _PatchEmbeddings(nn.Module):
    def __init__(self, config: Configuration) -> None:
        super().__init__()
        self.projection = nn.Conv2d(
            3,
            config.embed_dim,
            kernel_size=config.patch_size,
            stride=config.patch_stride,
            padding=config.patch_padding,
        )


class _Encoder(nn.Module):
    """The stages, over tokens (N, units * T, D); tokens of a mask unit are adjacent."""

    def __init__(self, config: Configuration) -> None:
        super().__init__()
        units = math.prod(config.grid_size(1)) // math.prod(config.masked_unit_size)
        self.stages = nn.ModuleList()
        stride = math.prod(config.query_stride)
        dim = config.embed_dim
        for index, depth in enumerate(config.depths):
            dim_out = config.stage_dim(index + 1)
            stage = _Stage()
            for layer in range(depth):
                # The first block of a stage pools, and attends like the stage before
                is_first = layer == 0 and index > 0
                is_local = config.masked_unit_attention[index] or (
                    is_first and config.masked_unit_attention[index - 1]
                )
                attention = _Attention(
                    dim_in=dim if is_first else dim_out,
                    dim=dim_out,
                    heads=config.num_heads[index],
                    units=units,
                    is_local=is_local,
                    stride=stride if is_first and index <= config.num_query_pool else 1,
                )
                stage.layers.append(_Block(config, attention))

            self.stages.append(stage)
            dim = dim_out


class _Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            tokens = layer(tokens)

        return tokens


class _Block(nn.Module):
    def __init__(self, config: Configuration, attention: _Attention) -> None:
        super().__init__()
        dim_in, dim = attention.qkv.in_features, attention.proj.out_features
        self.layernorm_before = nn.LayerNorm(dim_in, eps=config.layer_norm_eps)
        self.attn = attention
        self.layernorm_after = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = _Mlp(dim, int(dim * config.mlp_ratio))
        self.proj = nn.Linear(dim_in, dim) if dim_in != dim else None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        dtype = self.mlp.fc1.weight.dtype  # see Backbone.reduce
        normalized = self.layernorm_before(tokens)
        if self.proj is not None:
            tokens = self.attn.pool(self.proj(normalized))

        tokens = tokens + self.attn(normalized.to(dtype))
        hidden: torch.Tensor = self.mlp(self.layernorm_after(tokens).to(dtype))
        return tokens + hidden


class _Attention(nn.Module):
    """Attention within each mask unit (local) or over all tokens, with pooled queries.

    Args:
        dim_in: the length of an input token
        dim: the length of an output token
        heads: the number of heads
        units: the number of mask units
        is_local: whether a token attends only to tokens of its mask unit
        stride: the number of tokens that are pooled into one
    """

    def __init__(
        self, *, dim_in: int, dim: int, heads: int, units: int, is_local: bool, stride: int
    ) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim_in, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.is_fused = True
        self._heads = heads
        self._windows = units if is_local else 1
        self._units = units
        self._stride = stride

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Max-pool the tokens (N, units * T, D) over the first digit of their index.

        See :func:`_unit_order`.
        """
        if self._stride == 1:
            return tokens

        return _split(tokens, (self._units, self._stride, -1)).amax(dim=2).flatten(1, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        mixed = self._attend(*map(self._to_heads, (self.pool(query), key, value)))
        mixed = mixed.transpose(1, 2)
        result: torch.Tensor = self.proj(
            mixed.reshape(-1, tokens.shape[1] // self._stride, self.proj.in_features)
        )
        return result

    def _to_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """From (N, windows * T, heads * D) to (N * windows, heads, T, D)."""
        shape = (-1, tokens.shape[1] // self._windows, self._heads, self._head_dim)
        return tokens.reshape(shape).transpose(1, 2)

    @property
    def _head_dim(self) -> int:
        return self.proj.in_features // self._heads

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        if self.is_fused:
            return functional.scaled_dot_product_attention(query, key, value)

        scores = query * self._head_dim**-0.5 @ key.transpose(-1, -2)
        mixed: torch.Tensor = scores.softmax(dim=-1) @ value
        return mixed


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return hidden


def resize_positions(
    positions: torch.Tensor, old: tuple[int, int], new: tuple[int, int]
) -> torch.Tensor:
    """Interpolate position embeddings for images of another size.

    As transformers does with ``interpolate_pos_encoding``, but once instead of in each
    forward pass.

    Args:
        positions: a tensor of shape (1, T, D)
        old: the (height, width) of their grid, in tokens
        new: the (height, width) of the new grid, in tokens

    Returns:
        a tensor of shape (1, T', D)
    """
    if old == new:
        return positions

    grid = positions.float().unflatten(1, old).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, new, mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).contiguous()


def _split(tokens: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    split: torch.Tensor = tokens.unflatten(1, sizes)
    return split


def _unit_order(config: Configuration, stage: int) -> torch.Tensor:
    """Return the raster indices of a stage's tokens in the order of the network.

    The mask units follow one another. Within a mask unit, the index of a token has a
    digit for each pooling that is yet to come, that of the next pooling first. The digit
    is the token's place in the window that the pooling merges: 0 to 3, in raster order,
    for windows of 2x2. Pooling takes the maximum over the first digit, and the other
    digits are the index in the next stage. No pooling moves a token.

    A mask unit of 4x4 tokens, pooled twice by 2x2::

         0  1 |  2  3
         4  5 |  6  7
        ------+------
         8  9 | 10 11
        12 13 | 14 15

    >>> config = Configuration(
    ...     depths=(1, 1, 1),
    ...     embed_dim=8,
    ...     num_heads=(1, 1, 1),
    ...     image_size=(16, 16),
    ...     masked_unit_size=(4, 4),
    ...     masked_unit_attention=(True, True, False),
    ...     num_query_pool=2,
    ... )
    >>> _unit_order(config, 1).view(4, 4)  # the first digit is the row
    tensor([[ 0,  2,  8, 10],
            [ 1,  3,  9, 11],
            [ 4,  6, 12, 14],
            [ 5,  7, 13, 15]])

    The maximum over the rows merges 0, 1, 4 and 5, the upper left window, and so on. What
    is left are the four tokens of stage 2:

    >>> _unit_order(config, 2)
    tensor([0, 1, 2, 3])

    Args:
        config: the configuration
        stage: the stage, from 1

    Returns:
        an int64 tensor of shape (T,)
    """
    pools = min(stage - 1, config.num_query_pool)
    height, width = config.grid_size(stage)
    raster = torch.arange(height * width, device="cpu").view(1, height, width)
    for down, across in [config.query_stride] * (config.num_stages - 1 - pools):
        split = raster.unflatten(2, (-1, across)).unflatten(1, (-1, down))
        raster = split.permute(0, 2, 4, 1, 3).flatten(0, 2)

    in_unit = math.prod(config.masked_unit_size) // math.prod(config.query_stride) ** pools
    return raster.reshape(in_unit, -1).t().flatten()
