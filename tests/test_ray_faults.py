"""Runs on Ray that lose workers, nodes or their driver: one right result for each part."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import psutil
import pytest
from other_process import SOURCES, OtherProcess
from PIL import Image
from random_hiera import make_config, make_hiera, save_checkpoint
from waiting import LIMIT, wait_until

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.cluster.options import RayOptions
from fiftyone_hiera.embedding.jobs import Embedded, Failed, Job, Part, Result
from fiftyone_hiera.embedding.local import embed_locally
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

pytest.importorskip("ray")

from ray_cluster import ENCODER, RayCluster, processes, write_video

# On one worker, which starts the cluster that they share
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.samples(400)]

_Vectors = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"longer than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _make_jobs(paths: list[Path]) -> list[Job]:
    return [Job(str(n), str(path), [Part(str(n), str(n))]) for n, path in enumerate(paths)]


def _embed(
    jobs: Any,
    model: HieraEmbeddingModel,
    address: str | None = None,
    block_size: int = 16,
    is_video: bool = False,
) -> Iterator[list[Result]]:
    from fiftyone_hiera.cluster.driver import embed_on_ray

    options = RayOptions(address, block_size=block_size)
    return embed_on_ray(
        iter(jobs), model.embedder, options, is_video=is_video, batch_size=16
    )


def _check(
    results: list[Result],
    jobs: list[Job],
    expected: _Vectors,
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

    for job in jobs:
        result = found.get(job.sample_id)
        if result is None:
            continue

        if job.path in expected:
            assert isinstance(result, Embedded), result
            assert np.abs(result.embedding - expected[job.path]).max() < 1e-4
        else:
            assert isinstance(result, Failed)


def test_node_removed(
    ray_cluster: RayCluster,
    digits: list[Digit],
    model: HieraEmbeddingModel,
    expected: _Vectors,
) -> None:
    import ray

    jobs = _make_jobs([digit.path for digit in digits[:400]])
    results: list[Result] = []
    before = processes(ENCODER)
    removed = False
    try:
        for some in _embed(jobs, model, ray_cluster.address):
            results += some
            if results and not removed:
                (encoder,) = processes(ENCODER) - before
                ray_cluster.remove_node_of(encoder)
                removed = True
                assert len(results) < 200
    finally:
        ray_cluster.complete()

    _check(results, jobs, expected)
    assert not ray.is_initialized()


def test_other_version(
    ray_cluster: RayCluster, digits: list[Digit], model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    other = tmp_path / "fiftyone_hiera"
    ignored = shutil.ignore_patterns(".*", "tests", "__pycache__")
    shutil.copytree(Path(SOURCES) / "fiftyone_hiera", other, ignore=ignored)
    version = other / "embedding" / "version.py"
    text = version.read_text("utf-8")
    version.write_text(text.replace('VERSION = "', 'VERSION = "9.'), "utf-8")
    for folder, reason in [
        (tmp_path, r"has version 9\.\S+ of fiftyone_hiera"),
        (tmp_path / "nothing", "cannot import fiftyone_hiera: install"),
    ]:
        environment = {"env_vars": {"PYTHONPATH": str(folder)}}
        with (
            ray_cluster.connected(runtime_env=environment),
            pytest.raises(ValueError, match=reason),
        ):
            list(_embed(_make_jobs([digits[0].path]), model))


def test_wrong_token(ray_cluster: RayCluster, samples: Any, tmp_path: Path) -> None:
    code = f"""
        import os
        os.environ |= {{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 40}}
        dataset = fo.load_dataset({samples.name!r})
        try:
            model.embed_samples(dataset, "hiera", ray={ray_cluster.address!r})
        except ValueError as error:
            say(message=str(error), has_field=dataset.has_field("hiera"))
    """
    said = OtherProcess(code, tmp_path).result()
    assert f"Cannot connect to Ray at {ray_cluster.address!r}" in said["message"]
    assert "RAY_AUTH_TOKEN" in said["message"]
    assert not said["has_field"]


def test_encoder_killed(
    ray_job: None,
    digits: list[Digit],
    model: HieraEmbeddingModel,
    expected: _Vectors,
) -> None:
    jobs = _make_jobs([digit.path for digit in digits[:400]])
    results: list[Result] = []
    before = processes(ENCODER)
    killed = False
    for some in _embed(jobs, model):
        results += some
        if results and not killed:
            (encoder,) = processes(ENCODER) - before
            encoder.kill()
            killed = True
            assert len(results) < 200

    _check(results, jobs, expected)


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffmpeg")
def test_encoder_killed_while_videos_wait(
    ray_job: None, digits: list[Digit], model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    video = tmp_path / "video.mp4"
    write_video(video, digits[0].path.parent, 120)
    jobs = [
        Job(name, str(video), [Part(f"{name}{n}", name, n) for n in range(1, 121)])
        for name in "abcd"
    ]
    expected: dict[str, np.ndarray] = {}
    for some in embed_locally(
        jobs[:1], model.embedder, is_video=True, batch_size=16, num_workers=0
    ):
        for one in some:
            assert isinstance(one, Embedded)
            expected[one.part.id[1:]] = one.embedding

    found: set[str] = set()
    before = processes(ENCODER)
    killed = False
    for some in _embed(jobs, model, block_size=8, is_video=True):
        for one in some:
            assert isinstance(one, Embedded)
            assert one.part.id not in found
            found.add(one.part.id)
            assert np.abs(one.embedding - expected[one.part.id[1:]]).max() < 1e-4

        if found and not killed:
            (encoder,) = processes(ENCODER) - before
            encoder.kill()
            killed = True

    assert len(found) == 480


def test_encoders_that_die_as_they_start(
    ray_job: None, digits: list[Digit], model: HieraEmbeddingModel
) -> None:
    before = processes(ENCODER)
    with pytest.raises(RuntimeError, match="Ray stopped: The actor died"):
        for some in _embed(_make_jobs([digits[0].path]), model):
            assert not some
            for encoder in processes(ENCODER) - before:
                with contextlib.suppress(psutil.NoSuchProcess):
                    encoder.kill()


def test_other_jobs_hold_the_cluster(
    ray_job: None,
    digits: list[Digit],
    model: HieraEmbeddingModel,
    expected: _Vectors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    from fiftyone_hiera.cluster import encoders

    jobs = _make_jobs([digit.path for digit in digits[:20]])
    hold: Any = ray.remote(num_cpus=1)(lambda: time.sleep(LIMIT))
    held = [hold.remote() for _ in range(3)]
    before = processes(ENCODER)
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 0)
    with monkeypatch.context() as patch:
        patch.setattr(encoders, "_START_SECONDS", 1)
        with pytest.raises(RuntimeError, match="No encoder could be started within 1 s"):
            list(_embed(jobs, model))

    # A run that waits for them goes on when they end
    results: list[Result] = []
    for some in _embed(jobs, model):
        results += some
        for task in held:
            ray.cancel(task, force=True)

        held.clear()

    _check(results, jobs, expected)
    psutil.wait_procs(processes(ENCODER) - before, timeout=LIMIT)
    assert processes(ENCODER) <= before


def test_killer_slow_and_bad_files(
    ray_job: None,
    digits: list[Digit],
    model: HieraEmbeddingModel,
    expected: _Vectors,
    tmp_path: Path,
) -> None:
    paths = [digit.path for digit in digits[:200]]
    names = {3: "killer3.png", 40: "slow.png", 150: "killer150.png"}
    for number, name in names.items():
        shutil.copy(paths[number], tmp_path / name)
        paths[number] = tmp_path / name

    expected = {**expected, str(paths[40]): expected[str(digits[40].path)]}
    paths[99] = tmp_path / "bad.png"
    paths[99].write_bytes(b"no image")
    jobs = _make_jobs(paths)

    # The slow file waits until nothing else comes than its block of 16
    results: list[Result] = []
    for some in _embed(jobs, model):
        results += some
        if len(results) == 200 - 16:
            (tmp_path / "go").touch()

    _check(results, jobs, expected, lost=(3, 150))


def test_few_files_are_on_their_way(
    ray_job: None,
    digits: list[Digit],
    model: HieraEmbeddingModel,
    expected: _Vectors,
) -> None:
    from fiftyone_hiera.cluster.driver import most_blocks
    from fiftyone_hiera.cluster.session import plan_actors

    sent, most = 0, 0
    jobs = _make_jobs([digit.path for digit in digits[:400]])

    def send() -> Iterator[Job]:
        nonlocal sent
        for job in jobs:
            sent += 1
            yield job

    results: list[Result] = []
    for some in _embed(send(), model, block_size=8):
        results += some
        most = max(most, sent - len(results))

    # The encoder has up to three more on their way through this loop
    actors = plan_actors(RayOptions(), {"CPU": 3})
    assert 8 < most <= 8 * (most_blocks(actors) + 3) < len(jobs) / 2
    _check(results, jobs, expected)


def test_first_failure_stops(
    ray_job: None, samples: Any, model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    samples.add_sample(fo.Sample(filepath=str(bad)))
    with pytest.raises(RuntimeError, match=r"(?s)bad\.png.*skip_failures=True"):
        model.embed_samples(samples, "hiera", skip_failures=False, ray=True)


def test_other_weights(ray_job: None, digits: list[Digit], tmp_path: Path) -> None:
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
        list(_embed(_make_jobs([digits[0].path]), model))


def test_another_run_takes_the_field_over(
    ray_job: None, samples: Any, model: HieraEmbeddingModel, other: Any
) -> None:
    started: list[int] = []

    def take_over(bar: Any) -> None:
        if bar.iteration >= 40 and not started:
            started.append(bar.iteration)
            assert other.embed_samples(samples, "hiera", overwrite=True).embedded == 400

    with pytest.raises(RuntimeError, match=r"(?s)Another run.*differ in pooling"):
        ray = RayOptions(block_size=4)
        model.embed_samples(samples, "hiera", progress=take_over, ray=ray)

    assert started
    paths = samples.values("filepath")
    vectors = other.embed_all([Image.open(path) for path in paths])
    assert _check_stored(samples, dict(zip(paths, vectors, strict=True))) == 400


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_driver_stopped(
    ray_cluster: RayCluster,
    ray_job: None,
    samples: Any,
    model: HieraEmbeddingModel,
    expected: _Vectors,
    tmp_path: Path,
    number: int,
) -> None:
    code = f"""
        dataset = fo.load_dataset({samples.name!r})
        ray = fiftyone_hiera.RayOptions({ray_cluster.address!r}, block_size=4)
        model.embed_samples(dataset, "hiera", batch_size=4, progress=stay_at(40), ray=ray)
    """
    before = processes(ENCODER)
    process = OtherProcess(code, tmp_path)
    process.wait_until_stored(40)
    workers = processes(ENCODER) - before
    assert workers
    process.signal(number)
    status, log = process.wait()
    assert status != 0
    assert ("KeyboardInterrupt" in log) == (number == signal.SIGINT)
    _, alive = psutil.wait_procs(workers, timeout=LIMIT)
    assert alive == []
    stored = _check_stored(samples, expected)
    assert 0 < stored < 400
    report = model.embed_samples(samples, "hiera", ray=True)
    assert (report.skipped, report.embedded) == (stored, 400 - stored)
    assert _check_stored(samples, expected) == 400


def _check_stored(samples: Any, expected: _Vectors) -> int:
    samples.reload()
    paths, found = samples.exists("hiera").values(["filepath", "hiera"])
    vectors = [expected[path] for path in paths]
    assert np.abs(np.stack(found) - np.stack(vectors)).max() < 1e-4
    return len(paths)
