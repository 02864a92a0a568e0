"""Read safetensors files: exactly the expected tensors, with the sha256 of those bytes.

Each read is one pass over the open file: the bytes of a tensor go into memory of its own,
and are hashed there. The safetensors package maps the file instead, so that its tensors
change with the file, and a file that is truncated ends the process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import torch
from torch import nn

from .hub import sha256

Shapes: TypeAlias = Mapping[str, list[int]]
"""The shapes of tensors by name."""

Tensors: TypeAlias = dict[str, torch.Tensor]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_LARGEST_HEADER = 100_000_000  # bytes, as in the safetensors package


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
        self._read = partial(_read, self.path, expected, optional)
        self._held: Tensors | None
        try:
            self._held, self.sha256 = self._read()
        except ValueError:
            if verify is not None:
                verify(sha256(self.path))

            raise

        if verify is not None:
            verify(self.sha256)

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
            tensors, digest = self._read()
        except FileNotFoundError as error:
            raise ValueError(f"{self.path} was removed {again}") from error
        except ValueError as error:
            raise ValueError(f"{self.path} changed {again}") from error

        if digest != self.sha256:
            raise ValueError(f"{self.path} changed {again}")

        return tensors


def shapes_of(module: nn.Module, prefix: str = "") -> dict[str, list[int]]:
    """Return the shapes of a module's state dict, with a prefix before the names."""
    return {prefix + name: [*tensor.shape] for name, tensor in module.state_dict().items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file.

    Raises:
        ValueError: if it is not a safetensors file
    """
    with open(path, "rb") as file:
        _, header = _read_header(path, file)

    metadata: dict[str, str] = header.get(_METADATA, {})
    return metadata


def _read(path: Path, expected: Shapes, optional: str | None) -> tuple[Tensors, str]:
    """Return the tensors of a file and the sha256 of the bytes they were read from."""
    with open(path, "rb") as file:
        start, header = _read_header(path, file)
        header.pop(_METADATA, None)
        if optional and not any(name.startswith(optional) for name in header):
            expected = {k: v for k, v in expected.items() if not k.startswith(optional)}

        _check_fit(path, expected, header)
        digest = hashlib.sha256(start)
        tensors = {}
        for name, tensor in _allocate(path, header):
            data: Any = tensor.flatten().view(torch.uint8).numpy()
            if file.readinto(data) != data.nbytes:
                raise _incomplete(path, f"it ends within {name}")

            digest.update(data)
            tensors[name] = tensor

        if file.read(1):
            raise _incomplete(path, "there are bytes after the last tensor")

    return tensors, digest.hexdigest()


def _read_header(path: Path, file: BinaryIO) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes before the data, and the entries of tensors that they hold."""
    start = file.read(_LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    text = file.read(min(length, _LARGEST_HEADER))
    if len(start) != _LENGTH_BYTES or len(text) != length:
        raise _incomplete(path, "it ends within its header")

    try:
        header: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _incomplete(path, "its header is not JSON") from error

    entries = header.values() if isinstance(header, dict) else [header]
    if not all(isinstance(entry, dict) for entry in entries):
        raise _incomplete(path, "its header does not describe tensors")

    return start + text, header


def _check_fit(path: Path, expected: Shapes, header: Mapping[str, Any]) -> None:
    found = {name: entry.get("shape") for name, entry in header.items()}
    misfits = {
        "tensors missing": sorted(expected.keys() - found.keys()),
        "unexpected tensors": sorted(found.keys() - expected.keys()),
        "tensors of another shape": [
            f"{name} is {found[name]}, not {shape}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
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


def _allocate(path: Path, header: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield an empty tensor for each entry, in the order of the data, which has no gaps."""
    end = 0
    try:
        for name, entry in sorted(header.items(), key=lambda one: one[1]["data_offsets"]):
            tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
            start, end = end, end + tensor.nbytes
            if entry["data_offsets"] != [start, end]:
                raise _incomplete(path, f"{name} is not at {start} to {end}")

            yield name, tensor
    except (KeyError, TypeError) as error:
        raise _incomplete(path, f"its header has an unsupported entry, {error}") from error


def _incomplete(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is not a complete safetensors file ({reason}). Pickle files are never "
        "loaded; delete a partial file and download it again"
    )
