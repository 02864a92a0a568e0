"""What runs on Ray take beside a run in one process: their start, rate and memory."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from measure import describe_machine, insert, measure_steps, prepare, table
from network import save_checkpoint
from pictures import write_jpegs

_HERE_NAME = "this process"
_WORKERS = {"reader": "reading", "encoder": "encoder_actor"}
_IMPORT = """
import json, sys, time
start = time.perf_counter()
import ray, fiftyone_hiera.cluster.{module}
seconds = time.perf_counter() - start
import psutil
print(json.dumps([seconds, psutil.Process().memory_full_info().uss / 1e6]))
"""


def main() -> None:
    """Measure and save."""
    args = prepare(__doc__, images=2000, rounds=2)

    results: dict[str, Any] = {"machine": describe_machine(), "images": args.images}
    steps = {
        "workers": partial(_measure_workers, args.rounds),
        "runs": partial(_measure_runs, args.folder, args.images, args.rounds),
    }
    measure_steps(results, steps, args.folder / "ray.json")
    if args.into is not None:
        insert("\n".join(_tabulate(results)), "figures", args.into)


def _measure_workers(rounds: int) -> dict[str, Any]:
    """Seconds and MB of what each kind of worker imports, before its first file."""
    result: dict[str, Any] = {}
    for name, module in [*_WORKERS.items()] * rounds:
        code = _IMPORT.format(module=module)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        seconds, megabytes = json.loads(done.stdout)
        result.setdefault(name, []).append({"seconds": seconds, "mb": megabytes})

    return result


def _measure_runs(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Measure runs of tiny here and on a local cluster, in turns.

    The rate is that of the images by which a run is longer than another; what remains of
    its time is its start.
    """
    import fiftyone as fo

    import fiftyone_hiera
    from fiftyone_hiera.cluster.options import RayOptions

    paths = write_jpegs(folder / "pictures", "VGA", min(count, 128))
    checkpoint = save_checkpoint("tiny", folder / "tiny")
    model = fiftyone_hiera.load_model(
        "facebook/hiera-tiny-224-hf", checkpoint=str(checkpoint)
    )
    cycle = itertools.islice(itertools.cycle(paths), count)
    dataset = fo.Dataset()
    dataset.add_samples([fo.Sample(filepath=path) for path in cycle])
    contenders: dict[str, Any] = {
        _HERE_NAME: None,
        "Ray, one encoder": RayOptions(num_actors=1, num_cpus=1),
        "Ray, two encoders": RayOptions(num_actors=2, num_cpus=0.5),
    }
    few = dataset[: count // 4]
    result: dict[str, Any] = {}
    for name, ray in [*contenders.items()] * rounds:
        short, long = (_time_run(model, samples, ray) for samples in (few, dataset))
        rate = (count - len(few)) / (long - short)
        run = {"seconds": long, "images_per_second": rate, "start_s": long - count / rate}
        result.setdefault(name, []).append(run)

    dataset.delete()
    return result


def _time_run(model: Any, samples: Any, ray: Any) -> float:
    """Time a run, from the call to the report."""
    start = time.perf_counter()
    report = model.embed_samples(samples, "hiera", overwrite=True, verify=0, ray=ray)
    assert report.embedded == len(samples)
    return time.perf_counter() - start


def _tabulate(results: dict[str, Any]) -> Iterator[str]:
    """Yield the figures as text."""
    machine = results["machine"]
    yield f"{machine['cpu']}, {machine['cores']} cores, {results['images']:,} files.\n"
    runs = results["runs"]
    here = _median(runs[_HERE_NAME], "images_per_second")
    rows = []
    for name, some in runs.items():
        rate = _median(some, "images_per_second")
        start = f"{_median(some, 'start_s'):.1f} s"
        rows.append([name, start, f"{rate:.1f}", f"{rate / here:.2f} x"])

    yield from table(["tiny, VGA files", "start", "images/s", "relative"], rows)
    rows = [
        [name, f"{_median(some, 'seconds'):.1f} s", f"{_median(some, 'mb'):.0f} MB"]
        for name, some in results["workers"].items()
    ]
    yield from table(["what a worker imports", "time", "memory"], rows)


def _median(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


if __name__ == "__main__":
    main()
