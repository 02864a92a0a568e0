"""What runs the network: torch as it is, torch compiled, or OpenVINO.

Which of them is the fastest on which machine is in ``docs/performance.md``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import math
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from .backbone import Backbone

Run: TypeAlias = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""From normalized float32 pixels (N, 3, H, W) to float32 tokens (N, T, D) of stages."""

Engine: TypeAlias = Callable[[Backbone, torch.dtype, tuple[int, int]], Run]
"""Takes a backbone in float32 on its device, the dtype to compute in, and (H, W)."""

_LARGE = 512 * 512  # pixels


def run_torch(backbone: Backbone, dtype: torch.dtype, image_size: tuple[int, int]) -> Run:
    """Run the network step by step."""
    device = backbone.order.device
    backbone.reduce(dtype)

    # On CPUs, the fused attention of the reduced types is slower than its steps, but its
    # memory does not grow with the square of the tokens
    is_large = math.prod(image_size) > _LARGE
    backbone.fuse_attention(device.type != "cpu" or dtype == torch.float32 or is_large)
    return backbone


def run_compiled(
    backbone: Backbone, dtype: torch.dtype, image_size: tuple[int, int]
) -> Run:
    """Compile the network with torch.compile, once for all batch sizes."""
    device = backbone.order.device
    run = run_torch(backbone, dtype, image_size)
    # Weights in the layout that the kernels want; only CPU kernels want one
    compiled = torch.compile(run, options={"freezing": device.type == "cpu"})

    def run_batch(pixels: torch.Tensor) -> Sequence[torch.Tensor]:
        # For a batch of one, torch would compile once more
        if len(pixels) == 1:
            return [tokens[:1] for tokens in compiled(pixels.repeat(2, 1, 1, 1))]

        return compiled(pixels)

    # Compiling is part of loading, and so are its errors
    with torch.inference_mode():
        example = torch.zeros(2, 3, *image_size, device=device)
        torch._dynamo.mark_dynamic(example, 0)
        compiled(example)

    return run_batch


def run_openvino(
    backbone: Backbone, dtype: torch.dtype, image_size: tuple[int, int]
) -> Run:
    """Hand the network to OpenVINO; the backbone is needed no more."""
    import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    backbone.reduce(dtype)
    backbone.fuse_attention(False)
    with warnings.catch_warnings(), torch.inference_mode():
        # New torch releases advise against tracing, by which OpenVINO reads networks
        warnings.simplefilter("ignore")
        example = torch.zeros(1, 3, *image_size)
        traced = torch.jit.trace(backbone, example, check_trace=False)
        # What openvino.convert_model() does, but not slowly
        decoder = TorchScriptPythonDecoder(traced, shared_memory=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))

    return _Compiled(model, torch.zeros(2, 3, *image_size))


class _Compiled:
    """A network compiled by OpenVINO, that never returns what it did not compute.

    Where memory runs out, OpenVINO raises an error, or on one thread returns without one
    and leaves what was there. From then on it may compute wrong numbers, and it does not
    give memory back. So each batch has a request of its own, whose results must be as
    many, and after a failure the network is compiled anew.

    Args:
        model: the ``openvino.Model``
        example: a small batch of pixels
    """

    def __init__(self, model: Any, example: torch.Tensor) -> None:
        self._model = model
        self._example = example
        self._lock = threading.Lock()  # one stream serves one thread at a time
        self._compiled: Any = compile_openvino(model)
        self._expected = self._infer(example)
        self._unfinished: list[Any] = []

    def __call__(self, pixels: torch.Tensor) -> Sequence[torch.Tensor]:
        with self._lock:
            if self._compiled is None:
                self._compile_anew()

            try:
                return self._infer(pixels)
            except _NoResultError:
                # It is still at work: destroyed now, it would end the process
                self._unfinished.append(self._compiled)
                self._compiled = None
                raise
            except (MemoryError, RuntimeError):
                self._compiled = None
                raise

    def _infer(self, pixels: torch.Tensor) -> Sequence[torch.Tensor]:
        request = self._compiled.create_infer_request()
        results = request.infer(pixels.numpy())
        tokens = [torch.from_numpy(results[index]) for index in range(len(results))]
        if any(len(rows) != len(pixels) for rows in tokens):
            raise _NoResultError("OpenVINO ran out of memory, and gave no result")

        return tokens

    def _compile_anew(self) -> None:
        compiled = None
        try:
            compiled = self._compiled = compile_openvino(self._model)
            pairs = zip(self._infer(self._example), self._expected, strict=True)
            is_right = all(torch.equal(one, other) for one, other in pairs)
        except (MemoryError, RuntimeError) as error:
            self._unfinished.append(compiled)
            self._compiled = None
            raise MemoryError(f"{_NO_RESTART} ({error})") from error

        if not is_right:
            self._compiled = None
            raise MemoryError(_NO_RESTART)


class _NoResultError(MemoryError):
    """A batch for which there was no memory, and no error either."""


_NO_RESTART = (
    "OpenVINO ran out of memory, and cannot start anew: use a smaller batch_size, or "
    "engine='torch'"
)


OPENVINO = "openvino>=2025.2,<2027"
"""What to install for the engine of that name."""

_OPENVINO_YEAR = 2025

ENGINES: dict[str, Engine] = {
    "torch": run_torch,
    "compile": run_compiled,
    "openvino": run_openvino,
}
"""The engines by name."""


@functools.cache
def has_openvino() -> bool:
    """Return whether an OpenVINO that can be used is installed."""
    try:
        version = importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return False

    return int(version.partition(".")[0]) >= _OPENVINO_YEAR


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    Unless the user opted out, importing it would report that over the network, and
    write files into the user's home.

    Returns:
        the module
    """
    telemetry = "openvino_telemetry"
    previous = sys.modules.get(telemetry)
    sys.modules[telemetry] = None  # type: ignore[assignment]  # as if not installed
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[telemetry]
        if previous is not None:
            sys.modules[telemetry] = previous


def compile_openvino(model: Any) -> Any:
    """Compile a model for the CPU, to be computed in the types that it has.

    Args:
        model: an ``openvino.Model``

    Returns:
        an ``openvino.CompiledModel``
    """
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # else it would choose other types
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    return _openvino_core().compile_model(model, "CPU", options)


@functools.cache
def _openvino_core() -> Any:
    """Return the one core of this process, which is never destroyed.

    A core gives the thread that makes it another stack for signals, and takes that
    stack's memory away with it, in whichever thread it is destroyed. The next signal
    would then end the process.
    """
    return import_openvino().Core()


def has_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16: AVX512-BF16."""
    return bool(torch.cpu._is_avx512_bf16_supported())
