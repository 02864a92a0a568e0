"""Similarity backends: feeding, size, searches and recall, each in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from measure import describe_machine, insert, measure_steps, memory, prepare, table

_DIM = 768
_KEY = "index"
_AT_ONCE = 5000
_GROWTH = 100
_QUERIES = 30
_K = 10
_SMALL_BATCHES = 10_240  # the rows that are fed in batches of 32

BACKENDS = ("sklearn", "lancedb", "milvus", "pgvector")

Vectors = npt.NDArray[np.float32]


def main() -> None:
    """Measure and save."""
    args = prepare(
        __doc__,
        rows=[100_000],
        backends={"nargs": "+", "default": [*BACKENDS], "choices": BACKENDS},
        one={"help": argparse.SUPPRESS},
    )
    folder = args.folder
    if args.one is not None:
        print(json.dumps(_measure(args.one, args.rows[0], folder)))
        return

    results: dict[str, Any] = {"machine": describe_machine()}
    steps: dict[str, Callable[[], Any]] = {}
    for rows in args.rows:
        steps[f"dataset of {rows:,}"] = partial(_make_dataset, rows, folder)
        for name in args.backends:
            steps[f"{name}, {rows:,}"] = partial(_measure_in_process, name, rows, folder)

    measure_steps(results, steps, folder / "indexes.json")
    if args.into is not None:
        insert("\n".join(_tabulate(results)), "figures", args.into)


def make_vectors(rows: int, seed: int = 0) -> Vectors:
    """Make vectors with the shape of embeddings: clusters of uneven sizes, low-dimensional.

    Args:
        rows: their number
        seed (0): the seed of the vectors; the clusters are always the same

    Returns:
        a float32 array of shape (rows, 768)
    """
    shared = np.random.default_rng(0)
    centres = shared.normal(size=(1000, _DIM)).astype(np.float32)
    directions = shared.normal(size=(32, _DIM)).astype(np.float32)
    sizes = 1 / np.arange(1, 1001)
    rng = np.random.default_rng(seed)
    vectors = centres[rng.choice(1000, rows, p=sizes / sizes.sum())]
    for first in range(0, rows, _AT_ONCE):
        some = vectors[first : first + _AT_ONCE]
        within = rng.normal(size=(len(some), 32)).astype(np.float32) @ directions / 8
        noise = 0.1 * rng.normal(size=some.shape).astype(np.float32)
        vectors[first : first + _AT_ONCE] += within + noise

    return vectors


def _dataset_name(rows: int) -> str:
    return f"benchmark of {rows}"


def _make_dataset(rows: int, folder: Path) -> dict[str, Any]:
    """Make a dataset whose samples hold the vectors in a field."""
    import fiftyone as fo
    from bson import ObjectId
    from fiftyone.core.fields import VectorField

    from fiftyone_hiera.runs.fiftyone_internals import sample_collection
    from fiftyone_hiera.runs.paging import _MANY, add_pending_index
    from fiftyone_hiera.runs.target import Target

    start = time.perf_counter()
    vectors = make_vectors(rows)
    np.save(folder / f"vectors-{rows}.npy", vectors)
    name = _dataset_name(rows)
    if name in fo.list_datasets():
        fo.delete_dataset(name)

    dataset = fo.Dataset(name, persistent=True)
    dataset.add_sample(fo.Sample(filepath="/absent.jpg"))
    dataset.add_sample_field("hiera", fo.VectorField)
    collection = sample_collection(dataset)
    document = collection.find_one()
    collection.delete_many({})
    to_mongo = VectorField().to_mongo
    for first in range(0, rows, _AT_ONCE):
        collection.insert_many(
            [
                {**document, "_id": ObjectId(), "hiera": to_mongo(vector)}
                for vector in vectors[first : first + _AT_ONCE]
            ]
        )

    add_pending_index(Target(dataset, "hiera"))  # as each run does
    while rows >= _MANY and "hiera_pending" not in dataset.list_indexes():
        time.sleep(0.1)

    return {"seconds": time.perf_counter() - start}


def _measure_in_process(name: str, rows: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, "--rows", str(rows)]
    done = subprocess.run(
        [*command, "--folder", str(folder)], stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measure(name: str, rows: int, folder: Path) -> dict[str, Any]:
    import fiftyone as fo

    dataset = fo.load_dataset(_dataset_name(rows))
    if _KEY in dataset.list_brain_runs():
        dataset.delete_brain_run(_KEY)

    vectors = np.load(folder / f"vectors-{rows}.npy")
    with _database(name, folder) as size:
        before = memory("VmRSS")
        result: dict[str, Any] = (
            _build_sklearn(dataset)
            if name == "sklearn"
            else _build_table(dataset, name, vectors)
        )
        result["memory_mb"] = memory("VmHWM") - before
        result["bytes"] = size(dataset)
        result |= _search(dataset, vectors)
        dataset.delete_brain_run(_KEY)

    return result


def _build_table(dataset: Any, name: str, vectors: Vectors) -> dict[str, Any]:
    """Feed the same rows in small and in large batches, build the index, and grow it."""
    from fiftyone_hiera.embedding.jobs import Embedded, Job, Part
    from fiftyone_hiera.indexes.brain_index import BrainIndex
    from fiftyone_hiera.indexes.options import Contents, IndexOptions
    from fiftyone_hiera.runs.fiftyone_internals import dataset_id
    from fiftyone_hiera.runs.index_feed import IndexFeed
    from fiftyone_hiera.runs.target import Target

    ids: list[str] = dataset.values("id")
    contents = Contents(str(dataset_id(dataset)), "hiera", None, _DIM, {"sha256": "0"})
    options = IndexOptions(_KEY, name)
    first_rows = min(len(ids) - _GROWTH, _SMALL_BATCHES)
    jobs = [Job(id, "", [Part(id, id)]) for id in ids]
    batch = [
        Embedded(job, job.parts[0], vector)
        for job, vector in zip(jobs, vectors, strict=True)
    ]

    def feed_rows(feed: Any, first: int, last: int, size: int) -> float:
        start = time.perf_counter()
        for low in range(first, last, size):
            feed.add(batch[low : min(low + size, last)])

        return time.perf_counter() - start

    table = BrainIndex(dataset, options, contents, may_rebuild=False).open()
    assert table is not None
    feed = IndexFeed(table, Target(dataset, "hiera"))
    result: dict[str, Any] = {"rows": len(ids)}
    small = feed_rows(feed, 0, first_rows, 32)
    at_start = memory("VmRSS")
    large = feed_rows(feed, first_rows, len(ids) - _GROWTH, 1024)
    result["feed_32_ms"] = 1e3 * small / first_rows
    if len(ids) - _GROWTH > first_rows:
        result["feed_1024_ms"] = 1e3 * large / (len(ids) - _GROWTH - first_rows)

    result["grown_mb"] = memory("VmRSS") - at_start
    start = time.perf_counter()
    table.finish()
    result["finish_s"] = time.perf_counter() - start

    # The last rows are in the field, and not in the index
    start = time.perf_counter()
    change = feed.reconcile()
    assert change.rows == len(ids)
    result["grow_s"] = time.perf_counter() - start
    feed.close()
    dataset.clear_cache()
    return result


def _build_sklearn(dataset: Any) -> dict[str, Any]:
    import fiftyone.brain as fob

    start = time.perf_counter()
    fob.compute_similarity(dataset, embeddings="hiera", brain_key=_KEY, backend="sklearn")
    return {"rows": len(dataset), "finish_s": time.perf_counter() - start}


def _search(dataset: Any, vectors: Vectors) -> dict[str, Any]:
    """Time searches as users call them, and compare what they find with an exact search."""
    ids: list[str] = dataset.values("id")
    rng = np.random.default_rng(1)
    queries = make_vectors(_QUERIES, seed=2)
    chosen = rng.choice(len(ids), _QUERIES, replace=False)
    part = dataset.select([ids[i] for i in rng.choice(len(ids), len(ids) // 100, False)])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    found, seconds = _time_each(dataset, queries)
    recalls = []
    for query, some in zip(queries, found, strict=True):
        nearest = np.argpartition(-(unit @ query), _K)[:_K]
        recalls.append(len({ids[i] for i in nearest} & {*some}) / _K)

    _, by_id = _time_each(dataset, [ids[i] for i in chosen])
    in_view, of_view = _time_each(part, queries[:10])
    return {
        "by_vector_ms": 1e3 * seconds,
        "by_id_ms": 1e3 * by_id,
        "in_view_ms": 1e3 * of_view,
        "in_view_found": statistics.mean(map(len, in_view)),
        "recall": statistics.mean(recalls),
    }


def _time_each(samples: Any, queries: Any) -> tuple[list[list[str]], float]:
    """Return what each search finds, and the median of their seconds."""
    found, seconds = [], []
    for query in queries:
        start = time.perf_counter()
        view = samples.sort_by_similarity(query, k=_K, brain_key=_KEY)
        seconds.append(time.perf_counter() - start)
        found.append(view.values("id"))

    return found, statistics.median(seconds)


@contextlib.contextmanager
def _database(name: str, folder: Path) -> Iterator[Callable[[Any], int]]:
    """Run the database of a backend; yield what measures the bytes of an index."""
    from index_servers import Postgres, configured

    if name == "sklearn":
        yield lambda dataset: 0
        return

    if name == "pgvector":
        server = Postgres()
        uri = f"{server.uri}&options=-c%20maintenance_work_mem%3D1GB"
        with contextlib.closing(server), configured(name, connection_string=uri):
            yield lambda dataset: server.fetch(
                "SELECT pg_total_relation_size(quote_ident(%s))",
                dataset.get_brain_info(_KEY).config.table_name,
            )[0][0]

        return

    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        with configured(name, uri=str(place / "index.db")):
            yield lambda dataset: _bytes_in(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _bytes_in(folder: Path) -> int:
    return sum(
        os.path.getsize(Path(parent, file))
        for parent, _, files in os.walk(folder)
        for file in files
    )


def _tabulate(results: dict[str, Any]) -> list[str]:
    machine = results["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, the databases on the same cores.",
        "",
        "Feeding, in milliseconds a vector, and searching, in milliseconds, the median of "
        f"{_QUERIES}:",
        "",
    ]
    rows = []
    for step, result in results.items():
        if "recall" not in result:
            continue

        def shown(key: str, form: str, result: dict[str, Any] = result) -> str:
            return format(result[key], form) if key in result else ""

        rows.append(
            [
                step,
                shown("feed_32_ms", ".2f"),
                shown("feed_1024_ms", ".2f"),
                shown("finish_s", ",.1f"),
                shown("grow_s", ".1f"),
                shown("memory_mb", ",.0f"),
                f"{result['bytes'] / result['rows']:,.0f}" if result["bytes"] else "",
                shown("by_vector_ms", ".0f"),
                shown("by_id_ms", ".0f"),
                shown("in_view_ms", ".0f"),
                shown("in_view_found", ".0f"),
                shown("recall", ".1%"),
            ]
        )

    head = [
        "Backend, vectors",
        "fed by 32",
        "by 1,024",
        "build, s",
        f"grow by {_GROWTH}, s",
        "memory, MB",
        "bytes a vector",
        "by vector",
        "by ID",
        "in 1 %",
        f"found of {_K}",
        f"recall at {_K}",
    ]
    return [*lines, *table(head, rows)]


if __name__ == "__main__":
    main()
