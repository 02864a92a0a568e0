"""The command line, in this process and in processes of its own.

Here, ``--ray`` only reaches the runs; these are those of test_ray.py and test_files.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from index_servers import configured
from other_process import SOURCES
from waiting import LIMIT, wait_until

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.__main__ import main
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

_MODEL = ["--model", "hiera-nano-digits"]
_EXACT = [*_MODEL, "--option", "dtype=float32", "--option", "engine=torch"]
_COUNT = 20

pytestmark = pytest.mark.samples(_COUNT)

Call = Callable[..., tuple[object, str, str]]


def _heed_interrupts() -> None:
    # Programs that a shell starts in the background ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _start(*arguments: object) -> subprocess.Popen[str]:
    own = {
        "PYTHONPATH": SOURCES,
        "PYTHONWARNINGS": "ignore",
        "FIFTYONE_SHOW_PROGRESS_BARS": "true",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "fiftyone_hiera", *map(str, arguments)],
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,
    )


def _run(*arguments: object) -> tuple[int, str, str]:
    """Run a command in a new process, as :func:`call` does in this one."""
    process = _start(*arguments)
    try:
        printed, logged = process.communicate(timeout=LIMIT)
    finally:
        process.kill()

    assert "Traceback" not in logged
    return process.returncode, printed, logged


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command; return its exit status, and what it prints and logs."""

    def call(*arguments: object) -> tuple[object, str, str]:
        try:
            status: object = main([*map(str, arguments)])
        except SystemExit as end:
            status = end.code

        printed, logged = capsys.readouterr()
        assert "Traceback" not in logged
        return status, printed, logged

    return call


def _write_manifest(path: Path, uris: list[str]) -> Path:
    pq.write_table(pa.table({"id": [*range(len(uris))], "uri": uris}), path)
    return path


@pytest.fixture
def manifest(digits: list[Digit], tmp_path: Path) -> Path:
    uris = [str(digit.path) for digit in digits[:_COUNT]]
    return _write_manifest(tmp_path / "manifest.parquet", uris)


@pytest.mark.slow
def test_embed(samples: Any, expected: dict[str, np.ndarray], call: Call) -> None:
    arguments = ["embed", samples.name, "hiera", *_EXACT, "--batch-size", 8]
    status, printed, logged = call(*arguments, "--shard", "0/2")
    assert status == 0, logged
    samples.reload()
    some = len(samples.exists("hiera"))
    assert 0 < some < _COUNT
    assert f"embedded  {some:>9}" in printed

    status, printed, logged = _run(*arguments)
    assert status == 0, logged
    assert f"skipped   {some:>9}" in printed
    assert "samples/s" in printed  # the progress bar
    samples.reload()
    for path, found in zip(*samples.values(["filepath", "hiera"]), strict=True):
        assert np.abs(found - expected[path]).max() < 1e-4

    # Other settings: refused, as an argument that is not valid
    status, printed, logged = call(*arguments, "--option", "pooling=cls")
    assert (status, printed) == (2, "")
    assert "differ in pooling" in logged
    assert "overwrite=True is --overwrite" in logged


def test_embed_with_all_options(samples: Any, call: Call) -> None:
    samples.add_sample(fo.Sample(filepath="/absent.png"))
    for sample in samples.iter_samples(autosave=True):
        box = fo.Detection(label="x", bounding_box=[0.2, 0.2, 0.6, 0.6])
        sample["boxes"] = fo.Detections(detections=[box, box.copy()])

    arguments = ["embed", samples.name, "hiera", *_EXACT, "--patches-field", "boxes"]
    status, printed, logged = call(*arguments, "--failure-tag", "bad")
    assert status == 0, logged
    assert f"embedded  {2 * _COUNT:>9}" in printed
    assert "failed            2" in printed
    samples.reload()
    assert samples.match_tags("bad").values("filepath") == ["/absent.png"]

    arguments += ["--overwrite", "--option", "normalize=true", "--verify", 0]
    status, printed, logged = call(*arguments)
    assert status == 0, logged
    assert f"embedded  {2 * _COUNT:>9}" in printed
    samples.reload()
    embedding = samples.first()["boxes"].detections[1]["hiera"]
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)

    status, printed, logged = call(*arguments, "--no-skip-failures")
    assert (status, printed) == (1, "")
    assert "/absent.png" in logged


def test_embed_into_an_index(samples: Any, tmp_path: Path, call: Call) -> None:
    lancedb = pytest.importorskip("lancedb")
    arguments = ["embed", samples.name, *_EXACT, "--brain-key", "sim"]
    arguments += ["--backend", "lancedb", "--backend-option"]
    with configured("lancedb", uri=str(tmp_path)):
        status, _, logged = call(*arguments, "k=3")
        assert status == 2
        assert "Unknown settings ['k'] of backend 'lancedb'" in logged

        status, printed, logged = call(*arguments, "table_name=mine")
        assert status == 0, logged
        assert f"in index  {_COUNT:>9}" in printed
        assert lancedb.connect(tmp_path).open_table("mine").count_rows() == _COUNT
        status, printed, logged = call(*arguments, "table_name=mine")
        assert status == 0, logged
        assert f"skipped   {_COUNT:>9}" in printed


def test_embed_all_fail(dataset: Any, call: Call) -> None:
    dataset.add_samples([fo.Sample(filepath=f"/absent-{n}.png") for n in range(3)])
    status, _, logged = call("embed", dataset.name, "hiera", *_EXACT)
    assert status == 1
    assert "All inputs failed (3 of 3)" in logged


@pytest.mark.slow
def test_embed_files(manifest: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    arguments = ["embed-files", manifest, out, *_EXACT, "--part-size", 8]
    arguments += ["--vectors", "float16", "--num-workers", 1, "--batch-size", 4]
    status, printed, logged = _run(*arguments, "--shard", "1/2")
    assert status == 0, logged
    assert f"embedded  {8:>11}" in printed
    assert "files/s]" in printed  # the progress bar
    status, printed, logged = call(*arguments)
    assert status == 0, logged
    assert f"skipped   {8:>11}" in printed
    table = pq.read_table(out)
    assert sorted(table["id"].to_pylist()) == [*range(_COUNT)]
    assert table.schema.field("vector").type == pa.list_(pa.float16(), 192)


def test_embed_files_all_fail(digits: list[Digit], tmp_path: Path, call: Call) -> None:
    manifest, image = tmp_path / "manifest.parquet", tmp_path / "image.png"
    pq.write_table(pa.table({"id": ["a", "b"], "uri": ["/absent", str(image)]}), manifest)
    arguments = ["embed-files", manifest, tmp_path / "out", *_EXACT]
    status, _, logged = call(*arguments)
    assert status == 1
    assert "All files failed" in logged
    assert "- a: " in logged
    assert "retry_failed=True is --retry-failed" in logged

    shutil.copy(digits[0].path, image)
    assert call(*arguments)[0] == 1
    status, printed, _ = call(*arguments, "--retry-failed")
    assert status == 0
    assert f"embedded  {1:>11}" in printed
    assert f"failed    {1:>11}" in printed


def test_interrupted(digits: list[Digit], tmp_path: Path) -> None:
    # So many files that no machine is through before it hears of the interrupt
    uris = [str(digit.path) for digit in digits] * 100
    manifest, out = _write_manifest(tmp_path / "manifest.parquet", uris), tmp_path / "out"
    arguments = ["embed-files", manifest, out, *_EXACT, "--part-size", 50]
    process = _start(*arguments, "--batch-size", 1)
    part = out / "part-00001.parquet"
    try:
        wait_until(lambda: part.exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        _, logged = process.communicate(timeout=LIMIT)
    finally:
        process.kill()

    assert process.returncode == 130
    assert "Interrupted: the same command resumes there" in logged
    assert "Traceback" not in logged
    assert len([*out.glob("part-*")]) < len(uris) // 50


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
def test_invalid_arguments(arguments: list[str], reason: str, call: Call) -> None:
    status, printed, logged = call(*arguments)
    assert (status, printed) == (2, "")
    assert reason in logged


def test_invalid_model(manifest: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    status, _, logged = call("embed-files", manifest, out, "--model", "hiera-nope")
    assert status == 2
    assert "Unknown model 'hiera-nope'" in logged
    status, _, logged = call(
        "embed-files", manifest, out, *_MODEL, "--option", "poling=cls"
    )
    assert status == 2
    assert "Unknown option 'poling'" in logged
    assert not out.exists()


def test_help(call: Call) -> None:
    status, printed, _ = call("--help")
    assert status == 0
    assert "embed-files" in printed
    for command in ("embed", "embed-files"):
        status, printed, _ = call(command, "--help")
        assert status == 0
        assert "--ray" in printed


def test_ray_that_does_not_answer(
    samples: Any, manifest: Path, tmp_path: Path, call: Call
) -> None:
    pytest.importorskip("ray").shutdown()
    out = tmp_path / "out"
    for arguments in (["embed", samples.name, "hiera"], ["embed-files", manifest, out]):
        arguments = [*arguments, *_EXACT]
        status, printed, logged = call(*arguments, "--ray", "127.0.0.1:9")
        assert (status, printed) == (2, "")
        assert "Cannot connect to Ray at '127.0.0.1:9'" in logged

        # Nothing is left to do: nobody connects
        assert call(*arguments)[0] == 0
        status, printed, logged = call(*arguments, "--ray", "127.0.0.1:9")
        assert status == 0, logged
        assert "skipped" in printed


def test_ray_on_this_machine(
    samples: Any, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    given = []

    def run(*_: object, ray: object, **__: object) -> str:
        given.append(ray)
        return "done"

    monkeypatch.setattr(HieraEmbeddingModel, "embed_samples", run)
    monkeypatch.setattr(fiftyone_hiera, "embed_files", run)
    for arguments in (["embed", samples.name, "hiera"], ["embed-files", "in", "out"]):
        for ray in (["--ray", "local"], ["--ray", "auto"], []):
            assert call(*arguments, *_EXACT, *ray)[:2] == (0, "done\n")

    assert given == [True, "auto", None] * 2
