"""Manifests and outputs of embed_files: their folders, their damage, and what URIs name."""

from __future__ import annotations

import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from manifests import embed_manifest, write_manifest
from other_process import OtherProcess

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.files.report import FilesError
from fiftyone_hiera.images.opening import to_local

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

_COUNT = 16
_KEPT = "What was written is kept; the same call resumes there"


@pytest.fixture(scope="module")
def paths(digits: list[Digit]) -> list[str]:
    return [str(digit.path) for digit in digits[:_COUNT]]


@pytest.fixture
def folder(paths: list[str], tmp_path: Path) -> Path:
    """A folder with a manifest of two files."""
    write_manifest(tmp_path / "all" / "a.parquet", paths[:8], range(8))
    write_manifest(tmp_path / "all" / "sub" / "b.parquet", paths[8:], range(8, _COUNT))
    return tmp_path / "all"


def _embed(manifest: Path, out: Path, **options: Any) -> tuple[int, int]:
    report = embed_manifest(manifest, out, **{"part_size": 8, **options})
    return report.embedded, report.skipped


@pytest.mark.parametrize("name", ["sub/out", "link/out", ".out/out"])
def test_output_in_the_folder_of_the_manifest(folder: Path, name: str) -> None:
    (folder / "real").mkdir()
    (folder / "link").symlink_to(folder / "real")
    out, other = folder / name, folder / "other"
    assert _embed(folder, out, shard=(0, 2)) == (8, 0)
    assert _embed(folder, out, shard=(1, 2)) == (8, 0)
    assert _embed(folder, other, pooling="cls") == (_COUNT, 0)
    assert _embed(folder, out) == (0, _COUNT)

    # By another name of the folder
    link = folder.parent / "another name"
    link.symlink_to(folder)
    assert _embed(link, link / name) == (0, _COUNT)

    # An output that is named is a manifest
    assert _embed(out, folder.parent / "again") == (_COUNT, 0)


@pytest.mark.slow
def test_shards_at_once_in_the_folder_of_the_manifest(
    folder: Path, paths: list[str], tmp_path: Path
) -> None:
    write_manifest(folder / "c.parquet", paths * 20, range(_COUNT, 21 * _COUNT))
    out = folder / "out"
    code = f"""
        def progress(bar):
            say(stored=bar.iteration)
            if bar.iteration == 4:
                wait_for({str(tmp_path / "go")!r})

        report = fiftyone_hiera.embed_files(
            {str(folder)!r}, {str(out)!r}, model="hiera-nano-digits", part_size=8,
            batch_size=4, num_workers=0, shard=(%d, 2), progress=progress, **exact
        )
        say(embedded=report.embedded)
    """
    processes = [OtherProcess(code % number, tmp_path, bare=True) for number in range(2)]
    for process in processes:
        process.wait_until_stored(4)

    (tmp_path / "go").touch()
    embedded = [process.result()["embedded"] for process in processes]
    assert sum(embedded) == 21 * _COUNT
    assert sorted(pq.read_table(out)["id"].to_pylist()) == [*range(21 * _COUNT)]


def test_folders_that_are_refused(folder: Path, tmp_path: Path, dataset: Any) -> None:
    link, outputs = tmp_path / "link", tmp_path / "outputs"
    link.symlink_to(folder)
    text = tmp_path / "text"
    text.write_text("no folder")
    _embed(folder, outputs / "one")
    before = sorted(tmp_path.rglob("*"))
    for manifest, out, reason in (
        (folder, folder, r"all' is a folder with a file of the manifest, '.*a\.parquet'"),
        (folder, link, r"link' is a folder with .*: use another folder, such as '.*link/"),
        (link, folder / "sub", r"sub' is a folder with a file of .*sub/b\.parquet'"),
        (outputs / "one", outputs / "one", r"one' is a folder with a file of the manif"),
        (outputs, tmp_path / "out", r"no \.parquet files but those of .*outputs/one'\]"),
        (folder, text, r"text' is a file: pass the path of a folder"),
        (folder / "*.parquet", text, r"\*.parquet' does not exist: pass the path of a Par"),
    ):
        with pytest.raises(ValueError, match=reason):
            _embed(manifest, out)

    with pytest.raises(ValueError, match=r"text' holds no output of embed_files"):
        fiftyone_hiera.attach_embeddings(dataset, "hiera", text)

    with pytest.raises(RuntimeError, match=r"Not a directory: '.*text/out") as raised:
        _embed(folder, text / "out")

    assert _KEPT not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def _damage(path: Path, column: int) -> bytes:
    """Damage the pages of a column, not the footer; return the intact content."""
    intact = path.read_bytes()
    chunk = pq.read_metadata(path).row_group(0).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    damaged = bytearray(intact)
    damaged[start : start + chunk.total_compressed_size] = bytes(
        chunk.total_compressed_size
    )
    path.write_bytes(damaged)
    return intact


@pytest.mark.parametrize("column", [0, 1])
def test_damaged_pages_of_a_manifest(folder: Path, tmp_path: Path, column: int) -> None:
    out = tmp_path / "out"
    member = folder / "sub" / "b.parquet"
    intact = _damage(member, column)
    with pytest.raises(FilesError) as raised:
        _embed(folder, out, num_workers=0, batch_size=1)

    again = pickle.loads(pickle.dumps(raised.value))  # as between processes
    assert (again.report, again.option) == (raised.value.report, None)
    message = str(again)
    assert f"{str(member)!r} cannot be read" in message
    assert "Replace this file of the manifest by an intact copy" in message

    # IDs are read before anything is written
    assert (_KEPT in message) == out.exists() == (column == 1)
    assert raised.value.report.embedded == 8 * column
    member.write_bytes(intact)
    assert _embed(folder, out) == (_COUNT - 8 * column, 8 * column)


def test_damaged_output(folder: Path, tmp_path: Path, dataset: Any) -> None:
    out = tmp_path / "out"
    _embed(folder, out)
    part = out / "part-00001.parquet"
    _damage(part, 1)
    with pytest.raises(OSError, match=r"(?s)part-00001\.parquet' cannot be read: .*\nD"):
        fiftyone_hiera.attach_embeddings(dataset, "hiera", out, by="filepath")

    part.write_bytes(part.read_bytes()[:-10])  # without its footer
    with pytest.raises(FilesError, match=r"part-00001\.parquet' cannot be read") as raised:
        _embed(folder, out)

    assert _KEPT in str(raised.value)
    part.unlink()
    assert _embed(folder, out) == (8, 8)


def test_read_only_disk(
    folder: Path, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(8)
    for name, shard in (("complete", None), ("begun", (0, 2))):
        _embed(folder, disk / name, shard=shard)

    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    before = {path: path.stat().st_mtime_ns for path in disk.rglob("*")}
    for options in ({}, {"retry_failed": True}):
        assert _embed(folder, disk / "complete", **options) == (0, _COUNT)
        assert _embed(folder, disk / "begun", shard=(0, 2), **options) == (0, 8)

    for name in ("begun", "new"):
        with pytest.raises(FilesError, match="Read-only file system") as raised:
            _embed(folder, disk / name)

        assert _KEPT not in str(raised.value)

    assert {path: path.stat().st_mtime_ns for path in disk.rglob("*")} == before


def test_uris_of_local_files(
    paths: list[str],
    expected: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dataset: Any,
) -> None:
    home = tmp_path / "a home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    vectors = {}
    for name, path in zip(("a b.png", "c%20d.png"), paths, strict=False):
        shutil.copy(path, home / name)
        vectors[str(home / name)] = expected[path]

    escaped = home.as_uri()
    assert "%20" in escaped
    files = {
        "~/a b.png": "a b.png",
        "file://~/a b.png": "a b.png",
        f"file://{home}/a b.png": "a b.png",
        f"{escaped}/a%20b.png": "a b.png",
        f"{escaped}/a%20b.png".replace("file://", "FILE://localhost"): "a b.png",
        f"file://{home}/c%20d.png": "c%20d.png",
        f"{escaped}/c%2520d.png": "c%20d.png",
    }
    for uri, name in files.items():
        assert to_local(uri) == str(home / name)

    for other in ("s3://bucket/a%20b.png", "file://elsewhere/a%20b.png", "a~b", "x%20y"):
        assert to_local(other) == other

    manifest = write_manifest(home / "manifest.parquet", [*files])
    _embed(Path("~/manifest.parquet"), Path("~/out"))
    out = f"{escaped}/out"
    again = _embed(manifest.as_uri(), out)  # type: ignore[arg-type]
    assert again == (0, len(files))
    for row in pq.read_table(home / "out").to_pylist():
        vector = vectors[str(home / files[row["uri"]])]
        assert np.abs(np.asarray(row["vector"]) - vector).max() < 1e-4

    # The dataset has the paths that the URIs name
    dataset.add_samples([fo.Sample(filepath=path) for path in vectors])
    report = fiftyone_hiera.attach_embeddings(dataset, "hiera", out, by="filepath")
    assert (report.attached, report.missing) == (2, 0)
    for path, vector in zip(*dataset.values(["filepath", "hiera"]), strict=True):
        assert np.abs(vector - vectors[path]).max() < 1e-4


@pytest.mark.parametrize("name", ["manifest", "out"])
def test_remote_folders_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    given: Any = {"manifest": folder, "out": tmp_path / "out", name: "s3://bucket/x"}
    with pytest.raises(ValueError, match=f"Invalid {name} 's3://bucket/x': expected a pa"):
        _embed(**given)
