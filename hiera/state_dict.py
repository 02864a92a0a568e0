"""Read tensors from a safetensors file: exactly those expected, and no code is run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import HieraConfig

from .backbone import POSITIONS, at_size, grid_size, resize_positions

Shapes: TypeAlias = Mapping[str, list[int]]
"""The shapes of tensors by name."""


def read_tensors(path: Path, expected: Shapes, prefix: str) -> dict[str, torch.Tensor]:
    """Read the tensors of a file whose names begin with a prefix.

    Args:
        path: the path of the file
        expected: the names and shapes of all tensors of the file
        prefix: the prefix

    Returns:
        the tensors by name, without the prefix

    Raises:
        ValueError: if the file is not a complete safetensors file with exactly the
            expected tensors
    """
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
    """Read the metadata of a safetensors file.

    Raises:
        ValueError: if it is not a complete safetensors file
    """
    with _open(path) as file:
        return file.metadata() or {}


def resize_backbone(
    tensors: Mapping[str, torch.Tensor],
    names: Iterable[str],
    config: HieraConfig,
    image_size: tuple[int, int],
) -> dict[str, torch.Tensor]:
    """Select the backbone's tensors and resize its position embeddings.

    See :attr:`fiftyone_hiera.hiera.checkpoint_kinds.Architecture.read_backbone`.
    """
    old, new = (grid_size(one, 1) for one in (config, at_size(config, image_size)))
    positions = resize_positions(tensors[POSITIONS], old, new)
    return {**{name: tensors[name] for name in names}, POSITIONS: positions}


def shapes_of(module: nn.Module, prefix: str = "") -> dict[str, list[int]]:
    """Return the shapes of a module's state dict, with a prefix before the names."""
    return {prefix + name: [*tensor.shape] for name, tensor in module.state_dict().items()}


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


def _differences(expected: Shapes, found: Shapes) -> list[str]:
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
            ("unexpected tensors", extra),
            ("tensors of another shape", misshapen),
        )
        if names
    ]
