"""Rows of embed_files with an error, which are tried again."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifests import embed_manifest, start_embedding, write_manifest
from other_process import OtherProcess

from digits import Digit
from fiftyone_hiera.files.output_file import OutputFile
from fiftyone_hiera.files.report import FilesError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

_COUNT = 40
_ABSENT = (1, 2, 17, 33)


@dataclass(frozen=True)
class _Run:
    """Runs over a manifest of digits, some of which do not exist at first."""

    paths: list[str]
    uris: list[str]
    expected: dict[str, np.ndarray]
    manifest: Path
    out: Path

    def embed(self, **options: Any) -> tuple[int, int, int]:
        options = {"part_size": 10, "batch_size": 4, **options}
        report = embed_manifest(self.manifest, self.out, **options)
        return report.embedded, report.skipped, report.failed

    def retry(self, **options: Any) -> tuple[int, int, int]:
        return self.embed(retry_failed=True, **options)

    def start_retry(self, count: int = 999, shard: Any = None) -> OtherProcess:
        """Start a process that tries again, and stays after so many rows."""
        options = {"part_size": 10, "batch_size": 2, "num_workers": 0, "shard": shard}
        return start_embedding(
            self.manifest, self.out, count, 4, retry_failed=True, **options
        )

    def repair(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            shutil.copy(self.paths[number], self.uris[number])

    def read(self) -> dict[str, Any]:
        """Read the output files by their names."""
        return {path.name: pq.read_table(path) for path in sorted(self.out.glob("part-*"))}

    def check(self, before: dict[str, Any], failed: set[int]) -> None:
        """Check that rows have kept their places and vectors, and that new ones are right.

        Args:
            before: what :meth:`read` returned before
            failed: the IDs of the rows that have an error now
        """
        after = self.read()
        assert after.keys() == before.keys()
        for name, old in before.items():
            new = after[name]
            assert new.schema.equals(old.schema, check_metadata=True)
            assert pq.read_schema(self.out / name).equals(old.schema)
            for column in ("id", "uri"):
                assert new[column] == old[column]

            for was, row in zip(old.to_pylist(), new.to_pylist(), strict=True):
                assert (row["error"] is not None) == (row["id"] in failed)
                if was["error"] is None:
                    assert row == was
                elif row["id"] not in failed:
                    vector = self.expected[self.paths[row["id"]]]
                    assert np.abs(np.asarray(row["vector"]) - vector).max() < 1e-4

        assert not (self.out / "_retried").exists()
        assert not (self.out / "_unfinished").exists()


def _make_run(
    digits: list[Digit], expected: dict[str, Any], folder: Path, absent: Iterable[int]
) -> _Run:
    paths = [str(digit.path) for digit in digits[:_COUNT]]
    uris = [
        str(folder / f"{number}.png") if number in absent else path
        for number, path in enumerate(paths)
    ]
    manifest = write_manifest(folder / "manifest.parquet", uris)
    return _Run(paths, uris, expected, manifest, folder / "out")


@pytest.fixture
def run(digits: list[Digit], expected: dict[str, Any], tmp_path: Path) -> _Run:
    return _make_run(digits, expected, tmp_path, _ABSENT)


def test_failed_rows_are_replaced(run: _Run) -> None:
    assert run.retry() == (36, 0, 4)
    before = run.read()
    times = {path.name: path.stat().st_mtime_ns for path in run.out.iterdir()}
    run.repair(_ABSENT[:3])
    Path(run.uris[33]).write_text("no image")
    assert run.embed() == (0, 36, 4)
    assert {path.name: path.stat().st_mtime_ns for path in run.out.iterdir()} == times

    # By shards: of 2, the second one has the files 1 and 3
    assert run.retry(shard=(1, 2)) == (1, 18, 1)
    assert run.retry() == (2, 37, 1)
    run.check(before, {33})
    name = "part-00002.parquet"
    assert (run.out / name).stat().st_mtime_ns == times[name]

    # The reason is that of the last time
    (error,) = pq.read_table(run.out, filters=[("id", "=", 33)])["error"].to_pylist()
    assert "it is text, beginning with 'no'" in error

    run.repair([33])
    assert run.retry() == (1, 39, 0)
    run.check(before, set())
    assert run.retry() == (0, 40, 0)


def test_failed_rows_of_a_file_that_is_not_complete(run: _Run) -> None:
    run.embed()
    before = run.read()

    # As release 0.2.0 left it: the first rows are in two chunks
    name = "part-00000.parquet"
    chunks = run.out / "_unfinished" / "part-00000"
    chunks.mkdir(parents=True)
    for start, chunk in ((4, "2a"), (0, "f0")):
        pq.write_table(before[name].slice(start, 4), chunks / f"{chunk}.parquet")

    # Another process could not read a file of the first chunk later
    ids = before[name]["id"].to_pylist()
    failed = before[name].slice(ids.index(_ABSENT[0]), 1)
    failed = failed.set_column(0, failed.schema.field("id"), pa.array([ids[5]]))
    pq.write_table(failed, chunks / "ff.parquet")

    (run.out / name).unlink()
    run.repair(_ABSENT[:1])
    assert run.retry(shard=(0, 4)) == (3, 6, 1)
    after = run.read()[name]
    assert after["id"].to_pylist() == [*ids[4:8], *ids[:4], *ids[8:]]
    after = after.take([*map(after["id"].to_pylist().index, ids)])
    pq.write_table(after, run.out / name)
    run.check(before, {*_ABSENT[1:]})


def test_cut_before_a_file_is_replaced(run: _Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.embed()
    before = run.read()
    run.repair(_ABSENT)

    def fail(_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(OutputFile, "_merge", fail)
        with pytest.raises(FilesError, match="No space left on device\nWhat was written"):
            run.retry(num_workers=0)

    # Other runs leave it as it is
    assert run.embed() == (0, 36, 4)
    assert run.read() == before
    assert run.retry(shard=(1, 4)) == (1, 9, 0)
    assert run.retry(shard=(0, 4)) == (0, 10, 0)
    assert run.retry() == (1, 39, 0)
    run.check(before, set())


@pytest.mark.slow
def test_killed_while_it_tries_again(
    digits: list[Digit], expected: dict[str, Any], tmp_path: Path
) -> None:
    run = _make_run(digits, expected, tmp_path, range(_COUNT))
    with pytest.raises(FilesError, match="with retry_failed=True"):
        run.embed()

    before = run.read()
    run.repair(range(_COUNT))
    for count in (8, 26):
        process = run.start_retry(count)
        process.wait_until_stored(count)
        process.signal(signal.SIGKILL)
        process.wait()

        # Each file is the old one or the new one
        files = run.read()
        assert files.keys() == before.keys()
        assert {file["error"].null_count for file in files.values()} <= {0, 10}

    chunks = [pq.read_table(path) for path in run.out.glob("_retried/*/[!.]*.parquet")]
    kept = sum(table["error"].null_count for table in (*files.values(), *chunks))
    assert 20 <= kept < _COUNT

    # Two shards at once
    processes = [run.start_retry(shard=(number, 2)) for number in range(2)]
    said = [process.result() for process in processes]
    assert sum(result["embedded"] for result in said) == _COUNT - kept
    assert sum(result["skipped"] for result in said) == kept
    run.check(before, set())


def test_file_with_other_rows_is_named(run: _Run) -> None:
    run.embed()
    for path in run.out.glob("part-*"):  # as damage that is read without an error
        table = pq.read_table(path)
        ids = pa.array([id + 1000 for id in table["id"].to_pylist()], table["id"].type)
        pq.write_table(table.set_column(0, "id", ids), path)

    with pytest.raises(FilesError, match=r"is damaged: it has the ID '10.*Delete it"):
        run.retry()

    assert not (run.out / "_retried").exists()
