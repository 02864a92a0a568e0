"""What finding duplicates and outliers takes: seconds and memory, by method and count."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from measure import describe_machine, insert, measure_steps, peak_memory, prepare, table
from pictures import write_jpegs

_DIM = 768
_CLUSTERS = 100
_THRESHOLD = 0.01
_COPIES = 20  # one of so many samples is a near-duplicate
_AT_ONCE = 5000


def main() -> None:
    """Measure and save."""
    args = prepare(
        __doc__,
        samples=[1000, 10_000],
        methods={"nargs": "+", "help": "some of them; by default all"},
        limit={"type": float, "default": 8, "help": "memory of a method, in GB"},
        one={"nargs": 2, "help": argparse.SUPPRESS},
    )
    if args.one is not None:
        print(json.dumps(_run(args.one[0], args.one[1], args.limit)))
        return

    paths = write_jpegs(args.folder / "pictures", "VGA", 16)
    saved = args.folder / "duplicates.json"
    results: dict[str, Any] = json.loads(saved.read_text()) if saved.exists() else {}
    results["machine"] = describe_machine()
    steps = {
        name: partial(_measure, count, paths, args, results.get(name, {}))
        for name, count in ((f"{count:,} samples", count) for count in args.samples)
    }
    measure_steps(results, steps, saved)
    if args.into is not None:
        insert("\n".join(_tabulate(results)), "duplicates figures", args.into)


def _measure(
    count: int, paths: list[str], args: argparse.Namespace, earlier: dict[str, Any]
) -> dict[str, Any]:
    """Run each method in a process of its own, as memory is not always given back."""
    dataset = _make_dataset(count, paths)
    result = dict(earlier)
    for name in args.methods or _methods():
        command = [sys.executable, __file__, "--one", dataset.name, name]
        command += ["--limit", str(args.limit)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result[name] = json.loads(run.stdout.splitlines()[-1])

    dataset.delete()
    return result


def _make_dataset(count: int, paths: list[str]) -> Any:
    """Make samples with clustered vectors, of which a few are near-duplicates."""
    import fiftyone as fo
    import numpy as np
    from bson import ObjectId
    from fiftyone.core.fields import VectorField

    from fiftyone_hiera.runs.fiftyone_internals import sample_collection

    dataset = fo.Dataset(f"duplicates-{count}", persistent=True, overwrite=True)
    dataset.add_sample_field("hiera", fo.VectorField)
    dataset.add_sample(fo.Sample(filepath=paths[0]))
    collection = sample_collection(dataset)
    document = collection.find_one()
    collection.delete_many({})
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(_CLUSTERS, _DIM))
    for first in range(0, count, _AT_ONCE):
        size = min(_AT_ONCE, count - first)
        vectors = centers[generator.integers(_CLUSTERS, size=size)]
        vectors += 0.5 * generator.normal(size=vectors.shape)
        vectors[_COPIES - 1 :: _COPIES] = vectors[: size - _COPIES + 1 : _COPIES]
        vectors += 0.01 * generator.normal(size=vectors.shape)
        collection.insert_many(
            {
                **document,
                "_id": ObjectId(),
                "filepath": paths[number % len(paths)],
                "tags": ["train" if number % 2 else "test"],
                "hiera": VectorField().to_mongo(vector),
            }
            for number, vector in enumerate(vectors.astype(np.float32))
        )

    return dataset


def _run(dataset_name: str, method: str, limit: float) -> dict[str, Any]:
    import fiftyone as fo
    import torch

    dataset = fo.load_dataset(dataset_name)
    run = _methods()[method]
    bound = int(limit * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    start = time.perf_counter()
    try:
        found: list[Any] = []
        used = peak_memory(lambda: found.append(run(dataset)), torch.device("cpu"))
    except MemoryError:
        return {"failed": f"more than {limit:g} GB"}

    seconds = time.perf_counter() - start
    return {"seconds": seconds, "memory_mb": used, "found": found[0]}


def _methods() -> dict[str, Callable[[Any], int | None]]:
    """Return the methods, which return how many samples they found."""
    import fiftyone.brain as fob

    def exact(samples: Any) -> int:
        return len(fob.compute_exact_duplicates(samples, progress=False))

    def near(samples: Any) -> int:
        options = {"threshold": _THRESHOLD, "embeddings": "hiera"}
        return len(fob.compute_near_duplicates(samples, **options).duplicate_ids)

    def unique(samples: Any) -> int:
        index = fob.compute_similarity(samples, embeddings="hiera", backend="sklearn")
        index.find_unique(100)
        return len(index.unique_ids)

    def leaks(samples: Any) -> int:
        options = {"threshold": _THRESHOLD, "embeddings": "hiera"}
        splits = ["train", "test"]
        return len(fob.compute_leaky_splits(samples, splits, **options).leak_ids)

    def uniqueness(samples: Any) -> None:
        fob.compute_uniqueness(samples, embeddings="hiera", progress=False)

    def representativeness(samples: Any) -> None:
        fob.compute_representativeness(samples, embeddings="hiera", progress=False)

    return {
        "compute_exact_duplicates": exact,
        "compute_near_duplicates": near,
        "compute_leaky_splits": leaks,
        "compute_uniqueness": uniqueness,
        "compute_representativeness": representativeness,
        "find_unique": unique,
    }


def _tabulate(results: dict[str, Any]) -> Iterator[str]:
    """Yield the figures as text."""
    machine = results["machine"]
    yield f"{machine['cpu']}, {machine['cores']} cores, {_DIM} numbers a vector.\n"
    counts = sorted(
        (name for name in results if name.endswith(" samples")),
        key=lambda name: int(name.split()[0].replace(",", "")),
    )
    rows = [
        [f"`{name}`", *(_cell(results[count].get(name)) for count in counts)]
        for name in _methods()
    ]
    yield from table(["", *counts], rows)


def _cell(run: dict[str, Any] | None) -> str:
    if run is None:
        return ""

    if "failed" in run:
        return f"fails: {run['failed']}"

    return f"{run['seconds']:.1f} s, {run['memory_mb']:,.0f} MB"


if __name__ == "__main__":
    main()
