"""Recovery from out of memory, and from what only looks like it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from fiftyone_hiera.hiera.oom import Halving

# Messages of oneDNN: when memory runs out, and of operations that it does not have
_PRIMITIVE = "could not create a primitive"
_UNSUPPORTED = f"{_PRIMITIVE} descriptor for the matmul primitive. Run workload with ..."


class _Machine:
    """A forward pass that fits some number of images, and keeps its batch sizes."""

    def __init__(self, fits: int, error: Callable[[], Exception] = MemoryError) -> None:
        self.fits = fits
        self.error = error
        self.sizes: list[int] = []

    def __call__(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        self.sizes.append(len(pixels))
        if len(pixels) > self.fits:
            raise self.error()

        return [pixels.float()]


def _run(halving: Halving, count: int) -> None:
    pixels = torch.arange(count)
    (rows,) = halving(pixels)
    assert rows.tolist() == pixels.tolist()


def test_batch_size_that_fits_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    machine = _Machine(fits=5)
    halving = Halving(machine)
    _run(halving, 32)
    assert machine.sizes == [32, 16, 8] + 8 * [4]
    machine.fits = 1000
    for _ in range(20):
        _run(halving, 32)

    assert {*machine.sizes[3:]} == {4}
    assert len(caplog.messages) == 3


@pytest.mark.parametrize("size", [1, 32])
def test_unsupported_operation_is_not_out_of_memory(
    caplog: pytest.LogCaptureFixture, size: int
) -> None:
    machine = _Machine(fits=0, error=lambda: RuntimeError(_UNSUPPORTED))
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(RuntimeError, match="descriptor") as caught,
    ):
        _run(Halving(machine), size)

    assert str(caught.value) == _UNSUPPORTED
    assert machine.sizes == [size]
    assert caplog.messages == []


def test_doubtful_message_is_named_at_a_single_image() -> None:
    machine = _Machine(fits=0, error=lambda: RuntimeError(_PRIMITIVE))
    with pytest.raises(MemoryError, match=r"at a single image.*another fault of oneDNN"):
        _run(Halving(machine), 32)

    assert machine.sizes == [32, 16, 8, 4, 2, 1]


@pytest.mark.parametrize("message", [_PRIMITIVE, "could not create a memory object"])
def test_out_of_memory_of_onednn_is_halved(
    caplog: pytest.LogCaptureFixture, message: str
) -> None:
    machine = _Machine(fits=8, error=lambda: RuntimeError(message))
    _run(Halving(machine), 32)
    assert machine.sizes == [32, 16, 8, 8, 8, 8]
    assert "Out of memory at a batch size of 32: continuing with 16" in caplog.messages
