"""The configuration of a Hiera, with the names and defaults of transformers.

Reading one by transformers would import much of it, which takes longer than loading the
weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

_PAIRS = (
    "image_size",
    "patch_size",
    "patch_stride",
    "patch_padding",
    "query_stride",
    "masked_unit_size",
)


@dataclass(frozen=True)
class Configuration:
    """The configuration of a Hiera.

    Args:
        depths: the number of blocks in each stage
        embed_dim: the width of the stem
        num_heads: the number of attention heads in each stage
        image_size: the (height, width) of the input in pixels
        architecture ("HieraModel"): the kind of checkpoint
        patch_size ((7, 7)), patch_stride ((4, 4)), patch_padding ((3, 3)): those of the
            patch embedding's convolution
        mlp_ratio (4.0): the width of an MLP, in tokens' lengths
        embed_dim_multiplier (2.0): from the length of a stage's tokens to that of the next
        num_query_pool (3): how many stages begin with pooling
        query_stride ((2, 2)): the (height, width) of the windows that are pooled
        masked_unit_size ((8, 8)): the (height, width) of a mask unit, in tokens
        masked_unit_attention ((True, True, False, False)): the stages whose tokens attend
            within their mask unit only
        hidden_act ("gelu"): the activation of the MLPs
        layer_norm_eps (1e-6): the epsilon of the LayerNorms
        decoder_hidden_size (None), decoder_depth (None), decoder_num_heads (None): the
            decoder of an autoencoder
        normalize_pixel_loss (True): whether an autoencoder reconstructs normalized patches
        mask_ratio (0.6): the share of mask units that an autoencoder does not see
        id2label: the names of a classifier's classes

    Raises:
        ValueError: if the stages do not fit together
    """

    depths: tuple[int, ...]
    embed_dim: int
    num_heads: tuple[int, ...]
    image_size: tuple[int, int]
    architecture: str = "HieraModel"
    patch_size: tuple[int, int] = (7, 7)
    patch_stride: tuple[int, int] = (4, 4)
    patch_padding: tuple[int, int] = (3, 3)
    mlp_ratio: float = 4.0
    embed_dim_multiplier: float = 2.0
    num_query_pool: int = 3
    query_stride: tuple[int, int] = (2, 2)
    masked_unit_size: tuple[int, int] = (8, 8)
    masked_unit_attention: tuple[bool, ...] = (True, True, False, False)
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    decoder_hidden_size: int | None = None
    decoder_depth: int | None = None
    decoder_num_heads: int | None = None
    normalize_pixel_loss: bool = True
    mask_ratio: float = 0.6
    id2label: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stages = len(self.depths)
        if not len(self.num_heads) == len(self.masked_unit_attention) == stages:
            raise ValueError(
                "depths, num_heads and masked_unit_attention have different lengths: "
                f"{self.depths}, {self.num_heads}, {self.masked_unit_attention}"
            )

        if self.num_query_pool >= stages:
            raise ValueError(
                f"num_query_pool = {self.num_query_pool} is not less than the number of "
                f"stages, {stages}"
            )

        pools = stages - 1
        for side, stride in zip(self.masked_unit_size, self.query_stride, strict=True):
            if side % stride**pools:
                raise ValueError(
                    f"masked_unit_size = {self.masked_unit_size} is not a multiple of "
                    f"query_stride = {self.query_stride} to the power of {pools}"
                )

    def to_transformers(self) -> Any:
        """Return transformers' ``HieraConfig``."""
        from transformers import HieraConfig  # slow to import

        values = {one.name: getattr(self, one.name) for one in fields(self)}
        architecture = values.pop("architecture")
        id2label = dict(values.pop("id2label")) or None
        return HieraConfig(architectures=[architecture], id2label=id2label, **values)


def read_configuration(values: Mapping[str, Any]) -> Configuration:
    """Read a configuration that transformers saved.

    Args:
        values: the content of ``config.json``, with ``depths``, ``embed_dim``,
            ``num_heads`` and ``image_size``; what this package does not need is ignored

    Returns:
        a :class:`Configuration`

    Raises:
        ValueError: if a value is of another type, or the stages do not fit together
    """
    names = {one.name for one in fields(Configuration)}
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in names and value is not None
    }
    for name in known.keys() & set(_PAIRS):
        if isinstance(known[name], int):
            known[name] = (known[name], known[name])

    id2label = known.pop("id2label", None) or {0: "LABEL_0", 1: "LABEL_1"}
    known["id2label"] = {int(index): str(label) for index, label in id2label.items()}
    if values.get("architectures"):
        known["architecture"] = values["architectures"][0]

    _check_types(known)
    return Configuration(**known)


def at_size(config: Configuration, image_size: tuple[int, int]) -> Configuration:
    """Return the same configuration for images of another (height, width)."""
    return replace(config, image_size=image_size)


def grid_size(config: Configuration, stage: int) -> tuple[int, int]:
    """Return the (height, width) of a stage, in tokens."""
    pools = min(stage - 1, config.num_query_pool)
    sizes = zip(config.image_size, config.patch_stride, config.query_stride, strict=True)
    height, width = (side // patch // pool**pools for side, patch, pool in sizes)
    return height, width


def stage_dim(config: Configuration, stage: int) -> int:
    """Return the length of a stage's tokens."""
    return int(config.embed_dim * config.embed_dim_multiplier ** (stage - 1))


def _check_types(values: Mapping[str, Any]) -> None:
    for name in ("depths", "num_heads", *_PAIRS):
        value = values.get(name, (1, 1))
        is_valid = isinstance(value, tuple) and all(type(one) is int for one in value)
        if not is_valid or (name in _PAIRS and len(value) != 2):
            raise ValueError(f"invalid {name}: {value!r}")

    for name in ("embed_dim", "mlp_ratio", "embed_dim_multiplier", "layer_norm_eps"):
        value = values.get(name, 1)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise ValueError(f"invalid {name}: {value!r}")
