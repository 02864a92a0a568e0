"""Read safetensors files: exactly the expected tensors, with the sha256 of those bytes.

A file is read once, and its bytes are hashed and parsed. Given a path, the safetensors
package maps the file instead, so that its tensors change with the file, and a file that is
truncated ends the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

Shapes: TypeAlias = Mapping[str, list[int]]
"""The shapes of tensors by name."""

Tensors: TypeAlias = dict[str, torch.Tensor]

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class MisfitError(ValueError):
    """The tensors of a file are not the expected ones."""


class WeightsFile:
    """A safetensors file that is read at once, and again if need be, to the same tensors.

    Args:
        path: the path of the file; links are followed at once
        expected: the names and shapes of all tensors of the file
        verify (None): raises an error if a sha256 is not the right one
        optional (None): the prefix of expected tensors that the file may lack

    Raises:
        ValueError: if it is not a complete safetensors file with exactly the expected
            tensors
        FileNotFoundError: if it does not exist
    """

    def __init__(
        self,
        path: Path,
        expected: Shapes,
        verify: Callable[[str], None] | None = None,
        optional: str | None = None,
    ) -> None:
        self.path = path.resolve()
        content, self.sha256 = _read(self.path)
        if verify is not None:
            verify(self.sha256)

        self._held: Tensors | None = _parse(self.path, content)
        _check_fit(self.path, expected, self._held, optional)

    def tensors(self, prefix: str = "") -> Tensors:
        """Return the tensors whose names begin with a prefix, by the rest of the name.

        Args:
            prefix (""): the prefix

        Raises:
            ValueError: if they have to be read again, and the file has changed
        """
        tensors = self._read_again() if self._held is None else self._held
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }

    def release(self) -> None:
        """Drop the tensors; if they are needed again, the file is read again."""
        self._held = None

    def _read_again(self) -> Tensors:
        again = (
            "after the model was loaded. Its weights are needed again: load the model again"
        )
        try:
            content, digest = _read(self.path)
        except FileNotFoundError as error:
            raise ValueError(f"{self.path} was removed {again}") from error

        if digest != self.sha256:
            raise ValueError(f"{self.path} changed {again}")

        return _parse(self.path, content)


def shapes_of(module: nn.Module, prefix: str = "") -> dict[str, list[int]]:
    """Return the shapes of a module's state dict, with a prefix before the names."""
    return {prefix + name: [*tensor.shape] for name, tensor in module.state_dict().items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file.

    Raises:
        ValueError: if it is not a safetensors file
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise _incomplete(path, error) from error


def _read(path: Path) -> tuple[bytes, str]:
    content = path.read_bytes()
    return content, hashlib.sha256(content).hexdigest()


def _parse(path: Path, content: bytes) -> Tensors:
    try:
        tensors: Tensors = safetensors.torch.load(content)
    except (SafetensorError, KeyError) as error:  # a KeyError names an unknown dtype
        raise _incomplete(path, error) from error

    # torch aligns the memory of a clone, and the rounding of matrix products depends on it
    return {name: tensors.pop(name).clone() for name in [*tensors]}


def _check_fit(path: Path, expected: Shapes, found: Tensors, optional: str | None) -> None:
    if optional and not any(name.startswith(optional) for name in found):
        expected = {k: v for k, v in expected.items() if not k.startswith(optional)}

    misfits = {
        "tensors missing": sorted(expected.keys() - found.keys()),
        "unexpected tensors": sorted(found.keys() - expected.keys()),
        "tensors of another shape": [
            f"{name} is {[*found[name].shape]}, not {shape}"
            for name, shape in expected.items()
            if name in found and [*found[name].shape] != shape
        ],
        "tensors of an unsupported dtype": [
            f"{name} is {tensor.dtype}"
            for name, tensor in found.items()
            if tensor.dtype not in _DTYPES
        ],
    }
    problems = [
        f"{len(names)} {what} (first: {names[0]})"
        for what, names in misfits.items()
        if names
    ]
    if problems:
        raise MisfitError(
            f"{path} does not hold the weights of this model: " + "; ".join(problems)
        )


def _incomplete(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is not a complete safetensors file ({error}). Pickle files are never "
        "loaded; delete a partial file and download it again"
    )
