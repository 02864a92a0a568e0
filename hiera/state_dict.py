"""From a safetensors file to tensors: none missing, none made up, and no code run."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import HieraConfig

from . import abswin
from .backbone import Backbone, grid_size, resize_positions, stage_dim


@dataclass(frozen=True)
class Architecture:
    """Where in a file what is.

    Args:
        backbone: what the names of the backbone's tensors begin with
        norm: what those of the final LayerNorm begin with
    """

    backbone: str
    norm: str


ARCHITECTURES = {
    "HieraModel": Architecture("", "pooler.layernorm."),
    "HieraForImageClassification": Architecture("hiera.", "hiera.pooler.layernorm."),
    "HieraForPreTraining": Architecture("hiera.", "encoder_norm."),
    abswin.ARCHITECTURE: Architecture("", abswin.NORM),
}
"""What a weights file may hold, by the names of transformers' classes."""

POSITIONS = "embeddings.position_embeddings"
"""The backbone's name of its position embeddings."""


def architecture_name(config: HieraConfig) -> str:
    """Return which of :data:`ARCHITECTURES` a configuration is of."""
    return (config.architectures or ["HieraModel"])[0]


def class_names(config: HieraConfig) -> list[str]:
    """Return the names of a classifier's classes, in the order of its logits."""
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    return [names[index] for index in range(len(names))]


def read_tensors(path: Path, config: HieraConfig, prefix: str) -> dict[str, torch.Tensor]:
    """Read a part of a network.

    Args:
        path: the path of the file, which must hold exactly the configuration's network
        config: the transformers configuration
        prefix: what the names of the part's tensors begin with

    Returns:
        the tensors by name, without the prefix

    Raises:
        ValueError: if the file is not a complete safetensors file with exactly the
            tensors and shapes that the configuration asks for
    """
    expected = _expected_shapes(config)
    with _open(path) as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # no dict
        problems = _differences(expected, found)
        if problems:
            raise ValueError(
                f"{path} does not hold the weights of this model: " + "; ".join(problems)
            )

        return {
            name.removeprefix(prefix): file.get_tensor(name)
            for name in expected
            if name.startswith(prefix)
        }


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file says of itself.

    Raises:
        ValueError: if it is not a complete safetensors file
    """
    with _open(path) as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}). Pickle files are "
            "never loaded; delete a partial file and download it again"
        ) from error


def read_backbone(
    path: Path, config: HieraConfig, image_size: tuple[int, int], names: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Read the backbone, with position embeddings for images of a size.

    Args:
        path: the path of the file
        config: the transformers configuration
        image_size: the (height, width) in pixels
        names: the names of the backbone's tensors

    Returns:
        the tensors by these names

    Raises:
        ValueError: as :func:`read_tensors`
    """
    name = architecture_name(config)
    old, new = grid_size(config, 1), grid_size(at_size(config, image_size), 1)
    tensors = read_tensors(path, config, ARCHITECTURES[name].backbone)
    if name == abswin.ARCHITECTURE:
        positions = abswin.join_positions(tensors, image_size, new)
        tensors = {
            ours: tensors[abswin.birder_name(ours)] for ours in names if ours != POSITIONS
        }
        return {**tensors, POSITIONS: positions}

    tensors = {ours: tensors[ours] for ours in names}
    return {**tensors, POSITIONS: resize_positions(tensors[POSITIONS], old, new)}


def at_size(config: HieraConfig, image_size: tuple[int, int]) -> HieraConfig:
    """Return the same configuration for images of another size."""
    resized = copy.copy(config)
    resized.image_size = list(image_size)
    return resized


def _expected_shapes(config: HieraConfig) -> dict[str, list[int]]:
    name = architecture_name(config)
    with torch.device("meta"):
        if name == "HieraForPreTraining":
            # Only its users wait for this import
            from transformers import HieraForPreTraining

            return _shapes(HieraForPreTraining(config), "")

        dim = stage_dim(config, len(config.depths))
        architecture = ARCHITECTURES[name]
        shapes = _shapes(Backbone(config), architecture.backbone)
        if name == abswin.ARCHITECTURE:
            del shapes[POSITIONS]
            shapes = {abswin.birder_name(key): shape for key, shape in shapes.items()}
            shapes |= abswin.position_shapes(
                config.image_size, config.masked_unit_size, config.embed_dim
            )

        shapes |= _shapes(nn.LayerNorm(dim), architecture.norm)
        if name == "HieraForImageClassification":
            shapes |= _shapes(nn.Linear(dim, len(class_names(config))), "classifier.")

    return shapes


def _shapes(module: nn.Module, prefix: str) -> dict[str, list[int]]:
    return {prefix + name: [*tensor.shape] for name, tensor in module.state_dict().items()}


def _differences(expected: dict[str, list[int]], found: dict[str, list[int]]) -> list[str]:
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    misshapen = [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return [
        f"{len(names)} {what} (first: {names[0]})"
        for what, names in (
            ("tensors missing", missing),
            ("tensors too many", extra),
            ("tensors of another shape", misshapen),
        )
        if names
    ]
