"""How fast the network runs, by itself: ours against everybody's.

Needs neither FiftyOne nor OpenVINO nor the references: what is not installed is left
out. On a GPU:

    python benchmarks/forward.py --device cuda --dtypes bfloat16 \
        --variants tiny small base base-plus large huge --batch-sizes 64 256 1024
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import HieraModel

from measure import (
    describe_machine,
    interleave,
    matrix_products,
    peak_memory,
    save,
    synchronize,
)
from network import GMACS, LAYOUTS, import_package, make_hiera

import_package()

from fiftyone_hiera.hiera.backbone import Backbone  # noqa: E402
from fiftyone_hiera.hiera.configuration import read_configuration  # noqa: E402
from fiftyone_hiera.hiera.engines import ENGINES, Forward, has_openvino  # noqa: E402  # needs it

BASELINE = "transformers float32"

Contender = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variants", nargs="+", default=["tiny"], choices=LAYOUTS)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[16])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="compile the others too")
    parser.add_argument("--out", type=Path, help="default: .bench/forward-<device>.json")
    args = parser.parse_args()
    out = args.out or Path(f".bench/forward-{args.device.partition(':')[0]}.json")

    device = torch.device(args.device)
    dtypes = {name: getattr(torch, name) for name in args.dtypes}
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "device": args.device,
        "runs": [],
    }
    for variant in args.variants:
        for batch_size in args.batch_sizes:
            run = _compare(variant, batch_size, dtypes, device, args)
            results["runs"].append(run)
            save(results, out)
            _show(run)


@torch.inference_mode()
def _compare(
    variant: str,
    batch_size: int,
    dtypes: dict[str, torch.dtype],
    device: torch.device,
    args: argparse.Namespace,
) -> dict[str, Any]:
    baseline = _Tokens(make_hiera(variant)).to(device)
    hiera = baseline.hiera
    pixels = torch.randn(batch_size, 3, 224, 224, device=device)
    contenders: dict[str, Contender] = {
        BASELINE: baseline,
        **_ours(hiera, dtypes, device),
        **_references(variant, hiera, dtypes, device, compiled=False),
    }
    if args.compile:
        contenders |= _references(variant, hiera, dtypes, device, compiled=True)

    exact = contenders[BASELINE](pixels).mean(dim=1)
    details: dict[str, dict[str, float]] = {}
    for name, forward in list(contenders.items()):
        try:
            details[name] = _examine(forward, pixels, exact)
        except torch.OutOfMemoryError as error:
            print(f"  {name} is left out: {error}")
            del contenders[name]

    def run(forward: Contender) -> Callable[[], float]:
        def once() -> float:
            forward(pixels)
            synchronize(device)
            return batch_size

        return once

    timed = {name: run(forward) for name, forward in contenders.items()}
    flop_per_image = 2e9 * GMACS[variant]
    ceilings: dict[str, list[str]] = {}
    for dtype_name, dtype in {"float32": torch.float32, **dtypes}.items():
        products, work = matrix_products(dtype, device, batch_size * flop_per_image)
        ceilings[dtype_name] = []
        for library, product in products.items():
            name = f"matrix product, {library} {dtype_name}"
            timed[name] = partial(_count, product, work / flop_per_image)
            ceilings[dtype_name].append(name)

    measured = interleave(timed, args.rounds, baseline=BASELINE)
    for dtype_name, names in ceilings.items():
        ceiling = max(measured[name]["images_per_second"] for name in names)
        for name, result in measured.items():
            if name.endswith(f" {dtype_name}"):
                result["of_ceiling"] = result["images_per_second"] / ceiling

    return {
        "variant": variant,
        "batch_size": batch_size,
        "flop_per_image": flop_per_image,
        "contenders": {
            name: {**result, **details.get(name, {})} for name, result in measured.items()
        },
    }


def _ours(
    hiera: HieraModel, dtypes: dict[str, torch.dtype], device: torch.device
) -> dict[str, Contender]:
    forwards: dict[str, Contender] = {}
    for engine, start in ENGINES.items():
        for name, dtype in dtypes.items():
            if engine == "openvino" and (device.type != "cpu" or not has_openvino()):
                continue

            config = read_configuration(hiera.config.to_dict())
            backbone = Backbone(config).eval().requires_grad_(False).to(device)
            backbone.load_state_dict(hiera.state_dict(), strict=False)
            run = start(backbone, dtype, (224, 224))
            forwards[f"ours, {engine} {name}"] = partial(_last_stage, run)

    return forwards


def _last_stage(forward: Forward, pixels: torch.Tensor) -> torch.Tensor:
    (tokens,) = forward(pixels)
    return tokens


def _references(
    variant: str,
    hiera: HieraModel,
    dtypes: dict[str, torch.dtype],
    device: torch.device,
    *,
    compiled: bool,
) -> dict[str, Contender]:
    """Return the other libraries' networks, with weights of their own."""
    models: dict[str, Callable[[], torch.nn.Module]] = {
        "transformers": lambda: _Tokens(copy.deepcopy(hiera))
    }
    name = "hiera_" + variant.replace("-", "_") + "_224"
    with contextlib.suppress(ImportError):
        import timm

        models["timm"] = lambda: timm.create_model(name, pretrained=False, num_classes=0)

    with contextlib.suppress(ImportError):
        import hiera as authors

        def make() -> torch.nn.Module:
            model: torch.nn.Module = getattr(authors, name)(pretrained=False)
            model.head = torch.nn.Identity()
            return model

        models["hiera-transformer"] = make

    forwards: dict[str, Contender] = {}
    for library, build in models.items():
        for label, dtype in dtypes.items():
            title = f"{library}{', compiled' if compiled else ''} {label}"
            if title == BASELINE:
                continue

            model = build().eval().requires_grad_(False).to(device, dtype)
            run = torch.compile(model) if compiled else model
            forwards[title] = partial(_cast_and_run, run, dtype)

    return forwards


def _cast_and_run(run: Contender, dtype: torch.dtype, pixels: torch.Tensor) -> torch.Tensor:
    return run(pixels.to(dtype))


class _Tokens(torch.nn.Module):
    """transformers' network with the tokens alone as its output."""

    def __init__(self, hiera: HieraModel) -> None:
        super().__init__()
        self.hiera = hiera

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.hiera(pixels).last_hidden_state
        return tokens


def _examine(
    forward: Contender, pixels: torch.Tensor, exact: torch.Tensor
) -> dict[str, float]:
    """Compare the vectors, and measure the memory beyond that of all weights."""
    forward(pixels[:2])  # what a first run compiles is not the pass's memory
    details = {}
    peak = peak_memory(lambda: forward(pixels), pixels.device)
    if peak is not None:
        details["peak_mb"] = peak

    output = forward(pixels)
    if output.ndim == 3:  # tokens, of the same weights; the others have their own
        vectors = output.float().mean(dim=1)
        cosines = torch.nn.functional.cosine_similarity(vectors, exact)
        details["cosine"] = cosines.min().item()

    return details


def _count(run: Callable[[], Any], images: float) -> float:
    run()
    return images


def _show(run: dict[str, Any]) -> None:
    print(f"{run['variant']}, batches of {run['batch_size']}")
    for name, result in run["contenders"].items():
        print(
            f"  {name:36} {result['images_per_second']:8.1f} images/s "
            f"{result['ratio']:6.2f}x {result['of_ceiling']:5.2f} of the ceiling  "
            f"{result.get('cosine', '')}"
        )


if __name__ == "__main__":
    main()
