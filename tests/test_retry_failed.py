"""Rows of embed_files with an error, which are tried again."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifests import embed_manifest, write_manifest
from other_process import OtherProcess

from digits import Digit
from fiftyone_hiera.files.output_file import OutputFile
from fiftyone_hiera.files.report import FilesError

pa = pytest.importorskip("pyarrow")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

_COUNT = 40
_ABSENT = (1, 2, 17, 33)


@pytest.fixture(scope="module")
def paths(digits: list[Digit]) -> list[str]:
    return [str(digit.path) for digit in digits[:_COUNT]]


@pytest.fixture
def uris(paths: list[str], tmp_path: Path) -> list[str]:
    """Paths, some of which do not exist."""
    return [
        str(tmp_path / f"{number}.png") if number in _ABSENT else path
        for number, path in enumerate(paths)
    ]


@pytest.fixture
def manifest(uris: list[str], tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "manifest.parquet", uris)


def _repair(uris: Sequence[str], paths: Sequence[str], numbers: Sequence[int]) -> None:
    for number in numbers:
        shutil.copy(paths[number], uris[number])


def _embed(manifest: Path, out: Path, **options: Any) -> tuple[int, int, int]:
    report = embed_manifest(manifest, out, **{"part_size": 10, "batch_size": 4, **options})
    return report.embedded, report.skipped, report.failed


def _read(out: Path) -> dict[str, Any]:
    """Read the parts by their names."""
    return {path.name: pq.read_table(path) for path in sorted(out.glob("part-*"))}


def _check(
    out: Path, before: dict[str, Any], paths: Sequence[str], expected: Any, failed: set[int]
) -> None:
    """Check that rows have kept their places and vectors, and that new ones are right."""
    after = _read(out)
    assert after.keys() == before.keys()
    for name, old in before.items():
        new = after[name]
        assert new.schema.equals(old.schema, check_metadata=True)
        assert pq.read_schema(out / name).equals(old.schema)
        for column in ("id", "uri"):
            assert new[column] == old[column]

        for was, row in zip(old.to_pylist(), new.to_pylist(), strict=True):
            assert (row["error"] is not None) == (row["id"] in failed)
            if was["error"] is None:
                assert row == was
            elif row["id"] not in failed:
                vector = expected[paths[row["id"]]]
                assert np.abs(np.asarray(row["vector"]) - vector).max() < 1e-4

    assert not (out / "_retried").exists()
    assert not (out / "_unfinished").exists()


def test_failed_rows_are_replaced(
    manifest: Path,
    uris: list[str],
    paths: list[str],
    expected: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    assert _embed(manifest, out, retry_failed=True) == (36, 0, 4)
    before = _read(out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    _repair(uris, paths, _ABSENT[:3])
    Path(uris[33]).write_text("no image")
    assert _embed(manifest, out) == (0, 36, 4)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times

    # By shards: of 2, the second one has parts 1 and 3
    assert _embed(manifest, out, retry_failed=True, shard=(1, 2)) == (1, 18, 1)
    assert _embed(manifest, out, retry_failed=True) == (2, 37, 1)
    _check(out, before, paths, expected, {33})
    assert (out / "part-00002.parquet").stat().st_mtime_ns == times[
        out / "part-00002.parquet"
    ]

    # The reason is that of the last time
    (error,) = pq.read_table(out, filters=[("id", "=", 33)])["error"].to_pylist()
    assert "it is text, beginning with 'no'" in error

    shutil.copy(paths[33], uris[33])
    assert _embed(manifest, out, retry_failed=True) == (1, 39, 0)
    _check(out, before, paths, expected, set())
    assert _embed(manifest, out, retry_failed=True) == (0, 40, 0)


def test_failed_rows_of_a_part_that_is_not_complete(
    manifest: Path,
    uris: list[str],
    paths: list[str],
    expected: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    _embed(manifest, out)
    before = _read(out)

    # As release 0.2.0 left it: the part's first rows are in two chunks
    name = "part-00000.parquet"
    chunks = out / "_unfinished" / "part-00000"
    chunks.mkdir(parents=True)
    for start, chunk in ((4, "2a"), (0, "f0")):
        pq.write_table(before[name].slice(start, 4), chunks / f"{chunk}.parquet")

    # Another process could not read a file of the first chunk later
    ids = before[name]["id"].to_pylist()
    failed = before[name].slice(ids.index(_ABSENT[0]), 1)
    failed = failed.set_column(0, failed.schema.field("id"), pa.array([ids[5]]))
    pq.write_table(failed, chunks / "ff.parquet")

    (out / name).unlink()
    _repair(uris, paths, _ABSENT[:1])
    assert _embed(manifest, out, retry_failed=True, shard=(0, 4)) == (3, 6, 1)
    after = _read(out)[name]
    assert after["id"].to_pylist() == [*ids[4:8], *ids[:4], *ids[8:]]
    after = after.take([*map(after["id"].to_pylist().index, ids)])
    pq.write_table(after, out / name)
    _check(out, before, paths, expected, {*_ABSENT[1:]})


def test_cut_before_a_part_is_replaced(
    manifest: Path,
    uris: list[str],
    paths: list[str],
    expected: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    _embed(manifest, out)
    before = _read(out)
    _repair(uris, paths, _ABSENT)

    def fail(_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(OutputFile, "_merge", fail)
        with pytest.raises(FilesError, match="No space left on device\nWhat was written"):
            _embed(manifest, out, retry_failed=True, num_workers=0)

    # Other runs leave it as it is
    assert _embed(manifest, out) == (0, 36, 4)
    assert _read(out) == before
    assert _embed(manifest, out, retry_failed=True, shard=(1, 4)) == (1, 9, 0)
    done = _embed(manifest, out, retry_failed=True, shard=(0, 4))
    assert done == (0, 10, 0)
    assert _embed(manifest, out, retry_failed=True) == (1, 39, 0)
    _check(out, before, paths, expected, set())


_RETRY = """
    from fiftyone_hiera.files import output_file

    output_file._CHUNK_ROWS = 4
    stayed = []

    def stay(bar):
        say(stored=bar.iteration)
        if bar.iteration >= {count} and not stayed:
            stayed.append(True)
            wait_for({go!r})

    report = fiftyone_hiera.embed_files(
        {manifest!r}, {out!r}, model="hiera-nano-digits", part_size=10, batch_size=2,
        num_workers=0, progress=stay, shard={shard!r}, retry_failed=True, **exact
    )
    say(embedded=report.embedded, skipped=report.skipped, failed=report.failed)
"""


def _start(manifest: Path, out: Path, count: int = 999, shard: Any = None) -> OtherProcess:
    """Start a process that tries again, and stays after so many rows."""
    go = out.parent / "go"
    code = _RETRY.format(
        manifest=str(manifest), out=str(out), count=count, go=str(go), shard=shard
    )
    return OtherProcess(code, out.parent, bare=True)


@pytest.mark.slow
def test_killed_while_it_tries_again(
    paths: list[str], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    uris = [str(tmp_path / f"{number}.png") for number in range(_COUNT)]
    manifest = write_manifest(tmp_path / "manifest.parquet", uris)
    with pytest.raises(FilesError, match="with retry_failed=True"):
        _embed(manifest, out)

    before = _read(out)
    _repair(uris, paths, range(_COUNT))
    for count in (8, 26):
        process = _start(manifest, out, count)
        process.wait_until_stored(count)
        process.signal(signal.SIGKILL)
        process.wait()

        # Each part is the old one or the new one
        parts = _read(out)
        assert parts.keys() == before.keys()
        assert {part["error"].null_count for part in parts.values()} <= {0, 10}

    chunks = [pq.read_table(path) for path in out.glob("_retried/*/[!.]*.parquet")]
    kept = sum(table["error"].null_count for table in (*parts.values(), *chunks))
    assert 20 <= kept < _COUNT

    # Two shards at once
    processes = [_start(manifest, out, shard=(number, 2)) for number in range(2)]
    said = [process.result() for process in processes]
    assert sum(result["embedded"] for result in said) == _COUNT - kept
    assert sum(result["skipped"] for result in said) == kept
    _check(out, before, paths, expected, set())


def test_part_with_other_rows_is_named(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _embed(manifest, out)
    for path in out.glob("part-*"):  # as damage that is read without an error
        table = pq.read_table(path)
        ids = pa.array([id + 1000 for id in table["id"].to_pylist()], table["id"].type)
        pq.write_table(table.set_column(0, "id", ids), path)

    with pytest.raises(FilesError, match=r"is damaged: it has the ID '10.*Delete it"):
        _embed(manifest, out, retry_failed=True)

    assert not (out / "_retried").exists()
