"""The options of the models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from .checkpoints import OUTPUTS, Checkpoint, poolings_of
from .hiera.engines import ENGINES, OPENVINO, has_bfloat16, has_openvino
from .hiera.pooling import POOLINGS
from .hiera.user_checkpoint import validate_checkpoint
from .images.preprocessing import Preprocessing

VERSION = "0.1.0"
"""The version of this package."""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The types to compute in by name."""

LAST_STAGE = 4
"""The last of Hiera's stages; they are counted from 1."""

_MOST_MASKS = 64

SIZE_STEP = 32
"""The side in pixels of a mask unit: what sizes of images are multiples of."""

LARGEST_SIZE = 1024
"""The longest side in pixels that images may be prepared at."""

AUTO = "auto"
"""The choice of what is fastest on this machine; see ``docs/performance.md``."""


@dataclass(frozen=True)
class Settings:
    """The options of a model.

    Args:
        pooling ("mean"): how the tokens become one vector: "mean" averages
            them, "cls" takes the first, "pooler" applies the final LayerNorm
            to the average
        normalize (False): whether to scale each vector to length 1 (L2)
        dtype ("auto"): the type to compute in: "float32", "bfloat16" or
            "float16"; vectors are float32 in each case. "auto" is bfloat16 on
            CPUs with AVX512-BF16, and float32 elsewhere
        engine ("auto"): what runs the network: "torch", "compile" (by
            torch.compile) or "openvino". "auto" is OpenVINO on CPUs, if it is
            installed and can compute in the dtype there, and torch elsewhere
        device (None): the torch device; None is cuda, else mps, else cpu
        fast_decoding (False): whether to read images faster, large JPEGs
            several times, to pixels that are a grey level or so off
        stage (4): the stage whose tokens become the vector, 1 to 4
        image_size (None): the size in pixels that images are prepared at, as an
            int or as (height, width), multiples of 32 up to 1024. None is that
            of the checkpoint
        squash (False): whether to squash images to that size instead of
            cropping them, so that the ends of elongated ones are seen
        output (None): what ``apply_model`` gives: "classification",
            "reconstruction_error" or "heatmap". None is the first of the
            checkpoint's :data:`OUTPUTS`
        heatmap_basis (None): the path of the basis of heatmaps that
            ``fit_heatmap`` kept
        num_masks (4): through how many masks an autoencoder looks at an image
        checkpoint (None): weights of your own instead of the entry's: a
            folder, a ``.safetensors`` file, or ``<owner>/<name>@<revision>``
    """

    pooling: str = next(iter(POOLINGS))
    normalize: bool = False
    dtype: str = AUTO
    engine: str = AUTO
    device: str | None = None
    fast_decoding: bool = False
    stage: int = LAST_STAGE
    image_size: tuple[int, int] | None = None
    squash: bool = False
    output: str | None = None
    heatmap_basis: str | None = None
    num_masks: int = 4
    checkpoint: str | None = None

    def apply(self, preprocessing: Preprocessing) -> Preprocessing:
        """Return a checkpoint's preprocessing as these options ask for it."""
        if self.image_size is not None:
            preprocessing = preprocessing.at(self.image_size)

        is_squashed = self.squash or preprocessing.is_squashed
        return replace(preprocessing, is_fast=self.fast_decoding, is_squashed=is_squashed)


# The options that are for one output alone
_FOR_OUTPUT = {"heatmap_basis": "heatmap", "num_masks": "reconstruction_error"}


def choose_output(settings: Settings, architecture: str) -> str:
    """Return what ``apply_model`` gives, once it is known what the weights are.

    Args:
        settings: the options
        architecture: one of :data:`hiera.tensors.ARCHITECTURES`

    Returns:
        one of its :data:`OUTPUTS`

    Raises:
        ValueError: if an option is not for such weights
    """
    outputs = list(OUTPUTS[architecture])
    output = settings.output or outputs[0]
    _check_choice(f"output of a checkpoint of type {architecture}", output, outputs)
    poolings = poolings_of(architecture)
    what = f"pooling of a checkpoint of type {architecture}"
    _check_choice(what, settings.pooling, poolings)
    for option, meant_for in _FOR_OUTPUT.items():
        is_given = getattr(settings, option) != getattr(Settings, option)
        if is_given and output != meant_for:
            raise ValueError(
                f"Invalid {option}: it is for output {meant_for!r}, and this is {output!r}"
            )

    return output


def default_pooling(checkpoint: Checkpoint, options: Mapping[str, Any]) -> str:
    """Return the pooling of an entry of the zoo where none is asked for.

    Args:
        checkpoint: the entry
        options: the options that were given
    """
    has_norm = options.get("stage", LAST_STAGE) == LAST_STAGE
    return next(name for name in checkpoint.poolings if has_norm or name != "pooler")


def parse_settings(checkpoint: Checkpoint, options: Mapping[str, Any]) -> Settings:
    """Validate the options of a model, before any weights are touched.

    Args:
        checkpoint: the entry of the zoo
        options: the options that were given

    Returns:
        a :class:`Settings`; device, dtype and engine are those that will be used

    Raises:
        ValueError: if an option or its value is unknown; the message gives it
            and the valid ones
    """
    names = [field.name for field in fields(Settings)]
    for name in options:
        if name not in names:
            raise ValueError(f"Unknown option {name!r}. Valid are {names}")

    pooling = default_pooling(checkpoint, options)
    settings = Settings(**{"pooling": pooling, **options})
    _check_choice(f"pooling of {checkpoint.name}", settings.pooling, checkpoint.poolings)
    _check_choice("normalize", settings.normalize, [False, True])
    _check_choice("dtype", settings.dtype, [AUTO, *DTYPES])
    _check_choice("engine", settings.engine, [AUTO, *ENGINES])
    _check_choice("fast_decoding", settings.fast_decoding, [False, True])
    _check_choice("stage", settings.stage, list(range(1, LAST_STAGE + 1)))
    _check_choice("squash", settings.squash, [False, True])
    if settings.pooling == "pooler" and settings.stage != LAST_STAGE:
        raise ValueError(
            f"Invalid stage: {settings.stage}. Pooling 'pooler' applies the LayerNorm of "
            f"stage {LAST_STAGE}; for another stage, use another pooling"
        )

    if type(settings.num_masks) is not int or not 1 <= settings.num_masks <= _MOST_MASKS:
        raise ValueError(
            f"Invalid num_masks: {settings.num_masks!r}. Valid are 1 to {_MOST_MASKS}"
        )

    basis = _parse_path("heatmap_basis", settings.heatmap_basis)
    settings = replace(settings, heatmap_basis=basis)
    if settings.checkpoint is None:
        output = choose_output(settings, checkpoint.architecture)
        settings = replace(settings, output=output)

    settings = replace(settings, image_size=_parse_image_size(settings.image_size))

    if settings.checkpoint is not None:
        settings = replace(settings, checkpoint=str(settings.checkpoint))
        validate_checkpoint(str(settings.checkpoint))

    settings = replace(settings, device=_parse_device(settings.device))
    settings = replace(settings, dtype=_choose_dtype(settings))
    return replace(settings, engine=_choose_engine(settings))


def _parse_path(option: str, path: object) -> str | None:
    if path is None:
        return None

    if not (isinstance(path, (str, Path)) and Path(path).is_file()):
        raise ValueError(f"Invalid {option}: {str(path)!r} is no file")

    return str(path)


def _parse_image_size(size: object) -> tuple[int, int] | None:
    if size is None:
        return None

    sides: list[Any] = list(size) if isinstance(size, (list, tuple)) else [size, size]
    valid = range(SIZE_STEP, LARGEST_SIZE + 1, SIZE_STEP)
    if len(sides) != 2 or not all(
        isinstance(side, Integral) and side in valid for side in sides
    ):
        raise ValueError(
            f"Invalid image_size: {size!r}. Valid are the multiples of {SIZE_STEP} up to "
            f"{LARGEST_SIZE}, as an int or as (height, width)"
        )

    height, width = map(int, sides)
    return height, width


def _choose_dtype(settings: Settings) -> str:
    if settings.dtype != AUTO:
        return settings.dtype

    # By the machine alone, so that it never changes there
    return "bfloat16" if settings.device == "cpu" and has_bfloat16() else "float32"


def _choose_engine(settings: Settings) -> str:
    obstacle = _openvino_obstacle(settings)
    if settings.engine == AUTO:
        return "torch" if obstacle else "openvino"

    if settings.engine == "openvino" and obstacle:
        raise ValueError(f"Invalid engine: 'openvino' {obstacle}")

    return settings.engine


def _openvino_obstacle(settings: Settings) -> str | None:
    if settings.device != "cpu":
        return f"is for device 'cpu', not {settings.device!r}"

    dtypes = ["float32", "bfloat16"] if has_bfloat16() else ["float32"]
    if settings.dtype not in dtypes:
        return f"cannot compute in {settings.dtype!r} on this CPU, only in {dtypes}"

    if not has_openvino():
        return f"is not installed: pip install '{OPENVINO}'"

    return None


def _check_choice(option: str, value: object, valid: list[Any]) -> None:
    if not any(type(value) is type(choice) and value == choice for choice in valid):
        raise ValueError(f"Invalid {option}: {value!r}. Valid are {valid}")


def _parse_device(device: object) -> str:
    available = _available_devices()
    if device is None:
        return available[0]

    name = str(device)
    if name not in available:
        raise ValueError(
            f"Invalid device: {name!r}. Available are {available}, None takes the first"
        )

    return name


def _available_devices() -> list[str]:
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [
        *(["cuda", *cuda] if cuda else []),
        *(["mps"] if torch.backends.mps.is_available() else []),
        "cpu",
    ]
