"""Weights files that are not what they should be, read as the safetensors package does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fiftyone_hiera.hiera.weights_file import WeightsFile, read_metadata

_TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.arange(5, dtype=torch.bfloat16),
    "c": torch.tensor(3.5, dtype=torch.float64),
    "d": torch.arange(4, dtype=torch.float16).view(2, 1, 2),
}
_SHAPES = {name: [*tensor.shape] for name, tensor in _TENSORS.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(_TENSORS, tmp_path / "weights.safetensors", {"format": "pt"})
    return tmp_path / "weights.safetensors"


def _write(path: Path, header: object, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _split(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def test_tensors_are_those_of_the_safetensors_package(path: Path) -> None:
    file = WeightsFile(path, _SHAPES)
    for tensors in (file.tensors(), load_file(path)):
        assert tensors.keys() == _TENSORS.keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == _TENSORS[name].dtype
            assert torch.equal(tensor, _TENSORS[name])

    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_metadata(path) == {"format": "pt"}


def test_tensors_are_held_until_they_are_released(path: Path) -> None:
    file = WeightsFile(path, _SHAPES)
    assert file.tensors("a")[""] is file.tensors()["a"]
    held = file.tensors()["a"]
    file.release()
    again = file.tensors()["a"]
    assert again is not held
    assert torch.equal(again, held)


_Change = Callable[[dict[str, Any], bytes], tuple[object, bytes]]


def _with(**entry: Any) -> _Change:
    return lambda header, data: ({**header, "d": {**header["d"], **entry}}, data)


@pytest.mark.parametrize(
    "change",
    [
        _with(data_offsets=[0, 8]),
        _with(data_offsets=[8, 16]),
        _with(data_offsets=[-8, 0]),
        _with(data_offsets=["0", "8"]),
        _with(data_offsets=None),
        _with(dtype="F31"),
        _with(dtype=["F16"]),
        lambda header, data: (header, data + b"\0"),
        lambda header, data: (header, data[:-1]),
        lambda header, data: ({**header, "d": 1}, data),
        lambda header, data: ([header], data),
        lambda header, data: (b"[" * 100_000, data),
        lambda header, data: (b"\xff" * 8, data),
    ],
)
def test_malformed_file_is_refused(path: Path, change: _Change) -> None:
    _write(path, *change(*_split(path)))
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        WeightsFile(path, _SHAPES)

    with pytest.raises(SafetensorError):
        load_file(path)


def test_header_of_any_length_is_refused(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        WeightsFile(path, _SHAPES)


def test_dtype_without_weights_is_refused(path: Path) -> None:
    save_file({"a": torch.ones(2, dtype=torch.int64)}, path)
    with pytest.raises(ValueError, match=r"unsupported dtype \(first: a is torch.int64\)"):
        WeightsFile(path, {"a": [2]})


def test_unverified_file_gives_no_tensors(path: Path) -> None:
    seen: list[str] = []

    def refuse(digest: str) -> None:
        seen.append(digest)
        raise RuntimeError("another file")

    for content in (path.read_bytes(), b"damaged"):
        path.write_bytes(content)
        with pytest.raises(RuntimeError, match="another file"):
            WeightsFile(path, _SHAPES, refuse)

        assert seen.pop() == hashlib.sha256(content).hexdigest()
