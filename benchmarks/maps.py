"""What maps of many samples cost: fitting to all or to a part, adding, and the lasso."""

from __future__ import annotations

import functools
import importlib
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from measure import describe_machine, insert, measure_steps, peak_memory, prepare, table

_DIM = 768
_CLUSTERS = 200
_AT_ONCE = 5000
_NEIGHBORS = 10
_QUERIES = 1000

Vectors = npt.NDArray[np.float32]


def main() -> None:
    """Measure and save."""
    args = prepare(
        __doc__,
        samples=[10_000, 40_000, 100_000],
        fitted=[10_000, 20_000, 50_000],
        methods=["umap", "pca"],
        lasso=[10_000, 40_000],
    )
    results: dict[str, Any] = {"machine": describe_machine()}
    steps: dict[str, Callable[[], Any]] = {}
    for count in args.samples:
        parts = {method: [count] for method in args.methods}
        if "umap" in parts:
            parts["umap"] = [n for n in args.fitted if n < count] + [count]
        for method, sizes in parts.items():
            for fitted in sizes:
                name = f"{method}, {count} samples, fitted to {fitted}"
                steps[name] = partial(_measure_map, count, method, fitted)

    for count in args.lasso:
        steps[f"lasso, {count} samples"] = partial(_measure_lasso, count)

    measure_steps(results, steps, args.folder / "maps.json")
    if args.into is not None:
        insert("\n".join(_tabulate(results)), "map figures", args.into)


def make_vectors(count: int) -> Vectors:
    """Return vectors in clusters that are planes of eight dimensions, with noise."""
    random = np.random.default_rng(0)
    centers = random.normal(size=(_CLUSTERS, _DIM))
    planes = random.normal(size=(_CLUSTERS, 8, _DIM)) * 0.5
    clusters = random.integers(_CLUSTERS, size=count)
    vectors = random.normal(size=(count, _DIM), scale=0.2).astype(np.float32)
    for cluster, (center, plane) in enumerate(zip(centers, planes, strict=True)):
        members = np.flatnonzero(clusters == cluster)
        vectors[members] += center + random.normal(size=(len(members), 8)) @ plane

    return vectors


def _insert(count: int) -> Any:
    """Return the dataset of so many samples, which is made once."""
    import fiftyone as fo
    from bson import ObjectId
    from fiftyone.core.fields import VectorField

    from fiftyone_hiera.runs.fiftyone_internals import sample_collection

    name = f"maps-{count}"
    if name in fo.list_datasets():
        return fo.load_dataset(name)

    vectors = make_vectors(count)
    dataset = fo.Dataset(name)
    dataset.add_sample(fo.Sample(filepath="/images/0.jpg", hiera=vectors[0]))
    collection = sample_collection(dataset)
    document = collection.find_one()
    collection.delete_many({})
    field = VectorField()
    for first in range(0, count, _AT_ONCE):
        documents = [
            {
                **document,
                "_id": ObjectId(),
                "filepath": f"/images/{first + index}.jpg",
                "_rand": float(np.random.default_rng(first + index).uniform()),
                "hiera": field.to_mongo(vector),
            }
            for index, vector in enumerate(vectors[first : first + _AT_ONCE])
        ]
        collection.insert_many(documents, ordered=False)

    return dataset


def _measure_map(count: int, method: str, fitted: int) -> dict[str, float | None]:
    """Compute a map, after one that compiles UMAP, as in an App that runs already."""
    import fiftyone.brain as fob

    dataset = _insert(count)
    _compile_umap(min(count, 4200))  # from 4,096 on it searches by an index

    def compute() -> None:
        samples = dataset if fitted == count else dataset.take(fitted, seed=51)
        results = fob.compute_visualization(
            samples, embeddings="hiera", brain_key="map", method=method, progress=False
        )
        if fitted != count:
            results.add_samples(dataset, progress=False)

    start = time.perf_counter()
    memory = peak_memory(compute, torch.device("cpu"))
    seconds = time.perf_counter() - start
    results = dataset.load_brain_results("map")
    points = dict(zip(results.sample_ids, results.points, strict=True))
    ids, vectors = dataset.values(["id", "hiera"])
    overlap = _overlap(np.stack(vectors), np.stack([points[one] for one in ids]))
    dataset.delete_brain_run("map")
    return {"seconds": seconds, "memory_mb": memory, "overlap": overlap}


@functools.cache
def _compile_umap(count: int) -> None:
    umap = importlib.import_module("umap")  # which has no types
    vectors = make_vectors(count)
    umap.UMAP(n_epochs=30).fit(vectors).transform(vectors[:100] + 1)


def _overlap(vectors: Vectors, points: Vectors) -> float:
    """Return the share of nearest neighbors of vectors that the map keeps."""
    queries = np.random.default_rng(0).permutation(len(vectors))[:_QUERIES]

    def neighbors(array: Vectors) -> npt.NDArray[np.intp]:
        distances = (array**2).sum(1) - 2 * array[queries] @ array.T
        distances[np.arange(len(queries)), queries] = np.inf
        return np.argpartition(distances, _NEIGHBORS, axis=1)[:, :_NEIGHBORS]

    pairs = zip(neighbors(vectors), neighbors(points), strict=True)
    return float(np.mean([len({*one} & {*other}) for one, other in pairs]) / _NEIGHBORS)


def _measure_lasso(count: int) -> dict[str, float]:
    """Measure selecting half of the samples by the view stages of the App's lasso."""
    import fiftyone.brain as fob

    dataset = _insert(count)
    results = fob.compute_visualization(
        dataset, embeddings="hiera", brain_key="lasso", method="pca"
    )
    width, height = np.quantile(np.abs(results.points), 0.5**0.5, axis=0).tolist()
    inside = (np.abs(results.points) < (width, height)).all(1)
    ids = results.sample_ids[inside].tolist()
    corners = [(-width, -height), (width, -height), (width, height), (-width, height)]
    polygon = [{"$match": {"lasso": {"$geoWithin": {"$polygon": corners}}}}]
    result: dict[str, float] = {}
    for name, is_indexed in (("IDs", None), ("points", False), ("index", True)):
        if is_indexed is not None:
            start = time.perf_counter()
            results.index_points(create_index=is_indexed, progress=False)
            result[f"{name}, storing_s"] = time.perf_counter() - start

        stage = ids if is_indexed is None else polygon
        view = dataset.select(ids) if is_indexed is None else dataset.mongo(polygon)
        result[f"{name}, request_bytes"] = len(json.dumps(stage))
        seconds = [_first_page(view) for _ in range(5)]
        result[f"{name}, first page_s"] = float(np.median(seconds))

    dataset.delete_brain_run("lasso")
    return result


def _first_page(view: Any) -> float:
    """Count the samples of a view, and list the first of them."""
    start = time.perf_counter()
    len(view)
    view.limit(20).values("filepath")
    return time.perf_counter() - start


def _tabulate(results: dict[str, Any]) -> Iterator[str]:
    """Yield the figures as text."""
    machine = results["machine"]
    yield f"{machine['cpu']}, {machine['cores']} cores, vectors of {_DIM} numbers.\n"
    rows, lassos = [], []
    for name, result in results.items():
        if name.startswith("lasso"):
            samples = f"{int(name.split()[1]):,}"
            lassos += [[samples, way, *_lasso_row(result, way)] for way in _WAYS]
        elif "overlap" in result:
            method, count, _, _, _, fitted = name.replace(",", "").split()
            rows.append(
                [
                    method,
                    f"{int(count):,}",
                    "all" if count == fitted else f"{int(fitted):,}",
                    f"{result['seconds']:.0f} s",
                    f"{result['memory_mb']:,.0f} MB",
                    f"{100 * result['overlap']:.1f} %",
                ]
            )

    head = ["method", "samples", "fitted to", "time", "memory", "neighbors kept"]
    yield from table(head, rows)
    head = ["samples", "lasso by", "storing", "request", "until the first page"]
    yield from table(head, lassos)


_WAYS = ("IDs", "points", "index")


def _lasso_row(result: dict[str, float], way: str) -> list[str]:
    storing = result.get(f"{way}, storing_s")
    return [
        "" if storing is None else f"{storing:.1f} s",
        f"{result[f'{way}, request_bytes'] / 1000:,.1f} kB",
        f"{1000 * result[f'{way}, first page_s']:.0f} ms",
    ]


if __name__ == "__main__":
    main()
