"""Bad and unusual files, on every path by which images are embedded."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from bad_files import png, write_bad_files
from other_process import SOURCES
from PIL import EpsImagePlugin, Image, ImageCms, ImageFile
from skimage import data

from fiftyone_hiera.images.decoding import read_image, to_rgb
from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.plugin.outputs import report_to_dict, report_view
from fiftyone_hiera.runs.report import EmbeddingReport, Notice

_ORIENTATION = 0x0112
_NOBODY = 65534


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(data.astronaut()[:400])


def _sample(path: Path | str) -> fo.Sample:
    whole = fo.Detection(bounding_box=[0, 0, 1, 1])
    return fo.Sample(filepath=str(path), whole=fo.Detections(detections=[whole]))


def _on_every_path(dataset: Any, model: HieraEmbeddingModel) -> dict[str, list[Any]]:
    """Embed the same images on every path; None where one failed."""
    model.embed_samples(dataset, "hiera", batch_size=4)
    model.embed_samples(dataset, "hiera", batch_size=4, patches_field="whole")
    patches = dataset.compute_patch_embeddings(model, "whole", num_workers=0)
    return {
        "runner": dataset.values("hiera"),
        "runner, patches": [v[0] for v in dataset.values("whole.detections.hiera")],
        "native": list(dataset.compute_embeddings(model, batch_size=1, num_workers=0)),
        "native, patches": [None if v is None else v[0] for v in patches.values()],
    }


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program named gs that leaves a file behind when it runs."""
    trace = tmp_path / "ghostscript-ran"
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "gs"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return trace


@pytest.mark.parametrize("num_workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_only_the_bad_files_fail(
    dataset: Any,
    model: HieraEmbeddingModel,
    photo: Image.Image,
    tmp_path: Path,
    ghostscript: Path,
    caplog: pytest.LogCaptureFixture,
    num_workers: int,
) -> None:
    reasons = write_bad_files(tmp_path, photo)
    good = [tmp_path / f"good-{index}.png" for index in range(len(reasons))]
    for index, path in enumerate(good):
        photo.rotate(index).save(path)

    for bad, path in zip(reasons, good, strict=True):
        dataset.add_samples([_sample(bad), _sample(path)])

    with caplog.at_level(logging.WARNING):
        report = model.embed_samples(
            dataset, "hiera", batch_size=8, num_workers=num_workers, failure_tag="bad"
        )

    assert (report.embedded, report.skipped) == (len(good), 0)
    assert {failure.path for failure in report.failed} == set(
        dataset.match_tags("bad").values("filepath")
    )
    by_end = {Path(failure.path).name: failure for failure in report.failed}
    assert len(by_end) == len(reasons)
    for path, reason in reasons.items():
        failure = by_end[Path(path).name]
        assert failure.sample_id == failure.id
        assert dataset[failure.id].filepath == failure.path
        assert re.search(reason, failure.reason), failure.reason
        assert repr(failure.path) in failure.reason
        (line,) = (m for m in caplog.messages if failure.sample_id in m)
        assert failure.reason in line

    for path in good:
        stored = dataset.match({"filepath": str(path)}).first().hiera
        assert np.abs(stored - model.embed(Image.open(path))).max() < 1e-4

    assert not ghostscript.exists()


def test_ghostscript_fixture_works(
    photo: Image.Image, tmp_path: Path, ghostscript: Path
) -> None:
    photo.save(tmp_path / "drawing.eps")
    with Image.open(tmp_path / "drawing.eps") as image, contextlib.suppress(OSError):
        image.load()

    assert ghostscript.exists()


def test_only_the_bad_files_fail_natively(
    dataset: Any,
    model: HieraEmbeddingModel,
    photo: Image.Image,
    tmp_path: Path,
    ghostscript: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reasons = write_bad_files(tmp_path, photo)
    good = tmp_path / "good.png"
    photo.save(good)
    dataset.add_samples([_sample(path) for path in (*reasons, good)])

    embeddings = dataset.compute_embeddings(model, batch_size=1, num_workers=0)
    assert [embedding is None for embedding in embeddings] == [True] * len(reasons) + [
        False
    ]
    patches = dataset.compute_patch_embeddings(model, "whole", num_workers=0)
    assert [v is None for v in patches.values()] == [True] * len(reasons) + [False]
    for path, reason in reasons.items():
        told = [m for m in caplog.messages if Path(path).name in m]
        assert len(told) == 2, path
        assert all(re.search(reason, message) for message in told)

    assert not ghostscript.exists()


@pytest.mark.parametrize("position", [0, 3, 7])
def test_only_the_bad_file_of_a_batch_fails(
    dataset: Any,
    model: HieraEmbeddingModel,
    photo: Image.Image,
    tmp_path: Path,
    position: int,
) -> None:
    for index in range(8):
        photo.rotate(index).save(tmp_path / f"{index}.png")

    (tmp_path / f"{position}.png").write_bytes(b"")
    dataset.add_samples([_sample(tmp_path / f"{index}.png") for index in range(8)])
    model.embed_samples(dataset, "hiera", batch_size=8)
    stored = dataset.values("hiera")
    assert [embedding is None for embedding in stored] == [i == position for i in range(8)]


@contextlib.contextmanager
def _unprivileged() -> Iterator[Path]:
    """Yield a folder that tests may leave as another user, who cannot list it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        is_root = os.geteuid() == 0
        try:
            yield Path(folder)
        finally:
            if is_root:
                os.seteuid(0)


def test_no_read_permission(
    dataset: Any, model: HieraEmbeddingModel, photo: Image.Image
) -> None:
    with _unprivileged() as folder:
        for name in ("open.png", "locked.png"):
            photo.save(folder / name)
            dataset.add_sample(_sample(folder / name))

        (folder / "open.png").chmod(0o644)
        (folder / "locked.png").chmod(0)
        if os.geteuid() == 0:
            os.seteuid(_NOBODY)

        report = model.embed_samples(dataset, "hiera")

    assert report.embedded == 1
    (failure,) = report.failed
    assert failure.reason.endswith("locked.png': Permission denied")


def test_names_of_any_bytes(
    dataset: Any,
    model: HieraEmbeddingModel,
    photo: Image.Image,
    tmp_path: Path,
) -> None:
    names = ["new\nline.png", "emoji \N{CAT FACE}.png", "quote'\".png", "sp ace%41.png"]
    for name in names:
        photo.save(tmp_path / name)
        dataset.add_sample(_sample(tmp_path / name))

    # FiftyOne's database cannot hold a name that is not UTF-8, but a link to it
    latin = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    with open(latin, "wb") as file:
        photo.save(file, "PNG")

    with pytest.raises(UnicodeEncodeError):
        dataset.add_sample(_sample(latin))

    link = tmp_path / "cafe.png"
    link.symlink_to(latin)
    dataset.add_sample(_sample(link))
    bad = tmp_path / "bad\nname.png"
    bad.touch()
    dataset.add_sample(_sample(bad))

    (failure,) = model.embed_samples(dataset, "hiera").failed
    assert r"bad\nname.png" in failure.reason
    assert "\n" not in failure.reason
    expected = model.embed(photo)
    for embedding in dataset.exists("hiera").values("hiera"):
        assert np.abs(embedding - expected).max() < 1e-4

    assert dataset.count("hiera") == len(names) + 1
    assert np.abs(model.embed(read_image(latin)) - expected).max() < 1e-4
    latin.write_bytes(b"")
    with pytest.raises(ValueError, match=r"caf\\udce9\.png': the file is empty"):
        read_image(latin)


def _unusual_images(photo: Image.Image, folder: Path) -> dict[str, Image.Image]:
    """Write unusual files; return the upright RGB image of each."""
    grey = photo.convert("L")
    alpha = photo.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(photo.size))
    palette = photo.quantize(64)
    bilevel = photo.convert("1")
    cmyk = photo.convert("CMYK")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 77)
    pages = [photo, photo.rotate(90), photo.rotate(180)]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    rows = np.asarray(photo)[0]

    grey.save(folder / "grey.png")
    bilevel.save(folder / "bilevel.png")
    alpha.save(folder / "alpha.png")
    alpha.convert("LA").save(folder / "grey-alpha.png")
    palette.save(folder / "palette.png", transparency=3)
    cmyk.save(folder / "cmyk.jpg", quality=95)
    deep.save(folder / "deep.png")
    deep.save(folder / "deep.tif")
    deep.save(folder / "deep.pgm")
    photo.save(folder / "profile.png", icc_profile=profile)
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(
        folder / "moving.webp", save_all=True, append_images=pages[1:], lossless=True
    )
    photo.save(folder / "exif.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    photo.save(
        folder / "exif.jpg", quality=95, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0garbage"
    )
    photo.crop((7, 7, 8, 8)).save(folder / "1x1.png")
    photo.crop((7, 7, 10, 8)).save(folder / "3x1.png")
    Image.fromarray(np.tile(rows, (1, 60, 1))).save(folder / "wide.png")
    Image.fromarray(np.tile(rows, (1, 60, 1)).transpose(1, 0, 2).copy()).save(
        folder / "tall.png"
    )
    shown = {
        "grey.png": grey,
        "bilevel.png": bilevel,
        "alpha.png": photo,
        "grey-alpha.png": grey,
        "palette.png": palette,
        "deep.png": grey,
        "deep.tif": grey,
        "deep.pgm": grey,
        "profile.png": photo,
        "pages.tif": photo,
        "moving.webp": photo,
        "exif.png": photo,
    }
    decoded = ("cmyk.jpg", "exif.jpg", "1x1.png", "3x1.png", "wide.png", "tall.png")
    for name in decoded:
        shown[name] = Image.open(folder / name)

    orientations = [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ]
    for orientation, stored in orientations:
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        turned = photo if stored is None else photo.transpose(stored)
        turned.save(folder / f"orientation-{orientation}.webp", exif=exif, lossless=True)
        shown[f"orientation-{orientation}.webp"] = photo

    return {name: image.convert("RGB") for name, image in shown.items()}


def test_unusual_images_are_the_same_on_every_path(
    dataset: Any, model: HieraEmbeddingModel, photo: Image.Image, tmp_path: Path
) -> None:
    shown = _unusual_images(photo, tmp_path)
    dataset.add_samples([_sample(tmp_path / name) for name in shown])
    ways = _on_every_path(dataset, model)
    ways["in memory"] = [model.embed(Image.open(tmp_path / name)) for name in shown]
    ways["by path"] = model.embed_all([str(tmp_path / name) for name in shown])
    for way, embeddings in ways.items():
        for (name, image), embedding in zip(shown.items(), embeddings, strict=True):
            expected = model.embed(np.asarray(image))
            assert np.abs(embedding - expected).max() < 1e-4, (name, way)


def test_defects_of_headers_are_reported(
    dataset: Any,
    model: HieraEmbeddingModel,
    photo: Image.Image,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sound, defective = tmp_path / "sound.jpg", tmp_path / "defective.jpg"
    photo.save(sound)
    defective.write_bytes(sound.read_bytes().replace(b"\xff\xdb", b"junk\xff\xdb", 1))
    dataset.add_samples([_sample(sound), _sample(defective)])
    half = fo.Detection(bounding_box=[0, 0, 0.5, 1])
    sample = dataset.last()
    sample.whole.detections.append(half)
    sample.save()

    report = model.embed_samples(dataset, "run")
    assert (report.embedded, report.failed) == (2, [])
    (notice,) = report.warned
    assert (notice.id, notice.sample_id) == (sample.id, sample.id)
    assert notice.path == str(defective)
    reason = f"The image {str(defective)!r} is damaged outside of its image data: Corrupt"
    assert notice.reason.startswith(reason)
    assert "warned            1" in str(report)
    assert f"- {sample.id}: {reason}" in str(report)
    (line,) = (message for message in caplog.messages if "defective" in message)
    assert line == f"Sample {sample.id}: {notice.reason}"
    assert not model.embed_samples(dataset, "run").warned

    # The labels of one file are entries of their own, with one line in the log
    caplog.clear()
    report = model.embed_samples(dataset, "run", patches_field="whole")
    labels = sample.whole.detections
    assert [notice.id for notice in report.warned] == [label.id for label in labels]
    assert len([message for message in caplog.messages if "defective" in message]) == 1

    caplog.clear()
    native = dataset.compute_embeddings(model, num_workers=0)
    assert np.abs(native - np.stack(dataset.values("run"))).max() < 1e-4
    (line,) = (message for message in caplog.messages if "defective" in message)
    assert line.startswith(reason)


def test_warnings_in_the_report_of_the_app(dataset: Any, tmp_path: Path) -> None:
    notices = [Notice(str(index), str(index), "/a.jpg", "why") for index in range(1001)]
    report = report_to_dict(EmbeddingReport(2000, warned=notices))
    assert (report["warned"], len(report["warnings"])) == (1001, 1000)
    assert report["warnings"][0] == vars(notices[0])
    result = {**report, "stopped": False, "embeddings_field": "hiera"}
    shown = str(report_view(dataset, result).to_json())
    assert "2,000 embedded, 0 skipped, 0 failed, 1,001 with a warning" in shown
    assert "- why" in shown
    del result["warned"], result["warnings"]  # as of a run that was delegated before
    assert "0 failed'" in str(report_view(dataset, result).to_json())


def test_cmyk_is_not_inverted(
    model: HieraEmbeddingModel, photo: Image.Image, tmp_path: Path
) -> None:
    path = tmp_path / "cmyk.jpg"
    photo.convert("CMYK").save(path, quality=95)
    read = np.asarray(read_image(path)).astype(int)
    assert np.abs(read - np.asarray(photo)).mean() < 3
    assert np.abs(255 - read - np.asarray(photo)).mean() > 50


def test_truncated_files_are_refused_whatever_pillow_is_set_to(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / "truncated.png"
    photo.save(path)
    path.write_bytes(path.read_bytes()[:50_000])
    with Image.open(path) as image:
        image.load()  # as Pillow is set to

    with pytest.raises(ValueError, match="truncated"):
        read_image(path)

    with Image.open(path) as image, pytest.raises(OSError, match="truncated"):
        to_rgb(image)

    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("form", [{}, {"progressive": True}, {"subsampling": 0}])
def test_lost_blocks_of_a_jpeg_are_found(photo: Image.Image, form: dict[str, Any]) -> None:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=90, **form)
    intact = file.getvalue()
    rng = random.Random(51)
    found = by_pillow = 0
    for _ in range(100):
        damaged = bytearray(intact)
        start = rng.randrange(700, len(intact) - 4098)
        damaged[start : start + 4096] = bytes(4096)
        found += _is_refused(to_rgb, bytes(damaged))
        by_pillow += _is_refused(Image.Image.load, bytes(damaged))

    assert found >= 95
    assert by_pillow <= 5
    assert not _is_refused(to_rgb, intact)
    assert not _is_refused(to_rgb, intact + b"trailing bytes")


def _is_refused(decode: Any, content: bytes) -> bool:
    try:
        decode(Image.open(io.BytesIO(content)))
    except (OSError, ValueError):
        return True

    return False


_PEAK = """
import logging, resource, sys
sys.path.insert(0, {sources!r})
from fiftyone_hiera.images.decoding import read_image
from fiftyone_hiera.images.preprocessing import for_image_size
logging.basicConfig(format="LOG %(message)s")
preprocessing = for_image_size((224, 224))
small, path = {paths!r}
preprocessing(read_image(small))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print("CROP", tuple(preprocessing(read_image(path)).shape))
except ValueError as error:
    print("ERROR", error)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("MB", (peak - before) // 1024)
"""


def _peak_memory(photo: Image.Image, path: Path) -> tuple[str, int]:
    """Read an image in another process; return its output, and the MB it took."""
    small = path.with_name("small.png")
    photo.save(small)
    code = _PEAK.format(sources=SOURCES, paths=(str(small), str(path)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said, _, megabytes = done.stdout.rpartition("MB")
    return said + done.stderr, int(megabytes)


def test_bomb_is_not_decoded(photo: Image.Image, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(20_000, 10_000))
    said, megabytes = _peak_memory(photo, bomb)
    assert "could be decompression bomb" in said
    assert megabytes < 20


def test_large_image_is_embedded_with_a_warning(photo: Image.Image, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(png(10_000, 9_000))
    said, _ = _peak_memory(photo, large)
    assert "CROP (3, 224, 224)" in said
    assert "large.png' is very large: 90 MP" in said


@pytest.mark.parametrize(
    "size", [(30_000, 1), pytest.param((1, 30_000), marks=pytest.mark.slow)]
)
def test_elongated_image_takes_little_memory(
    photo: Image.Image, tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "elongated.png"
    path.write_bytes(png(*size))
    said, megabytes = _peak_memory(photo, path)
    assert "CROP (3, 224, 224)" in said
    assert megabytes < 50
