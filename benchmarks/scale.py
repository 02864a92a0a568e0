"""How a run behaves with many samples: its worklist and its writing."""

from __future__ import annotations

import itertools
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from measure import describe_machine, insert, measure_steps, memory, prepare, table
from pictures import write_jpegs

NANO = "hiera-nano-digits"
_DIM = 768
_AT_ONCE = 5000


def main() -> None:
    """Measure and save."""
    args = prepare(__doc__, samples=[100_000, 1_000_000], rounds=3)
    folder = args.folder
    path = write_jpegs(folder / "pictures", "VGA", 1)[0]

    results: dict[str, Any] = {"machine": describe_machine()}
    steps: dict[str, Callable[[], Any]] = {
        f"{count:,} samples": partial(_measure_worklist, count, path, args.rounds)
        for count in args.samples
    }
    fewest = min(args.samples)
    steps["writing"] = partial(_measure_writing, fewest // 10, path)
    steps["files"] = partial(_measure_files, fewest, folder / "files")
    measure_steps(results, steps, folder / "scale.json")
    if args.into is not None:
        insert("\n".join(_tabulate(results)), "figures", args.into)


def _measure_worklist(count: int, path: str, rounds: int) -> dict[str, Any]:
    """Times to the first image, and the time and memory of listing everything."""
    import fiftyone as fo
    import numpy as np

    import fiftyone_hiera
    from fiftyone_hiera.runs.target import Target

    model = fiftyone_hiera.load_model(NANO, engine="torch", dtype="float32")
    dataset = fo.Dataset()
    model.embed_samples(_add_samples(dataset, [path]), "hiera")  # records the provenance
    vector = np.random.default_rng(0).normal(size=_DIM).astype(np.float32)
    result: dict[str, Any] = {"inserted_s": _insert(dataset, count, path, vector)}
    target = Target(dataset, "hiera")

    result["first run_s"] = _first_image(model, target, rounds)
    result["shard of 8_s"] = _first_image(model, target, rounds, shard=(3, 8))
    result["listing"] = _list_everything(target)
    result["listing a shard of 8"] = _list_everything(target, shard=(3, 8))
    _fill(dataset, 0.9)
    for is_indexed in (True, False):
        if not is_indexed and "hiera_pending" in dataset.list_indexes():
            dataset.drop_index("hiera_pending")

        name = "resume at 90 %" if is_indexed else "resume at 90 % without index"
        result[f"{name}_s"] = _first_image(model, target, 1 if not is_indexed else rounds)

    dataset.delete()
    return result


def _add_samples(dataset: Any, paths: list[str]) -> Any:
    import fiftyone as fo

    dataset.add_samples([fo.Sample(filepath=path) for path in paths])
    return dataset


def _insert(dataset: Any, count: int, path: str, vector: Any) -> float:
    """Insert copies of a sample, every second one with a vector."""
    from bson import ObjectId
    from fiftyone.core.fields import VectorField

    from fiftyone_hiera.runs.fiftyone_internals import sample_collection

    start = time.perf_counter()
    collection = sample_collection(dataset)
    document = collection.find_one()
    collection.delete_many({})
    binary = VectorField().to_mongo(vector)
    for first in range(0, count, _AT_ONCE):
        documents = [
            {**document, "_id": ObjectId(), "hiera": binary if number % 2 == 0 else None}
            for number in range(first, min(count, first + _AT_ONCE))
        ]
        collection.insert_many(documents, ordered=False)

    return time.perf_counter() - start


def _fill(dataset: Any, share: float) -> None:
    """Give the first samples vectors."""
    from fiftyone_hiera.runs.fiftyone_internals import sample_collection

    collection = sample_collection(dataset)
    vector = collection.find_one({"hiera": {"$ne": None}})["hiera"]
    skipped = int(share * collection.estimated_document_count())
    (last,) = collection.find({}, ["_id"], sort=[("_id", 1)], skip=skipped, limit=1)
    pending = {"_id": {"$lt": last["_id"]}, "hiera": None}
    collection.update_many(pending, {"$set": {"hiera": vector}})


def _first_image(model: Any, target: Any, rounds: int, **options: Any) -> list[float]:
    """Measure the seconds from the call of a run until its first image is read."""
    from fiftyone_hiera.runs.options import RunOptions
    from fiftyone_hiera.runs.runner import embed_in_steps

    defaults = {
        "batch_size": 1000,  # so that nothing is embedded
        "num_workers": 0,
        "overwrite": False,
        "skip_failures": True,
        "shard": None,
        "failure_tag": None,
        "verify": 0,  # the vectors are not the model's
    }
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        steps = embed_in_steps(
            target, model.embedder, RunOptions(**{**defaults, **options}), False
        )
        for _ in itertools.islice(steps, 2):  # at the start, and after the first image
            pass

        seconds.append(time.perf_counter() - start)
        steps.close()

    return seconds


def _list_everything(target: Any, **options: Any) -> dict[str, float]:
    """Measure the time of a whole listing, and the memory that it takes."""
    from fiftyone_hiera.runs.worklist import Worklist

    used = memory("VmRSS")
    most = used
    stop = threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.02):
            most = max(most, memory("VmRSS"))

    watching = threading.Thread(target=watch)
    watching.start()
    start, cpu = time.perf_counter(), time.process_time()
    work = Worklist(target, **{"overwrite": False, "shard": None, **options})
    listed = sum(1 for _ in work.list_jobs())
    result = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "listed": listed,
        "skipped": work.skipped,
    }
    stop.set()
    watching.join()
    result["microseconds_per_image"] = 1e6 * result["seconds"] / max(1, listed)
    result["memory_mb"] = most - used
    return result


def _measure_writing(count: int, path: str) -> dict[str, float]:
    """Measure how many vectors a run stores per second, without the network."""
    import fiftyone as fo
    import numpy as np

    from fiftyone_hiera.embedding.jobs import Part
    from fiftyone_hiera.runs.target import Target

    dataset = _add_samples(fo.Dataset(), [path] * count)
    target = Target(dataset, "hiera")
    target.add_field()
    ids = dataset.values("id")
    vectors = np.random.default_rng(0).normal(size=(len(ids), _DIM)).astype(np.float32)
    result = {}
    for size in (32, 512):
        start = time.perf_counter()
        for first in range(0, len(ids), size):
            parts = [Part(sample_id, sample_id) for sample_id in ids[first : first + size]]
            target.store(parts, vectors[first : first + size])

        seconds = time.perf_counter() - start
        result[f"vectors_per_second, {size} at once"] = len(ids) / seconds

    dataset.delete()
    return result


def _measure_files(count: int, folder: Path) -> dict[str, float]:
    """Measure how many vectors embed_files writes per second, without the network."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fiftyone_hiera.embedding.jobs import Embedded
    from fiftyone_hiera.files.manifest import Manifest
    from fiftyone_hiera.files.output_folder import OutputFolder
    from fiftyone_hiera.files.output_record import OutputRecord
    from fiftyone_hiera.files.pending_output import PendingOutput
    from fiftyone_hiera.files.report import FilesReport

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    numbers = range(count)
    rows = {"id": numbers, "uri": [f"s3://bucket/{number:09d}.jpg" for number in numbers]}
    pq.write_table(pa.table(rows), folder / "manifest.parquet")
    vectors = np.random.default_rng(0).normal(size=(1000, _DIM)).astype(np.float32)
    result = {}
    for dtype in ("float32", "float16"):
        out = OutputFolder(folder / dtype)
        manifest = Manifest(folder / "manifest.parquet")
        report = FilesReport()
        record = OutputRecord({}, dtype, _DIM, 50_000, count, manifest.digest)
        output = PendingOutput(manifest, out, record, report)
        start = time.perf_counter()
        for job in output.read_jobs():
            vector = vectors[report.embedded % len(vectors)]
            output.add([Embedded(job, job.parts[0], vector)])

        output.close()
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in out.find_files())
        result[f"vectors_per_second, {dtype}"] = report.embedded / seconds
        result[f"bytes_per_vector, {dtype}"] = size / report.embedded

    return result


def _tabulate(results: dict[str, Any]) -> Iterator[str]:
    """Yield the figures as text."""
    machine = results["machine"]
    yield f"{machine['cpu']}, {machine['cores']} cores, MongoDB on the same cores.\n"
    counts = [name for name in results if name.endswith(" samples")]
    seconds = {
        "first image, first run": "first run_s",
        "first image, a shard of 8": "shard of 8_s",
        "first image, resume at 90 %": "resume at 90 %_s",
        "first image, resume at 90 % without the index": "resume at 90 % without index_s",
    }
    rows = [
        [label, *(f"{statistics.median(results[count][key]):.2f} s" for count in counts)]
        for label, key in seconds.items()
    ]
    for label, key, unit in (
        ("listing all, per image", "microseconds_per_image", "µs"),
        ("memory of listing all", "memory_mb", "MB"),
    ):
        values = [results[count]["listing"][key] for count in counts]
        rows.append([label, *(f"{value:.1f} {unit}" for value in values)])

    yield from table(["", *counts], rows)
    rows = [
        [f"on samples, {name.partition(', ')[2]}", f"{rate:,.0f}", ""]
        for name, rate in results["writing"].items()
    ]
    files = results["files"]
    for dtype in ("float32", "float16"):
        rate, size = (
            f"{files[f'{key}, {dtype}']:,.0f}"
            for key in ("vectors_per_second", "bytes_per_vector")
        )
        rows.append([f"by `embed_files`, {dtype}", rate, size])

    yield from table(["stored by one process", "vectors/s", "bytes each"], rows)


if __name__ == "__main__":
    main()
