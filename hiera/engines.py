"""Run the backbone by an engine: torch, torch.compile or OpenVINO.

See ``docs/performance.md`` for their speed.
"""

from __future__ import annotations

import ctypes
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

Forward: TypeAlias = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""From normalized float32 pixels (N, 3, H, W) to float32 tokens (N, T, D) per stage."""

Engine: TypeAlias = Callable[[Backbone, torch.dtype, tuple[int, int]], Forward]
"""Takes a float32 backbone on its device, the dtype to compute in and the input size."""

_LARGE = 512 * 512  # pixels

# Per stream of OpenVINO
_IMAGES_AT_ONCE = 4


def run_torch(
    backbone: Backbone, dtype: torch.dtype, image_size: tuple[int, int]
) -> Forward:
    """Run the backbone with torch."""
    device = backbone.order.device
    backbone.reduce(dtype)

    # By default, cuDNN's convolutions compute float32 in TF32; matrix products do not
    backbone.embeddings.is_unfolded = device.type == "cuda"

    # On CPUs, fused attention in reduced dtypes is slower than separate operations, but its
    # memory does not grow with the square of the number of tokens
    is_large = math.prod(image_size) > _LARGE
    backbone.fuse_attention(device.type != "cpu" or dtype == torch.float32 or is_large)
    return backbone


def run_compiled(
    backbone: Backbone, dtype: torch.dtype, image_size: tuple[int, int]
) -> Forward:
    """Compile the backbone with torch.compile, once for all batch sizes."""
    device = backbone.order.device
    forward = run_torch(backbone, dtype, image_size)
    # Freezing stores weights in the layout of the kernels; only CPU kernels have one
    compiled = torch.compile(forward, options={"freezing": device.type == "cpu"})

    def run_batch(pixels: torch.Tensor) -> Sequence[torch.Tensor]:
        # A batch of one would be compiled separately
        if len(pixels) == 1:
            return [tokens[:1] for tokens in compiled(pixels.repeat(2, 1, 1, 1))]

        return compiled(pixels)

    # Compile at loading, so that errors are raised there
    with torch.inference_mode():
        example = torch.zeros(2, 3, *image_size, device=device)
        torch._dynamo.mark_dynamic(example, 0)
        compiled(example)

    return run_batch


def run_openvino(
    backbone: Backbone, dtype: torch.dtype, image_size: tuple[int, int]
) -> Forward:
    """Convert the backbone to OpenVINO; its own weights are no longer needed."""
    model = convert_openvino(backbone, dtype, image_size)
    return _Compiled(model, torch.zeros(2, 3, *image_size))


def convert_openvino(
    backbone: Backbone, dtype: torch.dtype, image_size: tuple[int, int]
) -> Any:
    """Convert the backbone to an ``openvino.Model``.

    Args:
        backbone: a float32 backbone on the CPU
        dtype: the dtype of attention and MLPs
        image_size: the (height, width) of the input in pixels
    """
    import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    backbone.reduce(dtype)
    backbone.fuse_attention(False)
    with _tracing, warnings.catch_warnings(), torch.inference_mode():
        # New torch releases deprecate tracing, which OpenVINO needs
        warnings.simplefilter("ignore")
        example = torch.zeros(1, 3, *image_size)
        traced = torch.jit.trace(backbone, example, check_trace=False)
        # As openvino.convert_model() does, but faster
        decoder = TorchScriptPythonDecoder(traced, shared_memory=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


class _Compiled:
    """A model compiled by OpenVINO, guarded against wrong results after out of memory.

    A batch is divided among streams of one thread each, a few images at a time: their
    tokens fit into the caches of a core, and no thread waits for another.

    When memory runs out, OpenVINO raises an error, or returns without one and leaves
    earlier results in place. From then on it may compute wrong numbers and does not release
    memory. So each part has its own request, the number of its results is checked, and
    after a failure the model is compiled again and must repeat a known result.

    Args:
        model: the ``openvino.Model``
        example: a small batch of pixels
    """

    def __init__(self, model: Any, example: torch.Tensor) -> None:
        self._model = model
        self._example = example
        self._lock = threading.Lock()  # all streams are for one caller at a time
        self._num_streams = torch.get_num_threads()
        self._compiled: Any = compile_openvino(model, self._num_streams)
        self._expected = self._infer(example)
        self._unfinished: list[Any] = []

    def __call__(self, pixels: torch.Tensor) -> Sequence[torch.Tensor]:
        with self._lock:
            if self._compiled is None:
                self._compile_again()

            try:
                return self._infer(pixels)
            except _NoResultError:
                # It is still computing: destroying it now would end the process
                self._unfinished.append(self._compiled)
                self._compiled = None
                raise
            except (MemoryError, RuntimeError):
                self._compiled = None
                raise

    def _infer(self, pixels: torch.Tensor) -> Sequence[torch.Tensor]:
        rounds = math.ceil(len(pixels) / (self._num_streams * _IMAGES_AT_ONCE))
        parts = pixels.tensor_split(min(rounds * self._num_streams, len(pixels)))
        requests = [self._compiled.create_infer_request() for _ in parts]
        for request, part in zip(requests, parts, strict=True):
            request.start_async(part.numpy(), share_inputs=True)

        _wait_for_all(requests)
        results = [
            [torch.from_numpy(tensor.data) for tensor in request.output_tensors]
            for request in requests
        ]
        for part, tokens in zip(parts, results, strict=True):
            if any(len(rows) != len(part) for rows in tokens):
                raise _NoResultError("OpenVINO ran out of memory and returned no result")

        return [torch.cat(rows) for rows in zip(*results, strict=True)]

    def _compile_again(self) -> None:
        try:
            self._compiled = compile_openvino(self._model, self._num_streams)
            pairs = zip(self._infer(self._example), self._expected, strict=True)
            is_right = all(torch.equal(one, other) for one, other in pairs)
        except (MemoryError, RuntimeError) as error:
            self._unfinished.append(self._compiled)
            self._compiled = None
            raise MemoryError(f"{_NO_RESTART} ({error})") from error

        if not is_right:
            self._compiled = None
            raise MemoryError(_NO_RESTART)


def _wait_for_all(requests: Sequence[Any]) -> None:
    """Wait until no request is running, then raise the first error."""
    errors = []
    for request in requests:
        try:
            request.wait()
        except RuntimeError as error:
            errors.append(error)

    if errors:
        raise errors[0]


class _NoResultError(MemoryError):
    """OpenVINO ran out of memory without raising an error."""


_NO_RESTART = (
    "OpenVINO ran out of memory and cannot recover: use a smaller batch_size, or "
    "engine='torch'"
)


OPENVINO = "openvino>=2025.2,<2027"
"""The requirement of the engine "openvino"."""

_OPENVINO_YEAR = 2025

# Python from which torch.jit.trace, by which OpenVINO reads networks, is not supported.
# Exporting tiny instead takes 11 to 12 s more, and in float32 a batch takes half as long
# again
_NO_TRACING = (3, 14)

_importing = threading.Lock()
_creating = threading.Lock()  # functools.cache lets two threads create one each
_tracing = threading.Lock()  # torch.jit.trace keeps its modules in a global variable

ENGINES: dict[str, Engine] = {
    "torch": run_torch,
    "compile": run_compiled,
    "openvino": run_openvino,
}
"""The engines by name."""


@functools.cache
def has_openvino() -> bool:
    """Return whether a supported OpenVINO is installed."""
    try:
        version = importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return False

    return int(version.partition(".")[0]) >= _OPENVINO_YEAR


def openvino_obstacle(dtype: str, device: str) -> str | None:
    """Return why OpenVINO cannot compute, or None if it can.

    Args:
        dtype: the name of the dtype
        device: the name of the torch device

    Returns:
        a reason that completes "Invalid engine: 'openvino' "
    """
    if device != "cpu":
        return f"is for device 'cpu', not {device!r}"

    dtypes = ["float32", "bfloat16"] if has_bfloat16() else ["float32"]
    if dtype not in dtypes:
        return f"cannot compute in {dtype!r} on this CPU, only in {dtypes}"

    if sys.version_info >= _NO_TRACING:
        return (
            "needs torch.jit.trace, which torch does not support from Python 3.14 on: use "
            "engine 'torch' or 'auto'"
        )

    return None if has_openvino() else f"is not installed: pip install '{OPENVINO}'"


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    Unless the user opted out, telemetry reports the import over the network and writes
    files to the user's home.

    Returns:
        the module
    """
    telemetry = "openvino_telemetry"
    with _importing:
        previous = sys.modules.get(telemetry)
        sys.modules[telemetry] = None  # type: ignore[assignment]  # as if not installed
        try:
            return importlib.import_module("openvino")
        finally:
            del sys.modules[telemetry]
            if previous is not None:
                sys.modules[telemetry] = previous


def compile_openvino(model: Any, num_streams: int = 1) -> Any:
    """Compile a model for the CPU, to compute in its own dtypes.

    Args:
        model: an ``openvino.Model``
        num_streams (1): the number of requests that run at once; torch's threads are
            divided among them

    Returns:
        an ``openvino.CompiledModel``
    """
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # otherwise OpenVINO chooses other dtypes
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": num_streams,
    }
    with _creating:
        core = _openvino_core()

    return core.compile_model(model, "CPU", options)


@functools.cache
def _openvino_core() -> Any:
    """Return a core that is never destroyed.

    A core installs an alternate signal stack in the thread that creates it, and unmaps it
    in the thread that destroys it, last of all when a model that it compiled is freed. The
    next signal to the first thread would then end the process by SIGSEGV, without a word.
    """
    core = import_openvino().Core()
    # FiftyOne imports a plugin as modules of their own, which may be dropped, cache and all
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(core))
    return core


def has_bfloat16(device: str = "cpu") -> bool:
    """Return whether a device computes in bfloat16 by hardware.

    These are CPUs with AVX512-BF16, and NVIDIA's GPUs from compute capability 8.0 (Ampere)
    on.

    Args:
        device ("cpu"): the name of a torch device
    """
    if device.startswith("cuda"):
        is_nvidia = torch.version.hip is None  # AMD's capabilities count otherwise
        return is_nvidia and torch.cuda.get_device_capability(device) >= (8, 0)

    if device != "cpu":
        return False

    if hasattr(torch.cpu, "get_capabilities"):  # in newer releases of torch
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))

    return bool(torch.cpu._is_avx512_bf16_supported())
