"""Embeddings of the files of a manifest, in Parquet files, without FiftyOne."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifests import embed_manifest as _embed
from manifests import start_embedding
from manifests import write_manifest as _write
from other_process import SOURCES, OtherProcess
from PIL import Image
from waiting import LIMIT

from digits import Digit
from fiftyone_hiera.hiera.atomic import written_aside
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

_COUNT = 200


@pytest.fixture(scope="module")
def paths(digits: list[Digit]) -> list[str]:
    return [str(digit.path) for digit in digits[:_COUNT]]


@pytest.fixture
def manifest(paths: list[str], tmp_path: Path) -> Path:
    return _write(tmp_path / "manifest.parquet", paths)


def _check(
    out: Path, uris: Sequence[str], expected: dict[str, np.ndarray], tolerance: float = 1e-4
) -> None:
    """Check that the output has each row once, with the right vector."""
    rows = pq.read_table(out).to_pylist()
    assert sorted(row["id"] for row in rows) == [*range(len(uris))]
    for row in rows:
        assert row["uri"] == uris[row["id"]]
        assert row["error"] is None
        difference = np.abs(np.asarray(row["vector"]) - expected[row["uri"]]).max()
        assert difference < tolerance

    assert not [
        path for path in out.iterdir() if path.name.startswith((".", "_un", "_retried"))
    ]


def _kept(out: Path) -> int:
    """Count the rows that the next run finds."""
    chunks = (out / "_unfinished").glob("part-*/[!.]*.parquet")
    return sum(pq.read_metadata(path).num_rows for path in [*out.glob("part-*"), *chunks])


def test_embeds_and_does_nothing_again(
    manifest: Path,
    paths: list[str],
    expected: dict[str, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    report = _embed(manifest, out)
    assert (report.embedded, report.skipped, report.failed) == (_COUNT, 0, 0)
    _check(out, paths, expected)
    assert len([*out.glob("part-*.parquet")]) == 4
    schema = pq.read_schema(out / "part-00000.parquet")
    assert schema.names == ["id", "uri", "vector", "error"]
    assert schema.field("vector").type == pa.list_(pa.float32(), 192)
    assert schema.field("error").type == pa.string()

    written = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    again = _embed(manifest, out, progress=True)
    assert capsys.readouterr().out == "", "a bar of nothing"
    assert (again.embedded, again.skipped) == (0, _COUNT)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == written


def test_string_ids_in_a_folder(
    paths: list[str], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    folder = tmp_path / "manifest"
    _write(folder / "b.parquet", paths[70:90], [f"id {n}" for n in range(70, 90)])
    _write(folder / "a.parquet", paths[:70], [f"id {n}" for n in range(70)])
    (folder / "_SUCCESS").touch()
    assert _embed(folder, tmp_path / "out").embedded == 90
    table = pq.read_table(tmp_path / "out")
    assert table.schema.field("id").type == pa.string()
    found = {row["id"]: row for row in table.to_pylist()}
    assert len(table) == len(found) == 90
    for number, path in enumerate(paths[:90]):
        vector = found[f"id {number}"]["vector"]
        assert np.abs(np.asarray(vector) - expected[path]).max() < 1e-4

    # In the order of the names: the first part is of the first file
    first = pq.read_table(tmp_path / "out" / "part-00000.parquet")["id"].to_pylist()
    assert {*first} == {f"id {number}" for number in range(60)}


def test_empty_manifest(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array([], pa.int64()), "uri": pa.array([], pa.string())})
    pq.write_table(table, tmp_path / "manifest.parquet")
    report = _embed(tmp_path / "manifest.parquet", tmp_path / "out")
    assert (report.embedded, report.failed) == (0, 0)
    assert pq.read_table(tmp_path / "out").schema.names == ["id", "uri", "vector", "error"]


def test_bad_files(
    paths: list[str], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    absent = str(tmp_path / "absent.png")
    uris = [*paths[:10], str(text), *paths[10:20], absent, None]
    manifest = _write(tmp_path / "manifest.parquet", uris)
    report = _embed(manifest, tmp_path / "out", part_size=8)
    assert (report.embedded, report.failed) == (20, 3)
    assert len(report.examples) == 3
    assert "10: " in str(report)
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    assert len(rows) == 23
    for number, uri in enumerate(uris):
        row = rows[number]
        if uri in expected:
            assert row["error"] is None
            assert np.abs(np.asarray(row["vector"]) - expected[uri]).max() < 1e-4
        else:
            assert row["vector"] is None
            reason = f"Cannot read image {uri!r}: " if uri else "Its uri in the manifest is"
            assert row["error"].startswith(reason)

    # Those of earlier runs are counted too
    report = _embed(manifest, tmp_path / "out", part_size=8)
    assert (report.embedded, report.skipped, report.failed) == (0, 20, 3)

    # The failures are a manifest of their own
    Image.open(paths[0]).save(absent)
    table = pq.read_table(tmp_path / "out", filters=[("error", "!=", "")])
    pq.write_table(table, tmp_path / "failed.parquet")
    report = _embed(tmp_path / "failed.parquet", tmp_path / "again")
    assert (report.embedded, report.failed) == (1, 2)


def test_all_files_fail(tmp_path: Path) -> None:
    manifest = _write(tmp_path / "manifest.parquet", [str(tmp_path / "absent.png")] * 12)
    for rest in ("and 2 more", "12 failed earlier"):
        match = rf"(?s)All files failed.*{rest}, all in the column.*with retry_failed=True"
        with pytest.raises(RuntimeError, match=match) as raised:
            _embed(manifest, tmp_path / "out")

        assert raised.value.report.failed == 12  # type: ignore[attr-defined]

    assert len(pq.read_table(tmp_path / "out")) == 12


def test_float16(
    manifest: Path, paths: list[str], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _embed(manifest, out, vectors="float16")
    assert pq.read_schema(out / "part-00000.parquet").field("vector").type == pa.list_(
        pa.float16(), 192
    )
    size = max(np.abs(embedding).max() for embedding in expected.values())
    _check(out, paths, expected, float(size) * 2**-11 + 1e-4)
    with pytest.raises(ValueError, match="vectors: float16 there, float32 here"):
        _embed(manifest, out)


def test_too_large_for_float16(paths: list[str], tmp_path: Path) -> None:
    from fiftyone_hiera.embedding.jobs import Embedded, Job, Part
    from fiftyone_hiera.files.manifest import Manifest
    from fiftyone_hiera.files.output_folder import OutputFolder
    from fiftyone_hiera.files.output_record import OutputRecord
    from fiftyone_hiera.files.pending_output import PendingOutput
    from fiftyone_hiera.files.report import FilesReport

    manifest = Manifest(_write(tmp_path / "manifest.parquet", paths[:2]))
    folder, record = (
        OutputFolder(tmp_path / "out"),
        OutputRecord({}, "float16", 2, 10, 2, ""),
    )
    output = PendingOutput(manifest, folder, record, FilesReport())
    jobs = [*output.read_jobs()]
    assert jobs == [Job(str(n), paths[n], [Part(str(n), str(n))]) for n in range(2)]
    vectors = np.array([[1.0, 70_000.0], [1.0, 65_000.0]], np.float32)
    output.add(
        [Embedded(job, job.parts[0], v) for job, v in zip(jobs, vectors, strict=True)]
    )
    output.close()
    rows = pq.read_table(folder.path).to_pylist()
    assert rows[0]["vector"] is None
    assert "too large for float16" in rows[0]["error"]
    assert rows[1]["vector"] == [1.0, 64992.0]


def test_missing_results_are_noticed(paths: list[str], tmp_path: Path) -> None:
    from fiftyone_hiera.files.manifest import Manifest
    from fiftyone_hiera.files.output_folder import OutputFolder
    from fiftyone_hiera.files.output_record import OutputRecord
    from fiftyone_hiera.files.pending_output import PendingOutput
    from fiftyone_hiera.files.report import FilesReport

    manifest = Manifest(_write(tmp_path / "manifest.parquet", paths[:2]))
    folder, record = (
        OutputFolder(tmp_path / "out"),
        OutputRecord({}, "float32", 2, 10, 2, ""),
    )
    output = PendingOutput(manifest, folder, record, FilesReport())
    assert len([*output.read_jobs()]) == 2
    with pytest.raises(
        RuntimeError, match="2 files have no result, the first has the ID '0'"
    ):
        output.close()


def test_shards(
    manifest: Path, paths: list[str], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert _embed(manifest, out, shard=(1, 3)).embedded == 60
    assert [path.name for path in out.glob("part-*")] == ["part-00001.parquet"]
    assert _embed(manifest, out, shard=(0, 3)).embedded == 80
    assert _embed(manifest, out, shard=(0, 3)).skipped == 80
    assert _embed(manifest, out, shard=(2, 3)).embedded == 60
    _check(out, paths, expected)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pooling": "cls"}, "pooling: mean there, cls here"),
        ({"part_size": 50}, "part_size: 60 there, 50 here"),
        ({"fast_decoding": True}, "fast_decoding: False there, True here"),
    ],
)
def test_other_settings(
    manifest: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    out = tmp_path / "out"
    _embed(manifest, out, shard=(3, 4))
    with pytest.raises(ValueError, match=reason) as raised:
        _embed(manifest, out, **options)

    assert str(out) in str(raised.value)
    assert _kept(out) == 20


def test_other_manifest(manifest: Path, paths: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    _embed(manifest, out, shard=(3, 4))
    copy = tmp_path / "copies" / "manifest.parquet"
    copy.parent.mkdir()
    shutil.copyfile(manifest, copy)
    assert _embed(copy, out, shard=(3, 4)).skipped == 20
    _write(copy, paths[:-1])
    with pytest.raises(ValueError, match=r"rows: 200 there, 199 here\n  manifest: "):
        _embed(copy, out)

    # Of the same size: the statistics in the footer tell
    size = manifest.stat().st_size
    _write(copy, [*paths[:-1], paths[-1].replace(".png", ".jpg")])
    assert copy.stat().st_size == size
    with pytest.raises(ValueError, match=r"another manifest[^:]*:\n  manifest: "):
        _embed(copy, out)


def test_folder_of_others(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _write(out / "part-00000.parquet", [])
    with pytest.raises(ValueError, match=r"no _record\.json"):
        _embed(manifest, out)

    (out / "_record.json").write_text("{")
    with pytest.raises(ValueError, match=r"_record\.json' cannot be read"):
        _embed(manifest, out)


def test_invalid_manifests(paths: list[str], tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"

    def refuse(reason: str, manifest: Path = path) -> None:
        with pytest.raises(ValueError, match=reason):
            _embed(manifest, tmp_path / "out")

        assert not [*tmp_path.glob("out/part-*")]

    refuse("does not exist")
    path.write_text("no Parquet")
    refuse("cannot be read as Parquet")
    pq.write_table(pa.table({"id": [1], "path": ["x"]}), path)
    refuse(r"no column 'uri', only \['id', 'path'\]")
    _write(path, paths[:2], [0.5, 1.5])
    refuse("'id' of .* is of type double: cast it")
    pq.write_table(pa.table({"id": [1], "uri": [2]}), path)
    refuse("'uri' of .* is of type int64: cast it")
    _write(path, paths[:4], [0, 1, None, None])
    refuse("no ID in row 2")
    _write(path, paths[:4], [7, 5, 5, 7])
    refuse("the ID 5 in rows 1 and 2")

    folder = tmp_path / "folder"
    folder.mkdir()
    refuse("holds no .parquet files", folder)
    _write(folder / "a.parquet", paths[:3], ["a", "b", "c"])
    _write(folder / "b.parquet", paths[:3], ["d", "e", "a"])
    refuse("the ID 'a' in rows 0 and 5", folder)
    _write(folder / "b.parquet", paths[:3])
    refuse("'id' is string in .* and int64 in", folder)


def test_duplicates_by_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fiftyone_hiera.files import unique_ids
    from fiftyone_hiera.files.manifest import Manifest

    monkeypatch.setattr(unique_ids, "_BUCKET_ROWS", 1000)
    path = tmp_path / "manifest.parquet"
    for names in ([*range(20_000)], [f"{n:x}" for n in range(20_000)]):
        table = pa.table({"id": names, "uri": [""] * 20_000})
        pq.write_table(table, path, row_group_size=3000)
        unique_ids.check_unique_ids(Manifest(path), tmp_path)
        table = pa.table({"id": [*names[:-1], names[4321]], "uri": [""] * 20_000})
        pq.write_table(table, path, row_group_size=3000)
        with pytest.raises(ValueError, match="in rows 4321 and 19999"):
            unique_ids.check_unique_ids(Manifest(path), tmp_path)

    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"vectors": "float64"}, r"Invalid vectors: 'float64'. Valid are \['float32'"),
        ({"part_size": 0}, "Invalid part_size 0"),
        ({"batch_size": 0}, "Invalid batch_size 0"),
        ({"num_workers": -1}, "Invalid num_workers -1"),
        ({"shard": (2, 2)}, r"Invalid shard \(2, 2\)"),
        ({"retry_failed": 1}, "Invalid retry_failed 1: expected True or False"),
        ({"progress": "no"}, "Invalid progress 'no': expected True, False, None or a func"),
        ({"poling": "cls"}, "Unknown option 'poling'"),
    ],
)
def test_invalid_options(
    manifest: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        _embed(manifest, tmp_path / "out", **options)

    assert not (tmp_path / "out").exists()


def _start(manifest: Path, out: Path, count: int, ray: Any = None) -> OtherProcess:
    """Start a process that embeds, and stays at so many rows."""
    options = {"part_size": 60, "batch_size": 4, "num_workers": 1, "ray": ray}
    return start_embedding(manifest, out, count, 16, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "counts"), [(signal.SIGKILL, [24, 44, 72]), (signal.SIGINT, [72])]
)
def test_killed_and_run_again(
    manifest: Path,
    paths: list[str],
    expected: dict[str, np.ndarray],
    tmp_path: Path,
    number: int,
    counts: list[int],
) -> None:
    out = tmp_path / "out"
    kept = 0
    for count in counts:
        complete = sum(pq.read_metadata(part).num_rows for part in out.glob("part-*"))
        process = _start(manifest, out, count)
        process.wait_until_stored(count)
        process.signal(number)
        status, _ = process.wait()
        assert status != 0
        kept = _kept(out)

        # All but a chunk of 16, if it is killed, and what was in flight
        lost = 16 if number == signal.SIGKILL else 0
        assert complete + count - lost <= kept < _COUNT

    shown: list[tuple[int, int]] = []
    report = _embed(
        manifest, out, progress=lambda bar: shown.append((bar.iteration, bar.total))
    )
    assert (report.skipped, report.embedded) == (kept, _COUNT - kept)
    _check(out, paths, expected)
    done, total = shown[-1]
    assert done == total >= _COUNT - kept  # the rows of parts that were not complete


def test_killed_around_the_merge(
    manifest: Path, paths: list[str], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _embed(manifest, out)

    # Before it: all rows of the part are in chunks, and another one is half written
    part, chunks = out / "part-00001.parquet", out / "_unfinished" / "part-00001"
    chunks.mkdir(parents=True)
    (chunks / ".half.parquet-1").write_bytes(part.read_bytes()[:1000])
    shutil.copyfile(part, chunks / "whole.parquet")
    part.unlink()
    report = _embed(manifest, out)
    assert (report.embedded, report.skipped) == (0, _COUNT)
    _check(out, paths, expected)

    # After it: the chunks are still there
    chunks.mkdir(parents=True)
    shutil.copyfile(part, chunks / "whole.parquet")
    report = _embed(manifest, out)
    assert (report.embedded, report.skipped) == (0, _COUNT)
    _check(out, paths, expected)

    # Chunks of two processes that wrote the same rows
    chunks.mkdir(parents=True)
    shutil.copyfile(part, chunks / "one.parquet")
    pq.write_table(pq.read_table(part)[:20], chunks / "other.parquet")
    part.unlink()
    assert _embed(manifest, out).embedded == 0
    _check(out, paths, expected)


@pytest.mark.slow
def test_two_processes_without_shards(
    paths: list[str], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    manifest, out = _write(tmp_path / "manifest.parquet", paths[:90]), tmp_path / "out"
    processes = {count: _start(manifest, out, count) for count in (20, 40)}
    for count, process in processes.items():
        process.wait_until_stored(count)

    (tmp_path / "go").touch()
    assert sum(process.result()["embedded"] for process in processes.values()) >= 90
    _check(out, paths[:90], expected)


def test_folder_that_another_process_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, calls = os.mkdir, []

    def mkdir_too_late(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 1:  # it was there, and is removed before it is looked at
            raise FileExistsError(17, "File exists", str(args[0]))

        mkdir(*args, **kwargs)

    monkeypatch.setattr(os, "mkdir", mkdir_too_late)
    with written_aside(tmp_path / "file", tmp_path / "chunks") as aside:
        aside.write_text("all")

    assert (tmp_path / "file").read_text() == "all"
    with pytest.raises(FileExistsError), written_aside(tmp_path, tmp_path / "file"):
        pass


def test_file_of_another_process_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "record"
    with written_aside(path, replace=False) as aside:
        aside.write_text("ours")
        path.write_text("theirs")

    assert path.read_text() == "theirs"
    assert [*tmp_path.iterdir()] == [path]
    with written_aside(path) as aside:
        aside.write_text("ours")

    assert path.read_text() == "ours"


def test_disk_lost(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def lose(bar: Any) -> None:
        if bar.iteration and out.is_dir():
            shutil.rmtree(out)
            out.write_text("no folder")

    with pytest.raises(RuntimeError, match=r"Not a directory: .*part-00000'$") as raised:
        _embed(manifest, out, progress=lose)

    assert raised.value.report.embedded > 0  # type: ignore[attr-defined]


def test_record(manifest: Path, tmp_path: Path, model: HieraEmbeddingModel) -> None:
    _embed(manifest, tmp_path / "out", shard=(3, 4))
    record = json.loads((tmp_path / "out" / "_record.json").read_text())
    assert record["provenance"] == model.embedder.provenance
    assert {
        name: record[name] for name in ("vectors", "dimension", "part_size", "rows")
    } == {
        "vectors": "float32",
        "dimension": 192,
        "part_size": 60,
        "rows": _COUNT,
    }


@pytest.mark.slow
def test_without_pyarrow(manifest: Path, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["pyarrow"] = None
import fiftyone_hiera
fiftyone_hiera.embed_files({str(manifest)!r}, "out", model="hiera-nano-digits")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": SOURCES},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode != 0
    assert "pip install 'pyarrow" in done.stderr


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_driver_killed_on_ray(
    ray_cluster: Any, paths: list[str], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    uris = [*paths, "/absent.png"]
    manifest, out = _write(tmp_path / "manifest.parquet", uris), tmp_path / "out"
    process = _start(manifest, out, 1, ray_cluster.address)
    process.wait_until_stored(1)
    process.signal(signal.SIGKILL)
    process.wait()
    kept = _kept(out)
    assert kept < _COUNT
    process = _start(manifest, out, _COUNT + 2, ray_cluster.address)
    said = process.result()
    assert kept - 1 <= said["skipped"] <= kept  # the absent file may be among them
    assert (said["embedded"], said["failed"]) == (_COUNT - said["skipped"], 1)
    rows = {row["id"]: row for row in pq.read_table(out).to_pylist()}
    assert "/absent.png" in rows.pop(_COUNT)["error"]
    assert len(rows) == _COUNT
    for number, path in enumerate(paths):
        assert np.abs(np.asarray(rows[number]["vector"]) - expected[path]).max() < 1e-4

    # The parts are those of a run without Ray
    again = _embed(manifest, out)
    assert (again.embedded, again.skipped, again.failed) == (0, _COUNT, 1)


def test_no_cluster(manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=r"Cannot connect to Ray at '127.0.0.1:9'"):
        _embed(manifest, tmp_path / "out", ray="127.0.0.1:9")

    # Nothing is claimed, or left
    assert not (tmp_path / "out").exists()
    assert _embed(manifest, tmp_path / "out", pooling="cls", shard=(3, 4)).embedded == 20


def test_shard_without_files_is_warned_of(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _embed(manifest, tmp_path / "out", part_size=_COUNT, shard=(3, 8))
    assert "Shard 3 of 8 has nothing to do: the output has 1 files" in caplog.text
