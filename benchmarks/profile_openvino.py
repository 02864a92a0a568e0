"""Which kernels of OpenVINO take the time of a forward pass, as a Markdown table."""

from __future__ import annotations

from collections import defaultdict

import torch

from measure import INTO, insert, read_arguments, table
from network import import_package, make_hiera

import_package()

from fiftyone_hiera.hiera.backbone import Backbone  # noqa: E402  # needs the package
from fiftyone_hiera.hiera.configuration import read_configuration  # noqa: E402
from fiftyone_hiera.hiera.engines import (  # noqa: E402
    convert_openvino,
    has_bfloat16,
    import_openvino,
)

_PASSES = 5


def main() -> None:
    """Measure one stream of one thread, and write the table."""
    args = read_arguments(__doc__, variant="tiny", batch_size=4, into=INTO)

    hiera = make_hiera(args.variant)
    backbone = Backbone(read_configuration(hiera.config.to_dict())).eval()
    backbone.load_state_dict(hiera.state_dict(), strict=False)
    dtype = torch.bfloat16 if has_bfloat16() else torch.float32
    model = convert_openvino(backbone.requires_grad_(False), dtype, (224, 224))
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERF_COUNT": True,
    }
    compiled = import_openvino().Core().compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    pixels = torch.randn(args.batch_size, 3, 224, 224).numpy()
    request.infer(pixels)

    times: dict[tuple[str, str], float] = defaultdict(float)
    for _ in range(_PASSES):
        request.infer(pixels)
        for kernel in request.profiling_info:
            milliseconds = kernel.real_time.total_seconds() * 1000 / _PASSES
            times[kernel.node_type, kernel.exec_type] += milliseconds

    total = sum(times.values())
    rows = sorted(times.items(), key=lambda item: -item[1])
    text = "\n".join(
        table(
            ["operation", "kernel", "ms", "share"],
            (
                [operation, f"`{kernel}`", f"{ms:.1f}", f"{ms / total:.1%}"]
                for (operation, kernel), ms in rows
                if ms >= total / 200
            ),
        )
    )
    text = (
        f"{args.variant} in {str(dtype).removeprefix('torch.')}, {total:.0f} ms:\n\n{text}"
    )
    if args.into is not None:
        insert(text, "profile", args.into)

    print(text)


if __name__ == "__main__":
    main()
