"""Comparing speeds on a machine that others use too, and what that machine can do."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from network import import_package

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from documents import insert as insert  # needs the path
from documents import table as table  # the same
from sandbox import use_own_fiftyone  # the same

_MATMUL = (4096, 1024, 4096)
_MATMULS_AT_ONCE = 8


INTO = {"type": Path, "help": "a document whose figures to replace"}
"""The argument ``--into``."""


def read_arguments(doc: str | None, **options: Any) -> argparse.Namespace:
    """Read the arguments of the command line.

    Args:
        doc: the documentation of the program, whose first line describes it
        **options: the options by name, each with its default, of which a list takes
            several values, or with a dict of arguments of ``add_argument()``
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    for name, default in options.items():
        is_list = isinstance(default, list)
        given = {
            "nargs": "+" if is_list else None,
            "type": type(default[0] if is_list else default),
            "default": default,
            "help": "default: %(default)s",
        }
        if isinstance(default, dict):
            given = default

        parser.add_argument(f"--{name.replace('_', '-')}", **given)

    return parser.parse_args()


def prepare(
    doc: str | None, *, has_document: bool = True, **options: Any
) -> argparse.Namespace:
    """Read the arguments, and make FiftyOne and this package ready.

    With ``--one``, which starts a process of its own for a step, FiftyOne is that of the
    caller.

    Args:
        doc: see :func:`read_arguments`
        has_document (True): whether there is ``--into``
        **options: the options beside ``--folder`` and ``--into``

    Returns:
        the arguments
    """
    if has_document:
        options["into"] = INTO

    args = read_arguments(doc, folder=Path(".bench"), **options)
    args.folder = args.folder.resolve()
    if getattr(args, "one", None) is None:
        use_own_fiftyone(args.folder / "fiftyone", show_progress_bars=False)

    import_package()
    return args


def interleave(
    contenders: Mapping[str, Callable[[], float]], rounds: int, *, baseline: str
) -> dict[str, dict[str, Any]]:
    """Run contenders in turns, so that what else the machine does hits each of them.

    Args:
        contenders: callables by name that do some work and return how many images
            that was
        rounds: how many times to run each, after once to warm up
        baseline: the contender that the others are compared with

    Returns:
        by name ``images_per_second``, the median; ``ratio``, the median of the ratios
        to the baseline in the same round; and ``rates``, of all rounds
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            count = run()
            if index:
                rates[name].append(count / (time.perf_counter() - start))

    return {
        name: {
            "images_per_second": statistics.median(values),
            "ratio": statistics.median(
                one / other for one, other in zip(values, rates[baseline], strict=True)
            ),
            "rates": values,
        }
        for name, values in rates.items()
    }


def matrix_products(
    dtype: torch.dtype, device: torch.device, flop: float
) -> tuple[dict[str, Callable[[], Any]], float]:
    """Return matrix products, whose best rate no network can exceed.

    Args:
        dtype: the type of their numbers
        device: where they run
        flop: about how many FLOP each of them is to take, at most those of 8 products

    Returns:
        the products by torch and, on CPUs, by OpenVINO; and the FLOP of each
    """
    rows, inner, columns = _MATMUL
    one = 2.0 * rows * inner * columns
    at_once = min(max(round(flop / one), 1), _MATMULS_AT_ONCE)
    product = torch.nn.Linear(inner, columns, bias=False, dtype=dtype, device=device)
    matrix = torch.randn(rows, inner, dtype=dtype, device=device)

    def by_torch() -> None:
        for _ in range(at_once):
            product(matrix)

        synchronize(device)

    products: dict[str, Callable[[], Any]] = {"torch": by_torch}
    if device.type == "cpu" and dtype != torch.float16:
        with contextlib.suppress(ImportError):
            products["openvino"] = _openvino_product(dtype, at_once)

    return products, one * at_once


def _openvino_product(dtype: torch.dtype, at_once: int) -> Callable[[], Any]:
    import_package()
    from fiftyone_hiera.hiera.engines import compile_openvino, import_openvino

    openvino = import_openvino()
    from openvino import opset13 as ops

    rows, inner, columns = _MATMUL
    wanted = openvino.Type.bf16 if dtype == torch.bfloat16 else openvino.Type.f32
    matrix = ops.parameter([rows, inner], openvino.Type.f32)
    weights = ops.constant(torch.randn(columns, inner).numpy())
    product = ops.matmul(
        ops.convert(matrix, wanted), ops.convert(weights, wanted), False, True
    )
    model = openvino.Model([product], [matrix])
    request = compile_openvino(model).create_infer_request()
    numbers = torch.randn(rows, inner).numpy()

    def by_openvino() -> None:
        for _ in range(at_once):
            request.infer(numbers, share_inputs=True, share_outputs=True)

    return by_openvino


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_machine() -> dict[str, Any]:
    """Describe what a result depends on."""
    packages = {}
    for name in (
        "torch",
        "transformers",
        "fiftyone",
        "openvino",
        "timm",
        "hiera-transformer",
        "pillow",
        "simplejpeg",
    ):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "kind": _kind(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": packages,
    }


def _kind() -> str:
    """Return the GPU's name, or the fastest instructions of the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().replace(" ", "-")

    flags = ""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text("utf-8")

    for kind in ("AMX-BF16", "AVX512-BF16", "AVX512F", "AVX2"):
        if kind.lower().replace("-", "_") in flags:
            return kind

    return platform.machine()


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()

    return platform.processor()


def memory(key: str) -> float:
    """Return one of this process's figures of memory, in MB.

    Args:
        key: ``VmRSS`` for what it uses, ``VmHWM`` for the most that it ever used
    """
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1000

    raise KeyError(key)


def peak_memory(run: Callable[[], Any], device: torch.device) -> float | None:
    """Run something and return how much more memory there was in use meanwhile, in MB.

    Returns:
        the GPU's memory, or else the process's; None where the system does not tell
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6

    try:
        # Linux then begins anew to look for the most that the process uses
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return None

    used = memory("VmRSS")
    run()
    return memory("VmHWM") - used


def measure_steps(
    results: dict[str, Any], steps: Mapping[str, Callable[[], Any]], path: Path
) -> None:
    """Measure one thing after the other, and save and print what there is after each.

    Args:
        results: where the results go, by the names of the steps
        steps: callables that measure, by name
        path: the JSON file
    """
    for name, measure in steps.items():
        start = time.perf_counter()
        results[name] = measure()
        save(results, path)
        print(f"{name}, {time.perf_counter() - start:.0f} s")
        print(json.dumps(results[name], indent=2))


def save(results: dict[str, Any], path: Path) -> None:
    """Write results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2), "utf-8")
