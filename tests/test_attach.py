"""Attach the output of embed_files to datasets."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

_EXACT: Any = {"dtype": "float32", "engine": "torch"}
_COUNT = 60

pytestmark = pytest.mark.samples(_COUNT)

Embed = Callable[..., Path]


@pytest.fixture(scope="module")
def paths(digits: list[Digit]) -> list[str]:
    return [str(digit.path) for digit in digits[:_COUNT]]


@pytest.fixture
def embed(tmp_path: Path) -> Embed:
    """Write a manifest, embed it, and return the folder of the output."""

    def embed(ids: Sequence[Any], uris: Sequence[str], **options: Any) -> Path:
        manifest = tmp_path / "manifest.parquet"
        pq.write_table(pa.table({"id": [*ids], "uri": [*uris]}), manifest)
        given = {**_EXACT, "part_size": 25, "progress": False, **options}
        fiftyone_hiera.embed_files(
            manifest, tmp_path / "out", model="hiera-nano-digits", **given
        )
        return tmp_path / "out"

    return embed


def _check(samples: Any, expected: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    """Check that each sample has the right embedding, in FiftyOne's own form."""
    samples.reload()
    for path, embedding in zip(*samples.values(["filepath", "hiera"]), strict=True):
        assert embedding.dtype == np.float32
        assert np.abs(embedding - expected[path]).max() < tolerance


def _counts(report: Any) -> tuple[int, int, int, int]:
    return report.attached, report.skipped, report.missing, len(report.failed)


def test_attach_and_continue(
    samples: Any, expected: dict[str, np.ndarray], model: HieraEmbeddingModel, embed: Embed
) -> None:
    out = embed(*samples.values(["id", "filepath"]))
    report = fiftyone_hiera.attach_embeddings(samples, "hiera", out)
    assert _counts(report) == (_COUNT, 0, 0, 0)
    assert f"attached  {_COUNT:>11}" in str(report)
    _check(samples, expected)

    again = fiftyone_hiera.attach_embeddings(samples, "hiera", out)
    assert _counts(again) == (0, _COUNT, 0, 0)

    # The field is as embed_samples() leaves one
    assert model.embed_samples(samples, "hiera").skipped == _COUNT
    model.embed_samples(samples, "other")
    fields = [samples.get_field(name) for name in ("hiera", "other")]
    assert fields[0].info == fields[1].info
    assert type(fields[0]) is type(fields[1])


def test_attach_by_path(
    samples: Any, expected: dict[str, np.ndarray], paths: list[str], embed: Embed
) -> None:
    twin = fo.Sample(filepath=paths[3])
    samples.add_sample(twin)
    out = embed(range(_COUNT - 2), reversed(paths[2:]))
    report = fiftyone_hiera.attach_embeddings(samples, "hiera", out, by="filepath")
    assert _counts(report) == (_COUNT - 1, 0, 2, 0)
    _check(samples.exists("hiera"), expected)
    twin.reload()
    assert np.abs(twin["hiera"] - expected[paths[3]]).max() < 1e-4
    assert samples.exists("hiera", False).values("filepath") == paths[:2]

    with pytest.raises(ValueError, match="numbers, not those of samples: use by='filep"):
        fiftyone_hiera.attach_embeddings(samples, "other", out)


def test_attach_to_a_view_of_many_rows(
    samples: Any, expected: dict[str, np.ndarray], embed: Embed
) -> None:
    out = embed(*samples.values(["id", "filepath"]))
    view = samples.take(7, seed=51)
    report = fiftyone_hiera.attach_embeddings(view, "hiera", out)
    assert _counts(report) == (7, 0, 0, 0)
    assert {*samples.exists("hiera").values("id")} == {*view.values("id")}
    _check(samples.exists("hiera"), expected)
    report = fiftyone_hiera.attach_embeddings(samples, "hiera", out)
    assert _counts(report) == (_COUNT - 7, 7, 0, 0)
    _check(samples, expected)


def test_attach_while_parts_are_missing(
    samples: Any, expected: dict[str, np.ndarray], embed: Embed
) -> None:
    ids, paths = samples.values(["id", "filepath"])
    out = embed(ids, paths, shard=(0, 2))
    report = fiftyone_hiera.attach_embeddings(samples, "hiera", out)
    assert _counts(report) == (35, 0, 25, 0)
    embed(ids, paths, shard=(1, 2))
    report = fiftyone_hiera.attach_embeddings(samples, "hiera", out)
    assert _counts(report) == (25, 35, 0, 0)
    _check(samples, expected)


def test_no_bar_of_nothing(
    samples: Any,
    embed: Embed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fo.config, "show_progress_bars", True)
    out = embed(*samples.values(["id", "filepath"]))
    fiftyone_hiera.attach_embeddings(samples, "hiera", out)
    assert f"/{_COUNT}" in capsys.readouterr().out
    fiftyone_hiera.attach_embeddings(samples, "hiera", out)
    assert capsys.readouterr().out == ""


def test_nothing_that_is_the_same_is_warned_of(
    samples: Any, embed: Embed, caplog: pytest.LogCaptureFixture
) -> None:
    paths = samples.values("filepath")
    out = embed([f"i{number}" for number in range(len(paths))], paths)
    report = fiftyone_hiera.attach_embeddings(samples, "hiera", out)
    assert _counts(report) == (0, 0, len(paths), 0)
    assert "None of the samples is in" in caplog.text
    assert "its column 'id' 'i" in caplog.text


def test_failures(
    samples: Any, expected: dict[str, np.ndarray], embed: Embed, tmp_path: Path
) -> None:
    ids, paths = samples.values(["id", "filepath"])
    absent = str(tmp_path / "absent.png")
    uris = [*paths[:5], absent, *paths[6:]]
    out = embed(ids, uris)
    report = fiftyone_hiera.attach_embeddings(samples, "hiera", out)
    assert _counts(report) == (_COUNT - 1, 0, 0, 1)
    (failure,) = report.failed
    assert (failure.sample_id, failure.path) == (ids[5], absent)
    assert absent in failure.reason
    _check(samples.exists("hiera"), expected)
    assert samples.exists("hiera", False).values("id") == [ids[5]]

    shutil.copy(paths[5], absent)
    embed(ids, uris, retry_failed=True)
    report = fiftyone_hiera.attach_embeddings(samples, "hiera", out)
    assert _counts(report) == (1, _COUNT - 1, 0, 0)
    _check(samples, expected)


def test_float16_is_within_rounding(
    samples: Any, expected: dict[str, np.ndarray], model: HieraEmbeddingModel, embed: Embed
) -> None:
    out = embed(*samples.values(["id", "filepath"]), vectors="float16")
    fiftyone_hiera.attach_embeddings(samples[: _COUNT // 2], "hiera", out)
    size = max(np.abs(expected[path]).max() for path in samples.values("filepath"))
    _check(samples.exists("hiera"), expected, float(size) * 2**-11 + 1e-4)

    # The check of existing embeddings accepts the rounding
    report = model.embed_samples(samples, "hiera", verify=20)
    assert (report.skipped, report.embedded) == (_COUNT // 2, _COUNT // 2)


def test_other_provenance_is_refused(
    samples: Any, expected: dict[str, np.ndarray], embed: Embed
) -> None:
    cls = fiftyone_hiera.load_model("hiera-nano-digits", pooling="cls", **_EXACT)
    cls.embed_samples(samples[:20], "hiera")
    before = samples.values("hiera")
    out = embed(*samples.values(["id", "filepath"]))
    with pytest.raises(
        ValueError, match=r"(?s)differ in pooling.*pooling cls.*pooling mean"
    ):
        fiftyone_hiera.attach_embeddings(samples, "hiera", out)

    with pytest.raises(ValueError, match="only some would be overwritten"):
        fiftyone_hiera.attach_embeddings(samples[:10], "hiera", out, overwrite=True)

    for found, kept in zip(samples.values("hiera"), before, strict=True):
        np.testing.assert_array_equal(found, kept)

    report = fiftyone_hiera.attach_embeddings(samples, "hiera", out, overwrite=True)
    assert _counts(report) == (_COUNT, 0, 0, 0)
    _check(samples, expected)
    with pytest.raises(ValueError, match="differ in pooling"):
        cls.embed_samples(samples, "hiera")


def test_unknown_embeddings_are_refused(samples: Any, embed: Embed) -> None:
    sample = samples.first()
    sample["hiera"] = np.ones(192, np.float32)
    sample.save()
    out = embed(*samples.values(["id", "filepath"]))
    with pytest.raises(ValueError, match="no recorded provenance"):
        fiftyone_hiera.attach_embeddings(samples, "hiera", out)


def test_another_run_takes_the_field(
    samples: Any, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fiftyone_hiera.runs import attach

    out = embed(*samples.values(["id", "filepath"]))
    cls = fiftyone_hiera.load_model("hiera-nano-digits", pooling="cls", **_EXACT)
    stored = []

    class LateClaim(attach.FieldClaim):
        def store(self, batch: Any) -> Any:
            if stored:
                cls.embed_samples(samples, "hiera", overwrite=True)

            stored.append(batch)
            return super().store(batch)

    monkeypatch.setattr(attach, "_BATCH_SIZE", 10)
    monkeypatch.setattr(attach, "FieldClaim", LateClaim)
    with pytest.raises(ValueError, match="Another run started to write to 'hiera'"):
        fiftyone_hiera.attach_embeddings(samples, "hiera", out)

    assert len(stored) == 2
    report = cls.embed_samples(samples, "hiera", verify=_COUNT)
    assert report.skipped == _COUNT


def test_another_run_takes_the_field_during_a_write(
    samples: Any, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fiftyone_hiera.runs.target import Target

    out = embed(*samples.values(["id", "filepath"]))
    cls = fiftyone_hiera.load_model("hiera-nano-digits", pooling="cls", **_EXACT)
    store, batches = Target.store, []

    def store_after_another_run(target: Target, parts: Any, embeddings: Any) -> Any:
        batches.append(parts)
        if len(batches) == 1:
            cls.embed_samples(samples, "hiera", overwrite=True)

        return store(target, parts, embeddings)

    monkeypatch.setattr(Target, "store", store_after_another_run)
    with pytest.raises(ValueError, match="Another run started to write to 'hiera'"):
        fiftyone_hiera.attach_embeddings(samples, "hiera", out)

    # The batch that was late is removed
    report = cls.embed_samples(samples, "hiera")
    assert (report.skipped, report.embedded) == (0, _COUNT)


def test_invalid_arguments(samples: Any, embed: Embed, tmp_path: Path) -> None:
    out = embed(*samples.values(["id", "filepath"]))
    attach: Any = fiftyone_hiera.attach_embeddings
    with pytest.raises(
        ValueError, match=r"Invalid by: 'uri'. Valid are \['id', 'filepath'"
    ):
        attach(samples, "hiera", out, by="uri")

    with pytest.raises(ValueError, match="Invalid overwrite 1"):
        attach(samples, "hiera", out, overwrite=1)

    with pytest.raises(ValueError, match=r"absent' holds no output of embed_files"):
        attach(samples, "hiera", tmp_path / "absent")

    assert not samples.has_field("hiera")


def test_videos_are_refused(dataset: Any, samples: Any, embed: Embed) -> None:
    out = embed(*samples.values(["id", "filepath"]))
    videos = fo.Dataset()
    videos.add_sample(fo.Sample(filepath="/absent.mp4"))
    with pytest.raises(ValueError, match="these samples are videos"):
        fiftyone_hiera.attach_embeddings(videos, "hiera", out)

    videos.delete()
