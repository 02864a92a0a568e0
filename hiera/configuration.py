"""The configuration of a Hiera, with the names and defaults of transformers.

Reading one by transformers would import much of it, which takes longer than loading the
weights.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

CLASSIFIER_NAME = "HieraForImageClassification"
AUTOENCODER_NAME = "HieraForPreTraining"

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"

_PROBLEM_TYPES = [SINGLE_LABEL, MULTI_LABEL, REGRESSION]
_FLOATS = {"mlp_ratio", "embed_dim_multiplier", "layer_norm_eps"}
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
        id2label: the names of a classifier's classes, or of a regression's outputs
        problem_type ("single_label_classification"): what a classifier was trained for

    Raises:
        ValueError: if a value is not supported, or does not fit another
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
    problem_type: str = SINGLE_LABEL

    def __post_init__(self) -> None:
        stages = self.num_stages
        for name in ("num_heads", "masked_unit_attention"):
            if len(getattr(self, name)) != stages:
                raise ValueError(
                    f"{name} = {getattr(self, name)} has not one entry for each stage of "
                    f"depths = {self.depths}"
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

        self._check_input()
        self._check_blocks()

    def _check_input(self) -> None:
        sizes = zip(
            self.patch_size, self.patch_stride, self.patch_padding, strict=True
        )  # so many tokens as strides
        if any(not 0 <= 2 * pad - (size - stride) < stride for size, stride, pad in sizes):
            raise ValueError(
                f"patch_padding = {self.patch_padding} does not give one token for each "
                f"patch_stride = {self.patch_stride} with patch_size = {self.patch_size}"
            )

        sides = zip(self.patch_stride, self.masked_unit_size, strict=True)
        unit = tuple(stride * tokens for stride, tokens in sides)
        if any(side % step for side, step in zip(self.image_size, unit, strict=True)):
            raise ValueError(
                f"image_size = {self.image_size} is not a multiple of {unit}, the "
                "patch_stride times the masked_unit_size"
            )

    def _check_blocks(self) -> None:
        if self.hidden_act != "gelu":
            raise ValueError(
                f"hidden_act = {self.hidden_act!r} is not supported, only 'gelu'"
            )

        for index, heads in enumerate(self.num_heads):
            dim = self.stage_dim(index + 1)
            if dim % heads:
                raise ValueError(
                    f"num_heads = {self.num_heads} does not divide the {dim} dimensions of "
                    f"stage {index + 1}, which follow from embed_dim = {self.embed_dim}"
                )

            if index and dim == self.stage_dim(index):
                raise ValueError(
                    f"embed_dim_multiplier = {self.embed_dim_multiplier} is not supported: "
                    f"stage {index + 1} has the {dim} dimensions of the stage before"
                )

            # The first block of a stage attends like the stage before, too
            is_local = any(self.masked_unit_attention[max(index - 1, 0) : index + 1])
            if is_local and index > self.num_query_pool:
                raise ValueError(
                    f"masked_unit_attention = {self.masked_unit_attention} is not "
                    f"supported in stage {index + 1} with num_query_pool = "
                    f"{self.num_query_pool}"
                )

    @property
    def num_stages(self) -> int:
        """The number of stages."""
        return len(self.depths)

    @property
    def class_names(self) -> list[str]:
        """The names of a classifier's classes, in the order of its logits."""
        return [self.id2label[index] for index in range(len(self.id2label))]

    def at_size(self, image_size: tuple[int, int]) -> Configuration:
        """Return the same configuration for images of another (height, width).

        Raises:
            ValueError: if it is not a size that the network takes
        """
        return replace(self, image_size=image_size)

    def grid_size(self, stage: int) -> tuple[int, int]:
        """Return the (height, width) of a stage, in tokens."""
        pools = min(stage - 1, self.num_query_pool)
        sizes = zip(self.image_size, self.patch_stride, self.query_stride, strict=True)
        height, width = (side // patch // pool**pools for side, patch, pool in sizes)
        return height, width

    def stage_dim(self, stage: int) -> int:
        """Return the length of a stage's tokens."""
        return int(self.embed_dim * self.embed_dim_multiplier ** (stage - 1))

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

    _check_types(known)
    for name in _FLOATS & known.keys():  # transformers refuses integers
        known[name] = float(known[name])

    stages = len(known["depths"])
    for name in ("num_heads", "masked_unit_attention"):
        # As transformers, ignore what is beyond the last stage
        known[name] = known.get(name, Configuration.masked_unit_attention)[:stages]

    if values.get("architectures"):
        known["architecture"] = values["architectures"][0]

    known |= {"id2label": {}, "problem_type": SINGLE_LABEL}
    if known.get("architecture") == CLASSIFIER_NAME:
        known["id2label"] = _read_labels(values)
        known["problem_type"] = _read_problem_type(values, len(known["id2label"]))
        if known["problem_type"] == REGRESSION:
            _check_outputs([*known["id2label"].values()])

    elif known.get("architecture") == AUTOENCODER_NAME:
        _check_decoder(known)

    return Configuration(**known)


def _check_types(values: Mapping[str, Any]) -> None:
    for name in ("depths", "num_heads", *_PAIRS):
        value = values.get(name, (1, 1))
        lowest = 0 if name == "patch_padding" else 1
        is_valid = isinstance(value, tuple) and all(_is_int(one, lowest) for one in value)
        if not is_valid or not value or (name in _PAIRS and len(value) != 2):
            raise _invalid(name, value, f"integers from {lowest}")

    local = values.get("masked_unit_attention", ())
    if not isinstance(local, tuple) or not all(type(one) is bool for one in local):
        raise _invalid("masked_unit_attention", local, "true or false for each stage")

    for name, lowest in (("embed_dim", 1), ("num_query_pool", 0)):
        if not _is_int(values.get(name, 1), lowest):
            raise _invalid(name, values[name], f"an integer from {lowest}")

    for name in _FLOATS & values.keys():
        if not _is_positive(values[name]):
            raise _invalid(name, values[name], "a number above 0")


def _check_decoder(values: Mapping[str, Any]) -> None:
    for name in ("decoder_hidden_size", "decoder_depth", "decoder_num_heads"):
        if not _is_int(values.get(name), 1):
            raise _invalid(name, values.get(name), "an integer from 1")

    heads, dim = values["decoder_num_heads"], values["decoder_hidden_size"]
    if dim % heads:
        raise ValueError(
            f"decoder_num_heads = {heads} does not divide decoder_hidden_size = {dim}"
        )

    ratio = values.get("mask_ratio", Configuration.mask_ratio)
    if not (_is_positive(ratio) and ratio < 1):
        raise _invalid("mask_ratio", ratio, "a number between 0 and 1")

    is_normalized = values.get("normalize_pixel_loss", True)
    if type(is_normalized) is not bool:
        raise _invalid("normalize_pixel_loss", is_normalized, "true or false")


def _read_labels(values: Mapping[str, Any]) -> dict[int, str]:
    id2label = values.get("id2label")
    if id2label is None:
        count = values.get("num_labels")
        if count is not None and not _is_int(count, 1):
            raise _invalid("num_labels", count, "an integer from 1")

        return {index: f"LABEL_{index}" for index in range(count or 2)}

    if isinstance(id2label, dict):
        labels = {str(index): str(label) for index, label in id2label.items()}
        indices = [str(index) for index in range(len(labels))]
        if labels and labels.keys() == {*indices}:
            return {int(index): labels[index] for index in indices}

    raise _invalid("id2label", id2label, "the name of each output by its index, from 0 on")


def _check_outputs(names: list[str]) -> None:
    # Each is stored in a field of its own
    are_fields = all(re.fullmatch(r"\w+", name, re.ASCII) for name in names)
    if len(names) > 1 and not (are_fields and len({*names}) == len(names)):
        valid = "a different name of letters, digits and _ for each output of a regression"
        raise _invalid("id2label", names, valid)


def _read_problem_type(values: Mapping[str, Any], num_labels: int) -> str:
    """Return what a classifier was trained for; by default, what transformers trains."""
    given = values.get("problem_type")
    if given is None:
        return REGRESSION if num_labels == 1 else SINGLE_LABEL

    if given not in _PROBLEM_TYPES:
        raise _invalid("problem_type", given, f"one of {_PROBLEM_TYPES}")

    if given == SINGLE_LABEL and num_labels == 1:
        raise ValueError(f"problem_type = {given!r} needs more than one label in id2label")

    return str(given)


def _is_int(value: object, lowest: int) -> bool:
    return type(value) is int and value >= lowest


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _invalid(name: str, value: object, valid: str) -> ValueError:
    return ValueError(f"invalid {name}: {reprlib.repr(value)}; expected {valid}")
