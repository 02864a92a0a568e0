"""Describe and validate the options of models, each in the metadata of its field."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch

from .checkpoints import Checkpoint
from .errors import OptionError, check_choice
from .hiera.checkpoint_kinds import ARCHITECTURES, Architecture
from .hiera.engines import ENGINES, has_bfloat16, openvino_obstacle
from .hiera.pca import load_basis
from .hiera.pooling import POOLINGS
from .hiera.user_checkpoint import find_checkpoint
from .images.preprocessing import Preprocessing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes by name."""

LAST_STAGE = 4
"""The last of Hiera's stages, which are counted from 1."""

AUTO = "auto"
"""The choice of what is fastest on this machine; see ``docs/performance.md``."""

_SIZES = range(32, 1024 + 1, 32)  # multiples of a mask unit's side in pixels
_NUM_MASKS = range(2, 64 + 1)


@dataclass(frozen=True)
class Option:
    """The description of an option, and its validation.

    Args:
        label: the title, for forms
        description: what the option does, for forms and the documentation
        parse: from the name and a given value to the valid value; raises an OptionError.
            Not called for None where that is the default
        choices (()): the values in general, where they can be listed
    """

    label: str
    description: str
    parse: Callable[[str, Any], Any]
    choices: Sequence[Any] = ()

    def __str__(self) -> str:
        choices = [] if self.choices == [False, True] else self.choices
        values = ", ".join(map(json.dumps, choices))
        return f"{values}. {self.description}" if values else self.description


def _option(
    default: Any,
    label: str,
    description: str,
    choices: Sequence[Any] = (),
    parse: Callable[[str, Any], Any] | None = None,
) -> Any:
    parse = parse or partial(check_choice, valid=choices)
    option = Option(label, description, parse, choices)
    return field(default=default, metadata={"option": option})


def _parse_later(name: str, value: object) -> Any:
    """Return the value as it is: what is valid depends on the checkpoint."""
    return value


def _parse_device(name: str, value: object) -> str:
    available = _available_devices()
    if str(value) not in available:
        raise OptionError(
            name,
            f"Invalid {name}: {str(value)!r}. Available are {available}, None takes the "
            "first",
        )

    return str(value)


def _parse_image_size(name: str, value: object) -> tuple[int, int]:
    sides: list[Any] = [*value] if isinstance(value, (list, tuple)) else [value, value]
    is_valid = all(isinstance(side, Integral) and side in _SIZES for side in sides)
    if len(sides) != 2 or not is_valid:
        raise OptionError(
            name,
            f"Invalid {name}: {value!r}. Valid are the multiples of {_SIZES.step} up to "
            f"{_SIZES[-1]}, as an int or as (height, width)",
        )

    height, width = map(int, sides)
    return height, width


def _parse_num_masks(name: str, value: object) -> int:
    if type(value) is not int or value not in _NUM_MASKS:
        valid = f"{_NUM_MASKS[0]} to {_NUM_MASKS[-1]}"
        raise OptionError(name, f"Invalid {name}: {value!r}. Valid are {valid}")

    return value


def _parse_basis(name: str, value: object) -> str:
    if not (isinstance(value, (str, PathLike)) and Path(value).is_file()):
        raise OptionError(name, f"Invalid {name}: {str(value)!r} is not a file")

    try:
        load_basis(Path(value))
    except ValueError as error:
        raise OptionError(name, f"Invalid {name}: {error}") from error

    return str(value)


# Each once; "embeddings" stands for no label
_OUTPUTS = dict.fromkeys(name for one in ARCHITECTURES.values() for name in one.outputs)


@dataclass(frozen=True)
class Settings:
    """The options of a model."""

    pooling: str = _option(
        "mean",
        "Pooling",
        'How the tokens become one embedding: "mean" averages them, "cls" takes the '
        'first, "pooler" applies the final LayerNorm to the average. birder\'s checkpoint '
        'has the default "pooler"; autoencoders (mae) have no "pooler"',
        [*POOLINGS],
        _parse_later,
    )
    normalize: bool = _option(
        False, "Normalize", "Whether to scale embeddings to unit length (L2)", [False, True]
    )
    dtype: str = _option(
        AUTO,
        "Dtype",
        "The dtype of attention and MLPs; embeddings are float32 in each case. "
        '"auto" is bfloat16 on CPUs with AVX512-BF16 and on NVIDIA GPUs from compute '
        "capability 8.0 on, float32 elsewhere",
        [AUTO, *DTYPES],
    )
    engine: str = _option(
        AUTO,
        "Engine",
        'The engine that runs the network; "compile" is torch.compile. "auto" is OpenVINO '
        "on CPUs if it is installed and supports the dtype there, torch elsewhere",
        [AUTO, *ENGINES],
    )
    device: str | None = _option(
        None,
        "Device",
        'The torch device, such as "cuda:1", "mps" or "cpu". By default, the first '
        "available of cuda, mps and cpu",
        parse=_parse_device,
    )
    fast_decoding: bool = _option(
        False,
        "Fast decoding",
        "Whether to decode and resize images faster, large JPEGs several times faster, to "
        "pixels that differ by about one grey level",
        [False, True],
    )
    stage: int = _option(
        LAST_STAGE,
        "Stage",
        "The stage whose tokens are pooled. Earlier stages have finer grids. For your own "
        "weights with fewer stages, the default is their last",
        range(1, LAST_STAGE + 1),
    )
    image_size: tuple[int, int] | None = _option(
        None,
        "Image size",
        "The size of the network's input in pixels, an int or (height, width), multiples "
        f"of {_SIZES.step} up to {_SIZES[-1]}. By default, the checkpoint's own",
        parse=_parse_image_size,
    )
    squash: bool = _option(
        False,
        "Squash",
        "Whether to resize images without preserving the aspect ratio, instead of cropping "
        "the center, so that the ends of elongated images are seen. birder's checkpoint "
        "always does",
        [False, True],
    )
    output: str | None = _option(
        None,
        "Output",
        'What apply_model() computes: "classification" (in1k), "reconstruction_error" '
        '(mae), "heatmap" (all) or "embeddings" (no label; the others). By default, the '
        "first that the checkpoint has",
        [*_OUTPUTS],
        _parse_later,
    )
    heatmap_basis: str | None = _option(
        None,
        "Basis of heatmaps",
        "The path of a file that model.fit_heatmap(dataset, path) wrote",
        parse=_parse_basis,
    )
    num_masks: int = _option(
        4,
        "Number of masks",
        "The number of masks through which an autoencoder sees an image, 2 or more",
        parse=_parse_num_masks,
    )
    checkpoint: str | None = _option(
        None,
        "Checkpoint",
        "Your own weights instead of the model's: a folder, a .safetensors file or "
        "<owner>/<name>@<revision> on the Hugging Face hub",
        parse=lambda name, value: find_checkpoint(str(value)),
    )

    def apply(self, preprocessing: Preprocessing) -> Preprocessing:
        """Return the preprocessing of a checkpoint with these options."""
        if self.image_size is not None:
            preprocessing = preprocessing.at(self.image_size)

        is_squashed = self.squash or preprocessing.is_squashed
        return replace(preprocessing, is_fast=self.fast_decoding, is_squashed=is_squashed)


OPTIONS: dict[str, Option] = {one.name: one.metadata["option"] for one in fields(Settings)}
"""The options by name."""

Settings.__doc__ = "The options of a model.\n\n    Args:" + "".join(
    f"\n        {name} ({getattr(Settings, name)!r}): {option}"
    for name, option in OPTIONS.items()
)


class Options(TypedDict, total=False):
    """The keyword arguments of ``load_model``; :class:`Settings` describes them."""

    pooling: Literal["mean", "cls", "pooler"]
    normalize: bool
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    engine: Literal["auto", "torch", "compile", "openvino"]
    device: str | torch.device | None
    fast_decoding: bool
    stage: Literal[1, 2, 3, 4]
    image_size: int | tuple[int, int] | None
    squash: bool
    output: (
        Literal["classification", "reconstruction_error", "heatmap", "embeddings"] | None
    )
    heatmap_basis: str | PathLike[str] | None
    num_masks: int
    checkpoint: str | PathLike[str] | None


def parse_settings(checkpoint: Checkpoint, options: Mapping[str, Any]) -> Settings:
    """Validate the options of a model, before any weights are touched.

    Args:
        checkpoint: the entry of the zoo
        options: the options that were given, see :class:`Options`

    Returns:
        a :class:`Settings` with the device, dtype and engine that will be used

    Raises:
        ValueError: if an option or its value is invalid; the message lists the valid ones
    """
    for name in options:
        if name not in OPTIONS:
            raise OptionError(name, f"Unknown option {name!r}. Valid are {list(OPTIONS)}")

    given = {"pooling": default_pooling(checkpoint, options), **options}
    settings = Settings(**{name: _parse(name, value) for name, value in given.items()})
    check_choice("pooling", settings.pooling, checkpoint.poolings, f" of {checkpoint.name}")
    output, device = settings.output, settings.device or _available_devices()[0]
    if settings.checkpoint is None:
        _check_pooler(settings, LAST_STAGE)
        output = choose_output(settings, checkpoint.architecture)

    dtype = settings.dtype
    if dtype == AUTO:  # by the machine alone, so that it never changes there
        dtype = "bfloat16" if has_bfloat16(device) else "float32"

    engine, obstacle = settings.engine, openvino_obstacle(dtype, device)
    if engine == AUTO:
        engine = "torch" if obstacle else "openvino"
    elif engine == "openvino" and obstacle:
        raise OptionError("engine", f"Invalid engine: 'openvino' {obstacle}")

    return replace(settings, output=output, device=device, dtype=dtype, engine=engine)


def _parse(name: str, value: Any) -> Any:
    is_default = value is None and getattr(Settings, name) is None
    return None if is_default else OPTIONS[name].parse(name, value)


def default_pooling(checkpoint: Checkpoint, options: Mapping[str, Any]) -> str:
    """Return the default pooling of an entry of the zoo with the given options."""
    has_norm = options.get("stage", LAST_STAGE) == LAST_STAGE
    return next(name for name in checkpoint.poolings if has_norm or name != "pooler")


def fit_settings(settings: Settings, options: Mapping[str, Any], stages: int) -> Settings:
    """Fit settings to a checkpoint of the user's own, once its stages are known.

    Args:
        settings: the settings
        options: the options that were given; without a stage, it is the last one
        stages: the number of stages

    Raises:
        ValueError: if there is no such stage, or if it has no LayerNorm for the pooling
    """
    if "stage" not in options:
        settings = replace(settings, stage=min(stages, LAST_STAGE))

    if settings.stage > stages:
        raise OptionError(
            "stage",
            f"Invalid stage: {settings.stage}. The checkpoint {settings.checkpoint} has "
            f"stages 1 to {stages}",
        )

    _check_pooler(settings, stages)
    return settings


def _check_pooler(settings: Settings, last_stage: int) -> None:
    if settings.pooling == "pooler" and settings.stage != last_stage:
        raise OptionError(
            "stage",
            f"Invalid stage: {settings.stage}. Pooling 'pooler' applies the LayerNorm of "
            f"stage {last_stage}; for another stage, use another pooling",
        )


# The options that are for one output alone
_FOR_OUTPUT = {"heatmap_basis": "heatmap", "num_masks": "reconstruction_error"}


def choose_output(settings: Settings, architecture: Architecture) -> str:
    """Choose what ``apply_model`` computes, of the outputs of a kind of checkpoint.

    Raises:
        ValueError: if an option does not fit the kind of checkpoint
    """
    kind = f" of a checkpoint of type {architecture.name}"
    output = settings.output or architecture.outputs[0]
    check_choice("output", output, architecture.outputs, kind)
    check_choice("pooling", settings.pooling, architecture.poolings, kind)
    for option, meant_for in _FOR_OUTPUT.items():
        if output != meant_for and getattr(settings, option) != getattr(Settings, option):
            raise OptionError(
                option,
                f"Invalid {option}: it is for output {meant_for!r}, and this is {output!r}",
            )

    return output


def _available_devices() -> list[str]:
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [
        *(["cuda", *cuda] if cuda else []),
        *(["mps"] if torch.backends.mps.is_available() else []),
        "cpu",
    ]
