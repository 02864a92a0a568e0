"""Runs on Ray that lose workers, nodes or their driver: one right result for each part."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import psutil
import pytest
from other_process import OtherProcess
from PIL import Image
from random_hiera import make_config, make_hiera, save_checkpoint

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.cluster.options import RayOptions
from fiftyone_hiera.embedding.jobs import Job, Part
from fiftyone_hiera.embedding.local import embed_locally
from fiftyone_hiera.embedding.results import Embedded, Failed, Result
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

_SOURCES = str(Path(fiftyone_hiera.__file__).absolute().parents[1])
_HOOK = str(Path(__file__).parent / "ray_hook")
_ENCODER = "MapWorker(MapBatches(EncodeBlocks))"
_LIMIT = 150  # seconds; Ray hangs rather than fails


class _Cluster:
    """A head without CPUs and three nodes of one CPU each.

    Args:
        paths: what its workers have on their ``PYTHONPATH``
    """

    def __init__(self, *paths: str) -> None:
        from ray.cluster_utils import Cluster

        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        small = {"object_store_memory": 200 * 2**20, "include_dashboard": False}
        try:
            self._cluster = Cluster(True, head_node_args={"num_cpus": 0, **small})
            self.nodes = [self._cluster.add_node(num_cpus=1, **small) for _ in range(3)]
            self._cluster.wait_for_nodes()
        finally:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before

        self.address = self._cluster.address

    def remove(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def stop(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def cluster() -> Iterator[_Cluster]:
    cluster = _Cluster(_SOURCES, _HOOK)
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"longer than {_LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _make_jobs(paths: list[Path]) -> list[Job]:
    return [Job(str(n), str(path), [Part(str(n), str(n))]) for n, path in enumerate(paths)]


def _embed(
    jobs: Any, model: HieraEmbeddingModel, cluster: _Cluster, block_size: int = 16
) -> Iterator[list[Result]]:
    from fiftyone_hiera.cluster.source import embed_on_ray

    options = RayOptions(cluster.address, block_size=block_size)
    return embed_on_ray(iter(jobs), model.embedder, options, batch_size=4)


def _check(
    results: list[Result],
    jobs: list[Job],
    model: HieraEmbeddingModel,
    lost: tuple[int, ...] = (),
) -> None:
    """Check that each file has one result, that of a local run unless it was lost."""
    found: dict[str, Result] = {}
    for result in results:
        (part,) = result.parts if isinstance(result, Failed) else [result.part]
        assert part.id not in found
        found[part.id] = result

    assert found.keys() == {job.sample_id for job in jobs}
    for number in lost:
        result = found.pop(str(number))
        assert isinstance(result, Failed)
        assert jobs[number].path in str(result.error)
        assert "it killed each process that read it" in str(result.error)

    good = [job for job in jobs if job.sample_id in found]
    local = embed_locally(good, model.embedder, batch_size=32, num_workers=0)
    for expected in (result for some in local for result in some):
        if isinstance(expected, Embedded):
            result = found[expected.part.id]
            assert isinstance(result, Embedded), result
            assert np.abs(result.embedding - expected.embedding).max() < 1e-4
        else:
            assert isinstance(found[expected.parts[0].id], Failed)


def _encoders() -> list[psutil.Process]:
    below = psutil.Process().children(recursive=True)
    return [child for child in below if _ENCODER in " ".join(child.cmdline())]


def test_encoder_killed(
    cluster: _Cluster, digits: list[Digit], model: HieraEmbeddingModel
) -> None:
    jobs = _make_jobs([digit.path for digit in digits[:600]])
    results: list[Result] = []
    killed = False
    for some in _embed(jobs, model, cluster):
        results += some
        if results and not killed:
            (encoder,) = _encoders()
            encoder.kill()
            killed = True
            assert len(results) < 300

    _check(results, jobs, model)


def test_node_removed(
    cluster: _Cluster, digits: list[Digit], model: HieraEmbeddingModel
) -> None:
    jobs = _make_jobs([digit.path for digit in digits[:600]])
    results: list[Result] = []
    removed = False
    for some in _embed(jobs, model, cluster):
        results += some
        if results and not removed:
            cluster.remove(cluster.nodes[0])
            removed = True
            assert len(results) < 300

    _check(results, jobs, model)


def test_killer_and_bad_files(
    cluster: _Cluster, digits: list[Digit], model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    paths = [digit.path for digit in digits[:200]]
    for number in (3, 150):
        path = tmp_path / f"killer{number}.png"
        shutil.copy(paths[number], path)
        paths[number] = path

    paths[99] = tmp_path / "bad.png"
    paths[99].write_bytes(b"no image")
    jobs = _make_jobs(paths)
    results = [result for some in _embed(jobs, model, cluster) for result in some]
    _check(results, jobs, model, lost=(3, 150))


def test_slow_file(
    cluster: _Cluster, digits: list[Digit], model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    paths = [digit.path for digit in digits[:200]]
    slow = tmp_path / "slow.png"
    shutil.copy(paths[40], slow)
    paths[40] = slow
    jobs = _make_jobs(paths)
    results = [result for some in _embed(jobs, model, cluster) for result in some]
    _check(results, jobs, model)

    # Its block of 16 is the last one to come back
    assert "40" in [result.job.sample_id for result in results[-16:]]


def test_few_files_are_on_their_way(
    cluster: _Cluster, digits: list[Digit], model: HieraEmbeddingModel
) -> None:
    from fiftyone_hiera.cluster.session import plan_actors
    from fiftyone_hiera.cluster.source import most_blocks

    sent, most = 0, 0
    jobs = _make_jobs([digit.path for digit in digits[:1000]])

    def send() -> Iterator[Job]:
        nonlocal sent
        for job in jobs:
            sent += 1
            yield job

    results: list[Result] = []
    for some in _embed(send(), model, cluster, block_size=8):
        results += some
        most = max(most, sent - len(results))

    # One block more waits for room, and one is on its way through this loop
    actors = plan_actors(RayOptions(), {"CPU": 3})
    assert 8 < most <= 8 * (most_blocks(actors) + 2)
    _check(results, jobs, model)


def test_other_version(
    digits: list[Digit], model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    other = tmp_path / "fiftyone_hiera"
    ignored = shutil.ignore_patterns(".*", "tests", "__pycache__")
    shutil.copytree(Path(_SOURCES) / "fiftyone_hiera", other, ignore=ignored)
    version = other / "embedding" / "version.py"
    text = version.read_text("utf-8")
    version.write_text(text.replace('VERSION = "', 'VERSION = "9.'), "utf-8")
    cluster = _Cluster(str(tmp_path))
    try:
        with pytest.raises(ValueError, match=r"has version 9\.\S+ of fiftyone_hiera"):
            list(_embed(_make_jobs([digits[0].path]), model, cluster))
    finally:
        cluster.stop()

    cluster = _Cluster(str(tmp_path / "nothing"))
    try:
        with pytest.raises(ValueError, match="cannot import fiftyone_hiera: install"):
            list(_embed(_make_jobs([digits[0].path]), model, cluster))
    finally:
        cluster.stop()


def test_other_weights(cluster: _Cluster, digits: list[Digit], tmp_path: Path) -> None:
    config = make_config()
    checkpoint = save_checkpoint(tmp_path / "random", make_hiera(config))
    options = {"checkpoint": str(checkpoint), "dtype": "float32", "engine": "torch"}
    model = fiftyone_hiera.load_model("hiera-nano-digits", **options)
    assert model.embedder.provenance["sha256"]
    other = make_hiera(config)
    for parameter in other.parameters():
        parameter.data.add_(0.01)

    save_checkpoint(tmp_path / "random", other)
    with pytest.raises(RuntimeError, match=r"would compute other embeddings.*sha256"):
        list(_embed(_make_jobs([digits[0].path]), model, cluster))


@pytest.fixture
def samples(digits: list[Digit]) -> Iterator[Any]:
    """A dataset that other processes can load."""
    dataset = fo.Dataset(persistent=True)
    dataset.add_samples([fo.Sample(filepath=str(digit.path)) for digit in digits[:400]])
    yield dataset
    dataset.delete()


def _check_stored(samples: Any, model: HieraEmbeddingModel) -> int:
    samples.reload()
    paths, found = samples.exists("hiera").values(["filepath", "hiera"])
    expected = model.embed_all([Image.open(path) for path in paths])
    assert np.abs(np.stack(found) - expected).max() < 1e-4
    return len(paths)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_driver_stopped(
    samples: Any, model: HieraEmbeddingModel, tmp_path: Path, number: int
) -> None:
    code = f"""
        dataset = fo.load_dataset({samples.name!r})
        ray = fiftyone_hiera.RayOptions(block_size=4)
        model.embed_samples(dataset, "hiera", batch_size=4, progress=slowly, ray=ray)
    """
    process = OtherProcess(code, tmp_path)
    process.wait_until_stored(40)
    workers = process.descendants("MapWorker")
    assert workers
    process.signal(number)
    status, log = process.wait(timeout=30)
    assert status != 0
    assert ("KeyboardInterrupt" in log) == (number == signal.SIGINT)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    stored = _check_stored(samples, model)
    assert 0 < stored < 400
    report = model.embed_samples(samples, "hiera", ray=True)
    assert (report.skipped, report.embedded) == (stored, 400 - stored)
    assert _check_stored(samples, model) == 400


def test_wrong_token(samples: Any, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    address = f"127.0.0.1:{port}"
    ray = str(Path(sys.executable).with_name("ray"))
    options = ["--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 40}
    head = subprocess.Popen(
        [ray, "start", *options, "--disable-usage-stats", "--block"],
        env={**os.environ, **token},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    code = f"""
        import os
        os.environ |= {{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 40}}
        dataset = fo.load_dataset({samples.name!r})
        try:
            model.embed_samples(dataset, "hiera", ray={address!r})
        except ValueError as error:
            say(message=str(error), has_field=dataset.has_field("hiera"))
    """
    try:
        for _ in range(100):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port)),
            ):
                break

            time.sleep(0.2)

        said = OtherProcess(code, tmp_path).result()
    finally:
        head.terminate()
        head.wait(30)

    assert f"Cannot connect to Ray at {address!r}" in said["message"]
    assert "RAY_AUTH_TOKEN" in said["message"]
    assert not said["has_field"]


def test_another_run_takes_the_field_over(samples: Any, model: HieraEmbeddingModel) -> None:
    other = fiftyone_hiera.load_model("hiera-nano-digits", pooling="cls", dtype="float32")
    started: list[int] = []

    def take_over(bar: Any) -> None:
        if bar.iteration >= 40 and not started:
            started.append(bar.iteration)
            assert other.embed_samples(samples, "hiera", overwrite=True).embedded == 400

    with pytest.raises(RuntimeError, match=r"(?s)Another run.*differ in pooling"):
        ray = RayOptions(block_size=4)
        model.embed_samples(samples, "hiera", progress=take_over, ray=ray)

    assert started
    assert _check_stored(samples, other) == 400


def test_first_failure_stops(
    samples: Any, model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    import ray

    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    samples.add_sample(fo.Sample(filepath=str(bad)))
    with pytest.raises(RuntimeError, match=r"(?s)bad\.png.*skip_failures=True"):
        model.embed_samples(samples, "hiera", skip_failures=False, ray=True)

    assert not ray.is_initialized()
