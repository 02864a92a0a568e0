"""The command line, in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.__main__ import main
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

_MODEL = ["--model", "hiera-nano-digits"]
_EXACT = [*_MODEL, "--option", "dtype=float32", "--option", "engine=torch"]
_COUNT = 20


def _start(*arguments: object) -> subprocess.Popen[str]:
    sources = str(Path(fiftyone_hiera.__file__).absolute().parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "fiftyone_hiera", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": sources, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(*arguments: object) -> tuple[int, str, str]:
    """Run a command; return its exit status, and what it prints and logs."""
    process = _start(*arguments)
    try:
        printed, logged = process.communicate(timeout=180)
    finally:
        process.kill()

    assert "Traceback" not in logged
    return process.returncode, printed, logged


def _call(
    capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[object, str, str]:
    """Run a command in this process."""
    try:
        status: object = main([*map(str, arguments)])
    except SystemExit as end:
        status = end.code

    return status, *capsys.readouterr()


@pytest.fixture
def samples(digits: list[Digit]) -> Iterator[Any]:
    dataset = fo.Dataset(persistent=True)
    dataset.add_samples([fo.Sample(filepath=str(digit.path)) for digit in digits[:_COUNT]])
    yield dataset
    dataset.delete()


@pytest.fixture
def manifest(digits: list[Digit], tmp_path: Path) -> Path:
    path = tmp_path / "manifest.parquet"
    uris = [str(digit.path) for digit in digits[:_COUNT]]
    pq.write_table(pa.table({"id": [*range(_COUNT)], "uri": uris}), path)
    return path


@pytest.mark.slow
def test_embed(samples: Any, model: HieraEmbeddingModel) -> None:
    arguments = ["embed", samples.name, "hiera", *_EXACT, "--batch-size", 8]
    status, printed, logged = _run(*arguments, "--shard", "0/2")
    assert status == 0, logged
    samples.reload()
    some = len(samples.exists("hiera"))
    assert 0 < some < _COUNT
    assert f"embedded  {some:>9}" in printed

    status, printed, logged = _run(*arguments)
    assert status == 0, logged
    assert f"skipped   {some:>9}" in printed
    samples.reload()
    model.embed_samples(samples, "expected")
    for found, wanted in zip(*samples.values(["hiera", "expected"]), strict=True):
        assert np.abs(found - wanted).max() < 1e-4

    # Other settings: refused, as an argument that is not valid
    status, printed, logged = _run(*arguments, "--option", "pooling=cls")
    assert (status, printed) == (2, "")
    assert "differ in pooling" in logged
    assert "overwrite=True is --overwrite" in logged


@pytest.mark.slow
def test_embed_with_all_options(samples: Any) -> None:
    samples.add_sample(fo.Sample(filepath="/absent.png"))
    for sample in samples.iter_samples(autosave=True):
        box = fo.Detection(label="x", bounding_box=[0.2, 0.2, 0.6, 0.6])
        sample["boxes"] = fo.Detections(detections=[box, box.copy()])

    arguments = ["embed", samples.name, "hiera", *_EXACT, "--patches-field", "boxes"]
    status, printed, logged = _run(*arguments, "--failure-tag", "bad")
    assert status == 0, logged
    assert f"embedded  {2 * _COUNT:>9}" in printed
    assert "failed            2" in printed
    samples.reload()
    assert samples.match_tags("bad").values("filepath") == ["/absent.png"]

    arguments += ["--overwrite", "--option", "normalize=true", "--verify", 0]
    status, printed, logged = _run(*arguments)
    assert status == 0, logged
    assert f"embedded  {2 * _COUNT:>9}" in printed
    samples.reload()
    embedding = samples.first()["boxes"].detections[1]["hiera"]
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)

    status, printed, logged = _run(*arguments, "--no-skip-failures")
    assert (status, printed) == (1, "")
    assert "/absent.png" in logged


@pytest.mark.slow
def test_embed_into_an_index(
    samples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lancedb = pytest.importorskip("lancedb")
    monkeypatch.setenv("FIFTYONE_BRAIN_SIMILARITY_LANCEDB_URI", str(tmp_path))
    arguments = ["embed", samples.name, *_EXACT, "--brain-key", "sim"]
    status, _, logged = _run(*arguments, "--backend", "lancedb", "--backend-option", "k=3")
    assert status == 2
    assert "Unknown settings ['k'] of backend 'lancedb'" in logged

    arguments += ["--backend", "lancedb", "--backend-option", "table_name=mine"]
    status, printed, logged = _run(*arguments)
    assert status == 0, logged
    assert f"in index  {_COUNT:>9}" in printed
    assert lancedb.connect(tmp_path).open_table("mine").count_rows() == _COUNT
    status, printed, logged = _run(*arguments)
    assert status == 0, logged
    assert f"skipped   {_COUNT:>9}" in printed


@pytest.mark.slow
def test_embed_all_fail(dataset: Any) -> None:
    dataset.persistent = True
    dataset.add_samples([fo.Sample(filepath=f"/absent-{n}.png") for n in range(3)])
    status, _, logged = _run("embed", dataset.name, "hiera", *_EXACT)
    assert status == 1
    assert "All inputs failed (3 of 3)" in logged


@pytest.mark.slow
def test_embed_files(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["embed-files", manifest, out, *_EXACT, "--part-size", 8]
    arguments += ["--vectors", "float16", "--num-workers", 1, "--batch-size", 4]
    status, printed, logged = _run(*arguments, "--shard", "1/2")
    assert status == 0, logged
    assert f"embedded  {8:>11}" in printed
    assert "files/s]" in printed  # the progress bar
    status, printed, logged = _run(*arguments)
    assert status == 0, logged
    assert f"skipped   {8:>11}" in printed
    table = pq.read_table(out)
    assert sorted(table["id"].to_pylist()) == [*range(_COUNT)]
    assert table.schema.field("vector").type == pa.list_(pa.float16(), 192)


@pytest.mark.slow
def test_embed_files_all_fail(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "uri": ["/absent", "/gone"]}), manifest)
    status, _, logged = _run("embed-files", manifest, tmp_path / "out", *_EXACT)
    assert status == 1
    assert "All files failed" in logged
    assert "- a: " in logged


def test_interrupted(digits: list[Digit], tmp_path: Path) -> None:
    manifest, out = tmp_path / "manifest.parquet", tmp_path / "out"
    uris = [str(digit.path) for digit in digits]
    pq.write_table(pa.table({"id": [*range(len(uris))], "uri": uris}), manifest)
    arguments = ["embed-files", manifest, out, *_EXACT, "--part-size", 50]
    process = _start(*arguments, "--batch-size", 1)
    try:
        for _ in range(600):
            if (out / "part-00001.parquet").exists():
                break

            time.sleep(0.05)

        process.send_signal(signal.SIGINT)
        _, logged = process.communicate(timeout=30)
    finally:
        process.kill()

    assert process.returncode == 130
    assert "Interrupted: the same command resumes there" in logged
    assert "Traceback" not in logged
    assert len([*out.glob("part-*")]) < 36


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "required: COMMAND"),
        (["embed", "dataset"], "required: --model"),
        (["embed-files", "in", "out"], "required: --model"),
        (["embed-files", "in", "out", *_MODEL, "--shard", "1"], "expected K/N, found '1'"),
        (["embed-files", "in", "out", *_MODEL, "--shard", "2/2"], "Invalid shard (2, 2)"),
        (["embed-files", "in", "out", *_MODEL, "--option", "x"], "expected NAME=VALUE"),
        (["embed-files", "in", "out", *_MODEL], "'in' does not exist"),
        (["embed", "no such dataset", "field", *_MODEL], "not found"),
    ],
)
def test_invalid_arguments(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed, logged = _call(capsys, *arguments)
    assert (status, printed) == (2, "")
    assert reason in logged


def test_invalid_model(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    status, _, logged = _call(capsys, "embed-files", manifest, out, "--model", "hiera-nope")
    assert status == 2
    assert "Unknown model 'hiera-nope'" in logged
    status, _, logged = _run(
        "embed-files", manifest, out, *_MODEL, "--option", "poling=cls"
    )
    assert status == 2
    assert "Unknown option 'poling'" in logged
    assert not out.exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, _ = _call(capsys, "--help")
    assert status == 0
    assert "embed-files" in printed
    for command in ("embed", "embed-files"):
        status, printed, _ = _call(capsys, command, "--help")
        assert status == 0
        assert "--ray" in printed


@pytest.mark.slow
def test_on_ray(samples: Any, manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    status, printed, logged = _run(
        "embed", samples.name, "hiera", *_EXACT, "--ray", "local"
    )
    assert status == 0, logged
    assert f"embedded  {_COUNT:>9}" in printed

    out = tmp_path / "out"
    status, printed, logged = _run("embed-files", manifest, out, *_EXACT, "--ray", "local")
    assert status == 0, logged
    assert f"embedded  {_COUNT:>11}" in printed
    samples.reload()
    vectors = pq.read_table(out).sort_by("id")["vector"].to_pylist()
    np.testing.assert_allclose(np.stack(samples.values("hiera")), vectors, atol=1e-4)

    status, _, logged = _run("embed-files", manifest, out, *_EXACT, "--ray", "127.0.0.1:9")
    assert status == 0, logged  # nothing is left to do
    status, _, logged = _run(
        "embed-files", manifest, tmp_path / "other", *_EXACT, "--ray", "127.0.0.1:9"
    )
    assert status == 2
    assert "Cannot connect to Ray" in logged
