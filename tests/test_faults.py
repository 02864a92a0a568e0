"""Runs that are interrupted: by signals, a lost database, other processes."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.core.odm as foo
import numpy as np
import psutil
import pymongo
import pytest
from other_process import OtherProcess
from PIL import Image
from pymongo.errors import PyMongoError
from random_hiera import make_config, make_hiera, save_checkpoint

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.runs import worklist
from fiftyone_hiera.runs.fiftyone_internals import sample_collection
from sandbox import OwnDatabase, own_config

_COUNT = 400

pytestmark = pytest.mark.samples(_COUNT)


def _stored(dataset: Any, expected: dict[str, np.ndarray], field: str = "hiera") -> int:
    """Check that each stored embedding is of its own image; return their number."""
    dataset.reload()
    paths, embeddings = dataset.exists(field).values(["filepath", field])
    for path, embedding in zip(paths, embeddings, strict=True):
        assert np.abs(embedding - expected[path]).max() < 1e-4

    return len(paths)


def _check_resume(
    dataset: Any, model: HieraEmbeddingModel, expected: dict[str, np.ndarray]
) -> None:
    """Stored embeddings are kept and right, and another run computes exactly the rest."""
    stored = _stored(dataset, expected)
    assert 0 < stored < len(dataset)
    report = model.embed_samples(dataset, "hiera")
    assert (report.skipped, report.embedded) == (stored, len(dataset) - stored)
    assert _stored(dataset, expected) == len(dataset)


_RUN = """
    dataset = fo.load_dataset({name!r})
    model.embed_samples(dataset, "hiera", batch_size=4, progress=stay_at(40, {go!r}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted(
    samples: Any,
    model: HieraEmbeddingModel,
    expected: dict[str, np.ndarray],
    tmp_path: Path,
    number: int,
) -> None:
    go = tmp_path / "go"
    process = OtherProcess(_RUN.format(name=samples.name, go=str(go)), tmp_path)
    process.wait_until_stored(40)
    process.signal(number)
    go.touch()
    status, log = process.wait()
    assert status != 0
    assert ("KeyboardInterrupt" in log) == (number == signal.SIGINT)
    _check_resume(samples, model, expected)


@pytest.mark.slow
def test_native_worker_killed(
    samples: Any,
    model: HieraEmbeddingModel,
    expected: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    code = """
        dataset = fo.load_dataset({name!r})
        dataset.compute_embeddings(
            model, "native", batch_size=4, num_workers=1, progress=stay_at(40, {go!r})
        )
    """
    go = tmp_path / "go"
    process = OtherProcess(code.format(name=samples.name, go=str(go)), tmp_path)
    process.wait_until_stored(40)
    (worker, *_) = process.descendants("forkserver")  # in the command lines of its forks
    worker.kill()
    go.touch()
    status, log = process.wait()
    assert status != 0
    assert "killed" in log
    stored = _stored(samples, expected, "native")
    assert 0 < stored < len(samples)

    rest = samples.exists("native", False).values("id")
    samples.select(rest).compute_embeddings(model, "native", batch_size=8, num_workers=0)
    assert _stored(samples, expected, "native") == len(samples)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [[(0, 2), (1, 2)], [None, None]])
def test_two_processes(
    samples: Any, expected: dict[str, np.ndarray], tmp_path: Path, shards: list[Any]
) -> None:
    start = tmp_path / "start"
    code = """
        dataset = fo.load_dataset({name!r})
        say(ready=True)
        wait_for({start!r})

        report = model.embed_samples(dataset, "hiera", batch_size=4, shard={shard!r})
        say(embedded=report.embedded)
    """
    processes = [
        OtherProcess(
            code.format(name=samples.name, start=str(start), shard=shard), tmp_path
        )
        for shard in shards
    ]
    for process in processes:
        assert next(process.said()) == {"ready": True}

    start.touch()
    embedded = [process.result()["embedded"] for process in processes]
    assert _stored(samples, expected) == _COUNT
    if shards[0] is not None:
        assert sum(embedded) == _COUNT
        assert min(embedded) > _COUNT // 4

    fields = foo.get_db_conn().datasets.find_one({"name": samples.name})["sample_fields"]
    assert [field["name"] for field in fields].count("hiera") == 1
    assert samples.get_field("hiera").info["checkpoint"] == "hiera-nano-digits"


@pytest.mark.slow
def test_two_processes_with_different_settings(
    samples: Any,
    model: HieraEmbeddingModel,
    expected: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    code = """
        other = fiftyone_hiera.load_model("hiera-nano-digits", pooling="cls", **exact)
        dataset = fo.load_dataset({name!r})
        try:
            other.embed_samples(dataset, "hiera", batch_size=4, progress=stay_at(4))
        except ValueError as error:
            say(refused=str(error))
    """
    process = OtherProcess(code.format(name=samples.name), tmp_path)
    process.wait_until_stored(4)
    with pytest.raises(ValueError, match=r"(?s)pooling cls.*pooling mean"):
        model.embed_samples(samples, "hiera")

    process.signal(signal.SIGKILL)
    process.wait()


_LITTLE_MEMORY = """
    import resource, torch
    torch.set_num_threads(2)

    def leave(megabytes):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    dataset = fo.load_dataset({name!r})
    model.embed_samples(dataset[:8], "warm", batch_size=4, num_workers=0)
    options = {{"checkpoint": {checkpoint!r}, "dtype": "float32", "engine": {engine!r}}}
    options["image_size"] = {image_size}
    large = fiftyone_hiera.load_model("hiera-nano-digits", **options)
    leave({megabytes})
    try:
        report = large.embed_samples(dataset[:48], {field!r}, batch_size=48, num_workers=0)
        say(embedded=report.embedded)
    except RuntimeError as error:
        say(error=str(error), stored=error.report.embedded)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux' /proc")
def test_out_of_memory(samples: Any, tmp_path: Path) -> None:
    large = make_hiera(make_config(image_size=(448, 448)))
    checkpoint = str(save_checkpoint(tmp_path / "large", large))

    def run_with(megabytes: int, engine: str, image_size: int = 448) -> OtherProcess:
        code = _LITTLE_MEMORY.format(
            name=samples.name,
            field=f"{engine}_{megabytes}",
            checkpoint=checkpoint,
            engine=engine,
            megabytes=megabytes,
            image_size=image_size,
        )
        return OtherProcess(code, tmp_path)

    none, *some = (
        run_with(25, "torch", 896),  # an image takes more, and Python has what it needs
        run_with(500, "torch"),
        run_with(300, "openvino"),
    )
    messages = [*none.said()]
    assert messages, none.wait()
    (stopped,) = messages
    assert stopped["error"].startswith("Out of memory at a single image")
    assert stopped["stored"] == 0
    none.wait()

    for process, is_halved in zip(some, (True, False), strict=True):
        assert next(process.said()) == {"embedded": 48}
        _, log = process.wait()
        # OpenVINO takes a few images of a batch at a time
        halved = "Out of memory at a batch size of 48: continuing with 24" in log
        assert halved or not is_halved

    unlimited = fiftyone_hiera.load_model(
        "hiera-nano-digits", checkpoint=checkpoint, dtype="float32"
    )
    samples.reload()
    for field in ("torch_500", "openvino_300"):
        paths, stored = samples.exists(field).values(["filepath", field])
        assert len(paths) == 48
        embeddings = unlimited.embed_all([Image.open(path) for path in paths])
        assert np.abs(np.stack(stored) - embeddings).max() < 1e-4


@pytest.mark.slow
def test_memory_does_not_grow(model: HieraEmbeddingModel, digits: list[Digit]) -> None:
    dataset = fo.Dataset()
    paths = [str(digit.path) for digit in digits] * 6
    dataset.add_samples([fo.Sample(filepath=path) for path in paths[:10_000]])
    resident: dict[int, int] = {}

    def measure(bar: Any) -> None:
        resident[bar.iteration] = psutil.Process().memory_info().rss

    report = model.embed_samples(dataset, "hiera", batch_size=50, progress=measure)
    dataset.delete()
    assert report.embedded == 10_000
    growth = max(used for done, used in resident.items() if done > 2000) - resident[2000]
    assert growth < 50 * 2**20


def test_another_run_takes_the_field_over(
    samples: Any, model: HieraEmbeddingModel, expected: dict[str, np.ndarray]
) -> None:
    other = fiftyone_hiera.load_model("hiera-nano-digits", pooling="cls", dtype="float32")
    started: list[int] = []

    def take_over(bar: Any) -> None:
        if bar.iteration >= 40 and not started:
            started.append(bar.iteration)
            assert other.embed_samples(samples, "hiera", overwrite=True).embedded == _COUNT

    with pytest.raises(RuntimeError, match=r"(?s)Another run.*differ in pooling"):
        model.embed_samples(samples, "hiera", batch_size=4, progress=take_over)

    samples.reload()
    assert samples.get_field("hiera").info["pooling"] == "cls"
    paths, stored = samples.values(["filepath", "hiera"])
    embeddings = other.embed_all([Image.open(path) for path in paths])
    assert np.abs(np.stack(stored) - embeddings).max() < 1e-4


def test_samples_deleted_meanwhile(
    samples: Any,
    model: HieraEmbeddingModel,
    expected: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Some are looked up before, some after
    monkeypatch.setitem(worklist._PAGE_SIZE, "image", 105)
    by_id = samples.sort_by("id").values("id")
    deleted = [by_id[2], *by_id[100:110], by_id[-1]]

    def delete(bar: Any) -> None:
        if deleted and bar.iteration:
            samples.delete_samples(deleted)
            deleted.clear()

    report = model.embed_samples(samples, "hiera", batch_size=4, progress=delete)
    assert report.failed == []
    assert _stored(samples, expected) == len(samples) == _COUNT - 12


def test_cursors_lost(
    samples: Any, model: HieraEmbeddingModel, expected: dict[str, np.ndarray]
) -> None:
    model.embed_samples(samples[:50], "hiera")
    killed: list[int] = []
    stop = threading.Event()
    collection = sample_collection(samples).name
    thread = threading.Thread(target=_kill_cursors, args=(collection, stop, killed))
    thread.start()
    try:
        for _ in range(50):
            try:
                report = model.embed_samples(samples, "hiera", batch_size=4)
                break
            except RuntimeError:
                _stored(samples, expected)
    finally:
        stop.set()
        thread.join()

    assert report.failed == []
    assert _stored(samples, expected) == _COUNT
    assert killed == []  # each page is a query of its own, whose answer is one batch


def _kill_cursors(collection: str, stop: threading.Event, killed: list[int]) -> None:
    admin = foo.get_db_client().admin
    idle = [
        {"$currentOp": {"allUsers": True, "idleCursors": True}},
        {"$match": {"type": "idleCursor", "ns": {"$regex": f"{collection}$"}}},
    ]
    while not stop.is_set():
        for operation in admin.aggregate(idle):
            database, _, _ = operation["ns"].partition(".")
            cursor = operation["cursor"]["cursorId"]
            admin.client[database].command("killCursors", collection, cursors=[cursor])
            killed.append(cursor)


_OWN_DATABASE = """
    import glob

    name = "survivor"
    if name not in fo.list_datasets():
        dataset = fo.Dataset(name, persistent=True)
        paths = sorted(glob.glob({pattern!r}))[:{count}]
        dataset.add_samples([fo.Sample(filepath=path) for path in paths])

    dataset = fo.load_dataset(name)
    before = dataset.count("hiera") if dataset.has_field("hiera") else 0
"""
_LOSE = """
    address = {address!r}
    ray = fiftyone_hiera.RayOptions(address, block_size=4) if address else None
    stay = stay_at(40, {go!r})
    try:
        model.embed_samples(dataset, "hiera", batch_size=4, progress=stay, ray=ray)
    except RuntimeError as error:
        say(error=type(error).__name__, message=str(error), stored=error.report.embedded)
"""
_RESUME = """
    import numpy as np

    report = model.embed_samples(dataset, "hiera")
    read = fiftyone_hiera.images.decoding.read_image
    expected = model.embed_all([read(path) for path in dataset.values("filepath")])
    worst = np.abs(np.stack(dataset.values("hiera")) - expected).max()
    say(before=before, skipped=report.skipped, embedded=report.embedded, worst=float(worst))
"""


def _lose_database(
    folder: Path,
    work: Path,
    pattern: str,
    lose: Any,
    repair: Any,
    *,
    address: str | None = None,
) -> dict[str, Any]:
    """Lose the database during a run, and run again.

    Returns:
        what the processes said, and the seconds from the loss to the error
    """
    database = OwnDatabase(folder / "database")
    config = own_config(work, database, show_progress_bars=False)
    begin = _OWN_DATABASE.format(pattern=pattern, count=_COUNT)
    go = work / "go"
    code = begin + _LOSE.format(address=address, go=str(go))
    process = OtherProcess(code, work, config)
    process.wait_until_stored(40)
    lose(database)
    start = time.monotonic()
    go.touch()
    lost = next(said for said in process.said() if "error" in said)
    lost["seconds"] = time.monotonic() - start
    process.signal(signal.SIGKILL)  # FiftyOne would look for its database again
    process.wait()
    database.stop()
    repair()

    database = OwnDatabase(folder / "database")
    config = own_config(work, database, show_progress_bars=False)
    again = OtherProcess(begin + _RESUME, work, config).result()
    database.stop()
    return lost | again


def _kill(database: OwnDatabase) -> None:
    for server in psutil.Process(database.process.pid).children():
        if server.name() == "mongod":
            server.kill()


def _fill_disk(ballast: Path, database: OwnDatabase) -> None:
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))

    # MongoDB writes to disk once a minute, or when it is told to
    with pymongo.MongoClient(database.uri) as client, contextlib.suppress(PyMongoError):
        client.admin.command("fsync")


@pytest.fixture(scope="module")
def lost(
    digits: list[Digit],
    tmp_path_factory: pytest.TempPathFactory,
    small_disk: Callable[[int], Path],
) -> Iterator[dict[str, Any]]:
    """Two runs at the same time that lose their databases in different ways."""
    pattern = str(digits[0].path.parent / "*.png")
    killed, full = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("full")
    with ThreadPoolExecutor() as pool:
        runs = {"killed": pool.submit(_lose_database, killed, killed, pattern, _kill, list)}
        with contextlib.suppress(pytest.skip.Exception):
            disk = small_disk(600)
            ballast = disk / "ballast"
            fill = partial(_fill_disk, ballast)
            runs["full"] = pool.submit(
                _lose_database, disk, full, pattern, fill, ballast.unlink
            )

        yield runs


def _check_lost(run: dict[str, Any]) -> None:
    assert run["error"] == "EmbeddingError"
    assert "The database was lost" in run["message"]
    assert run["seconds"] < 60
    assert 0 < run["before"] < _COUNT
    assert (run["skipped"], run["embedded"]) == (run["before"], _COUNT - run["before"])
    assert run["worst"] < 1e-4


@pytest.mark.slow
@pytest.mark.xdist_group("lost")
def test_mongod_killed(lost: dict[str, Any]) -> None:
    _check_lost(lost["killed"].result())


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_mongod_killed_on_ray(
    ray_cluster: Any, digits: list[Digit], tmp_path: Path
) -> None:
    pattern = str(digits[0].path.parent / "*.png")
    address = ray_cluster.address
    _check_lost(_lose_database(tmp_path, tmp_path, pattern, _kill, list, address=address))


@pytest.mark.slow
@pytest.mark.xdist_group("lost")
def test_disk_full(lost: dict[str, Any]) -> None:
    if "full" not in lost:
        pytest.skip("this user may not mount a disk")

    _check_lost(lost["full"].result())
