"""What vectors on samples cost in the App's grid: bytes, and seconds to draw and scroll."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chromium import open_chromium

from measure import describe_machine, insert, measure_steps, prepare, table

_DIM = 768
_FILES = 64
_PAGES = 3
_PATIENCE = 60  # seconds
_AT_ONCE = 5000
_DATASETS = {"without vectors": False, "with vectors": True}
_SCROLL = """() => [...document.querySelectorAll("*")].find(
    element => element.scrollHeight > element.clientHeight + 200
        && ["auto", "scroll"].includes(getComputedStyle(element).overflowY)
        && element.querySelector("canvas")
).scrollBy(0, 1500)"""  # the grid
_SIZE: Any = {"width": 1400, "height": 1000}


def main() -> None:
    """Measure and save."""
    args = prepare(__doc__, samples=10_000, rounds=3)
    results: dict[str, Any] = {"machine": describe_machine(), "samples": args.samples}
    steps: dict[str, Callable[[], Any]] = {
        "grid": lambda: _measure(args.folder, args.samples, args.rounds)
    }
    measure_steps(results, steps, args.folder / "grid.json")
    if args.into is not None:
        insert("\n".join(_tabulate(results)), "grid figures", args.into)


def _measure(folder: Path, count: int, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Open the App on each dataset in turns, in a browser without a cache."""
    import fiftyone as fo

    paths = _write_jpegs(folder / "small")
    datasets = {name: _make_dataset(name, count, paths) for name in _DATASETS}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    options = {"port": port, "address": "localhost", "auto": False}
    session = fo.launch_app(next(iter(datasets.values())), **options)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in datasets}
    with open_chromium() as browser:
        for number in range(rounds + 1):
            for name, dataset in datasets.items():
                url = f"http://localhost:{port}/datasets/{dataset.name}"
                with browser.new_context(viewport=_SIZE) as context:
                    run = _open_and_scroll(context.new_page(), url)

                run["stored_bytes"] = dataset.stats()["samples_bytes"] / count
                if number:  # the first warms up
                    results[name].append(run)

    session.close()
    for dataset in datasets.values():
        dataset.delete()

    return results


def _open_and_scroll(page: Any, url: str) -> dict[str, Any]:
    """Open the App, wait for the grid, scroll until more pages have come."""
    responses: list[Any] = []

    def keep(response: Any) -> None:
        if "paginateSamples" in (response.request.post_data or ""):
            responses.append(response)

    page.set_default_timeout(60_000)
    page.on("response", keep)
    start = time.perf_counter()
    page.goto(url)
    page.locator("canvas[canvas-loaded=true]").first.wait_for()
    drawn = time.perf_counter() - start
    page.wait_for_timeout(1500)  # what else the App loads
    before = len(responses)
    start = time.perf_counter()
    while len(responses) < before + _PAGES:
        if time.perf_counter() > start + _PATIENCE:
            raise TimeoutError(f"The grid did not load {_PAGES} pages; has it changed?")

        page.evaluate(_SCROLL)
        page.wait_for_timeout(20)

    scrolled = time.perf_counter() - start
    bodies = [response.body() for response in responses]
    return {
        "first_s": drawn,
        "scroll_s": scrolled,
        "pages": len(bodies),
        "page_bytes": statistics.median(len(body) for body in bodies),
    }


def _write_jpegs(folder: Path) -> list[str]:
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    paths = [folder / f"{number:02}.jpg" for number in range(_FILES)]
    for path in paths:
        pixels = generator.integers(256, size=(4, 4, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(path)

    return [str(path) for path in paths]


def _make_dataset(name: str, count: int, paths: list[str]) -> Any:
    import fiftyone as fo
    import numpy as np

    dataset = fo.Dataset(name.replace(" ", "-"), persistent=True, overwrite=True)
    dataset.add_samples([fo.Sample(filepath=paths[n % _FILES]) for n in range(count)])
    dataset.compute_metadata(num_workers=1)
    if _DATASETS[name]:
        dataset.add_sample_field("hiera", fo.VectorField)
        generator = np.random.default_rng(0)
        ids = dataset.values("id")
        for first in range(0, count, _AT_ONCE):
            some = ids[first : first + _AT_ONCE]
            vectors = generator.normal(size=(len(some), _DIM)).astype(np.float32)
            dataset.set_values(
                "hiera", dict(zip(some, vectors, strict=True)), key_field="id"
            )

    return dataset


def _tabulate(results: dict[str, Any]) -> Iterator[str]:
    """Yield the figures as text."""
    machine, grid = results["machine"], results["grid"]
    yield (
        f"{machine['cpu']}, {machine['cores']} cores, {results['samples']:,} samples, "
        f"{_DIM} numbers a vector; the median of {len(next(iter(grid.values())))} rounds.\n"
    )
    rows = []
    for label, key, form in (
        ("bytes of a page of the grid", "page_bytes", "{:,.0f}"),
        ("seconds until the first images", "first_s", "{:.1f}"),
        (f"seconds to scroll {_PAGES} pages", "scroll_s", "{:.1f}"),
        ("bytes in MongoDB per sample", "stored_bytes", "{:,.0f}"),
    ):
        values = [statistics.median(run[key] for run in runs) for runs in grid.values()]
        rows.append([label, *(form.format(value) for value in values)])

    yield from table(["", *grid], rows)


if __name__ == "__main__":
    main()
