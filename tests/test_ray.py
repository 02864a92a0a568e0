"""Runs on Ray, where nothing fails but files: the results are those of a local run."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import psutil
import pytest
from other_process import SOURCES
from PIL import Image
from waiting import LIMIT

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.cluster.options import RayOptions, to_ray_options
from fiftyone_hiera.embedding.jobs import Embedded, Failed, Job, Part, Result
from fiftyone_hiera.embedding.local import embed_locally
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

# On one worker, which starts the cluster that they share
pytestmark = pytest.mark.xdist_group("ray")

has_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed"
)


@pytest.fixture
def served(digits: list[Digit]) -> Iterator[str]:
    """The URL of a server of the folder of digits."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(digits[0].path.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def _by_part(results: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    flat: list[Result] = [result for some in results for result in some]
    for result in flat:
        for part in result.parts if isinstance(result, Failed) else [result.part]:
            assert part.id not in found  # exactly one result
            found[part.id] = result

    return found


def _check_same(
    jobs: list[Job],
    model: HieraEmbeddingModel,
    *,
    is_video: bool = False,
) -> dict[str, Any]:
    """Check that Ray returns what this process does; return it."""
    from fiftyone_hiera.cluster.driver import embed_on_ray

    common = {"is_video": is_video, "batch_size": 8, "num_workers": 0}
    local = _by_part(embed_locally(jobs, model.embedder, **common))
    options = RayOptions(block_size=20)
    found = _by_part(embed_on_ray(iter(jobs), model.embedder, options, **common))
    assert found.keys() == local.keys()
    for name, expected in local.items():
        result = found[name]
        assert type(result) is type(expected)
        assert result.job.path == expected.job.path
        if isinstance(expected, Embedded):
            assert result.part == expected.part
            assert result.warnings == expected.warnings
            assert np.abs(result.embedding - expected.embedding).max() < 1e-4
        else:
            node = f" (on node {socket.gethostname()})"
            assert str(result.error).removesuffix(node) == str(expected.error)

    return found


def _job(number: int, path: Path | str) -> Job:
    return Job(str(number), str(path), [Part(str(number), str(number))])


@has_ray
@pytest.mark.slow
def test_local_cluster(
    dataset: Any,
    digits: list[Digit],
    model: HieraEmbeddingModel,
    tmp_path: Path,
) -> None:
    import ray

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    paths = [*(str(digit.path) for digit in digits[:60]), str(bad)]
    dataset.add_samples([fo.Sample(filepath=path) for path in paths])
    expected = model.embed_samples(dataset, "local")
    report = model.embed_samples(dataset, "hiera", ray=True, failure_tag="failed")
    assert (report.embedded, report.skipped) == (60, 0)
    assert report.failed == expected.failed
    assert dataset.match_tags("failed").values("filepath") == [str(bad)]
    local, found = dataset.exists("hiera").values(["local", "hiera"])
    assert np.abs(np.stack(found) - np.stack(local)).max() < 1e-4
    assert dataset.get_field("hiera").info["pooling"] == "mean"
    assert not ray.is_initialized()
    left = [
        child.as_dict(["pid", "name"])
        for child in psutil.Process().children(recursive=True)
    ]
    names = [child["name"] for child in left if child["pid"] not in before]
    assert not [name for name in names if name.startswith(("ray", "gcs"))]

    # There is nothing to start a cluster for
    good = dataset.exists("hiera")
    assert model.embed_samples(good, "hiera", ray="127.0.0.1:1").skipped == 60


@has_ray
def test_invalid_clusters(
    dataset: Any, digits: list[Digit], model: HieraEmbeddingModel
) -> None:
    dataset.add_sample(fo.Sample(filepath=str(digits[0].path)))
    start = time.monotonic()
    for ray, reason in [
        ("127.0.0.1:1", "Cannot connect to Ray at '127.0.0.1:1'"),
        ("nonsense", "Cannot connect to Ray at 'nonsense'"),
        ("ray://127.0.0.1:1", "Ray Client is not supported"),
        (7, "Invalid ray 7"),
    ]:
        with pytest.raises(ValueError, match=reason):
            model.embed_samples(dataset, "hiera", ray=ray)

    assert time.monotonic() - start < 30
    assert not dataset.has_field("hiera")


@pytest.mark.parametrize(
    "options",
    [
        {"address": ""},
        {"num_actors": 0},
        {"num_gpus": -1},
        {"num_cpus": True},
        {"block_size": 1.5},
    ],
)
def test_invalid_options(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"Invalid {name}"):
        RayOptions(**options)


@has_ray
def test_actors() -> None:
    from fiftyone_hiera.cluster.session import plan_actors

    gpus = plan_actors(RayOptions(), {"CPU": 16, "GPU": 4})
    assert (gpus.count, gpus.num_gpus, gpus.num_cpus, gpus.num_readers) == (4, 1, 0, 16)
    assert gpus.device == "cuda"
    cpus = plan_actors(RayOptions(num_actors=2), {"CPU": 4})
    assert (cpus.count, cpus.num_gpus, cpus.num_cpus, cpus.num_readers) == (2, 0, 1, 2)
    assert cpus.device == "cpu"
    assert cpus.num_threads == 2
    with pytest.raises(ValueError, match="too few for num_actors=2 with num_cpus=1"):
        plan_actors(RayOptions(num_actors=2), {"CPU": 2})


@has_ray
@pytest.mark.parametrize(
    ("block_size", "expected"), [(8, [[3, 9], [300], [5, 1, 1, 1], [2]]), (1, None)]
)
def test_no_file_is_in_two_blocks(
    block_size: int, expected: list[list[int]] | None
) -> None:
    from fiftyone_hiera.cluster.blocks import in_blocks

    counts = [3, 9, 300, 5, 1, 1, 1, 2]
    jobs = [Job("id", "path", [Part("id", "id")] * count) for count in counts]
    blocks = [*in_blocks(iter(jobs), block_size)]
    sizes = [[len(job.parts) for job in block] for block in blocks]
    assert sizes == (expected or [[count] for count in counts])


def test_engine_of_the_other_device() -> None:
    pytest.importorskip("openvino")
    from fiftyone_hiera.cluster.encoder_actor import describe_encoder

    options = {"engine": "openvino", "dtype": "float32", "device": "cpu"}
    model = fiftyone_hiera.load_model("hiera-nano-digits", **options)
    assert describe_encoder(model.embedder, "cpu").options["engine"] == "openvino"
    with pytest.raises(ValueError, match="'openvino' is for the CPU"):
        describe_encoder(model.embedder, "cuda")


def test_ray_absent(
    dataset: Any, model: HieraEmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="pip install 'ray"):
        model.embed_samples(dataset, "hiera", ray=True)

    assert to_ray_options(None) is None


@has_ray
def test_workers_import_what_they_need(digits: list[Digit]) -> None:
    read = (
        "job = Job('1', sys.argv[1], [Part('1', '1')])",
        "preprocessing = {'resize_size': (73, 73), 'crop_size': (64, 64)}",
        "options = {'is_video': False, 'num_workers': 2, 'block_size': 8}",
        "(piece,) = read_block([job], preprocessing=preprocessing, **options)",
        "assert piece.rows.shape == (1, 3, 64, 64)",
    )
    _run_without(
        {"fiftyone", "pymongo", "eta", "torch"},
        "import fiftyone_hiera.cluster.session",
        "from fiftyone_hiera.cluster.reading import read_block",
        "from fiftyone_hiera.embedding.jobs import Job, Part",
        *read,
        argument=str(digits[0].path),
    )
    _run_without(
        {"fiftyone", "pymongo", "eta", "transformers"},
        "import fiftyone_hiera.cluster.encoder_actor",
    )


@has_ray
@pytest.mark.slow
def test_images_patches_uris_and_bad_files(
    ray_job: None,
    served: str,
    digits: list[Digit],
    model: HieraEmbeddingModel,
    tmp_path: Path,
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    first = digits[0].path
    files = {
        100: bad,
        101: "/nowhere.png",
        103: first.as_uri(),
        104: first.with_name("no.png").as_uri(),
        105: "nope://y",
        106: f"{served}/{first.name}",
        107: f"{served}/nothing.png",
    }
    jobs = [_job(number, digit.path) for number, digit in enumerate(digits[:50])]
    jobs += [_job(number, path) for number, path in files.items()]
    boxes = [[0.1, 0.1, 0.5, 0.01 * side] for side in range(50)]
    patches = [Part(f"box{side}", "102", None, box) for side, box in enumerate(boxes)]
    jobs.append(Job("102", str(first), patches))
    found = _check_same(jobs, model)
    assert isinstance(found["box40"], Embedded)
    assert isinstance(found["box0"], Failed)
    assert str(found["101"].error).endswith(f" (on node {socket.gethostname()})")
    expected = model.embed(Image.open(first))
    assert np.abs(found["103"].embedding - expected).max() < 1e-4
    assert "No such file" in str(found["104"].error)
    assert "Protocol not known: nope" in str(found["105"].error)
    assert isinstance(found["106"], Embedded)
    assert isinstance(found["107"], Failed)


@has_ray
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffmpeg")
def test_frames(
    ray_job: None, digits: list[Digit], model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    from ray_cluster import write_video

    video = tmp_path / "video.mp4"
    write_video(video, digits[0].path.parent, 70)
    jobs = [
        Job(name, path, [Part(f"{name}{n}", name, n) for n in range(1, count)])
        for name, path, count in [
            ("a", str(video), 60),
            ("b", str(video), 90),  # it has fewer
            ("c", str(digits[0].path.parent / "none.mp4"), 5),
        ]
    ]
    found = _check_same(jobs, model, is_video=True)
    assert isinstance(found["a59"], Embedded)
    assert isinstance(found["b89"], Failed)


@has_ray
@pytest.mark.slow
def test_failed_files_are_tried_again(
    ray_job: None, digits: list[Digit], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    from manifests import embed_manifest, pq, write_manifest

    paths = [str(digit.path) for digit in digits[:20]]
    bad = Path("~/bad.png").expanduser()
    bad.write_text("no image")
    absent = tmp_path / "absent.png"
    uris = [*paths[:10], absent.as_uri(), "~/bad.png", None, *paths[13:]]
    manifest, out = write_manifest(tmp_path / "manifest.parquet", uris), tmp_path / "out"
    given: dict[str, Any] = {"part_size": 15, "ray": True}
    assert embed_manifest(manifest, out, **given).failed == 3
    before = pq.read_table(out)
    errors = [error for error in before["error"].to_pylist() if error is not None]
    node = f"(on node {socket.gethostname()})"
    assert sum(node in error for error in errors) == 1  # that of the absent file
    shutil.copy(paths[10], absent)
    shutil.copy(paths[11], bad)
    report = embed_manifest(manifest, out, **given, retry_failed=True)
    assert (report.embedded, report.skipped, report.failed) == (2, 17, 1)
    table = pq.read_table(out)
    assert table.schema == before.schema
    for was, row in zip(before.to_pylist(), table.to_pylist(), strict=True):
        if was["error"] is None or row["id"] == 12:
            assert row == was
        else:
            vector = expected[paths[row["id"]]]
            assert np.abs(np.asarray(row["vector"]) - vector).max() < 1e-4

    bad.unlink()


@has_ray
@pytest.mark.slow
def test_closing_leaves_no_process(
    ray_job: None, digits: list[Digit], model: HieraEmbeddingModel
) -> None:
    from ray_cluster import processes

    from fiftyone_hiera.cluster.driver import embed_on_ray

    def read_jobs() -> Iterator[Job]:
        for number in range(1_000_000):
            yield _job(number, digits[number % len(digits)].path)

    jobs = read_jobs()
    options = RayOptions(block_size=8)
    results = embed_on_ray(jobs, model.embedder, options, batch_size=8)
    next(some for some in results if some)
    assert processes("EncoderActor")
    results.close()
    assert int(next(jobs).sample_id) < 1000  # few were sent

    psutil.wait_procs(processes("EncoderActor"), timeout=LIMIT)
    assert not processes("EncoderActor")


def _run_without(modules: set[str], *lines: str, argument: str = "") -> None:
    """Run code in another process, and check that it does not import some modules."""
    code = "\n".join(["import sys", *lines, f"assert not {modules} & {{*sys.modules}}"])
    environment = {"PYTHONPATH": SOURCES}
    subprocess.run(
        [sys.executable, "-c", code, argument], env=environment, check=True, timeout=LIMIT
    )
