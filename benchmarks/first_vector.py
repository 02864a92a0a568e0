"""The seconds from ``python`` to the first vector, in a process of its own, as JSON."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import time
from typing import Any

from PIL import Image

from network import import_package


def main() -> None:
    """Measure the steps, with an engine and the path of a checkpoint."""
    engine, checkpoint = sys.argv[1:]
    import_package()
    times = [time.perf_counter()]
    for name in ("fiftyone", "fiftyone.utils.torch", "torch", "torchvision"):
        importlib.import_module(name)

    times.append(time.perf_counter())
    import fiftyone_hiera.zoo_model

    times.append(time.perf_counter())
    options: dict[str, Any] = {"checkpoint": checkpoint, "engine": engine}
    model = fiftyone_hiera.load_model("hiera-nano-digits", **options)
    model.embedder.encoder.prepare(4)
    times.append(time.perf_counter())
    model.embed(Image.new("RGB", (640, 480)))
    times.append(time.perf_counter())
    steps = ("import fiftyone, torch, torchvision", "import this", "load", "embed")
    seconds = [end - start for start, end in itertools.pairwise(times)]
    print(json.dumps(dict(zip(steps, seconds, strict=True))))


if __name__ == "__main__":
    main()
