"""Spot checks of fields, and the adoption of embeddings that have no record."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from bson import ObjectId
from cpu_kinds import say_bfloat16
from digit_samples import check_embeddings

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.embedding import prefetch
from fiftyone_hiera.images.decoding import read_image
from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.runs import spot_check
from fiftyone_hiera.runs.fiftyone_internals import sample_collection
from fiftyone_hiera.runs.target import Target

NANO = "hiera-nano-digits"

pytestmark = pytest.mark.samples(12)
_IS_FOREIGN = r"in the field '{}' is not this model's.*relative distance is \d"


@pytest.fixture
def merged(samples: Any, digits: list[Digit], other: HieraEmbeddingModel) -> Any:
    """A dataset to whose embeddings those of another dataset are added."""
    more = fo.Dataset()
    more.add_samples([fo.Sample(filepath=str(digit.path)) for digit in digits[20:24]])
    other.embed_samples(more, "hiera")
    yield more
    more.delete()


def test_embeddings_added_from_another_dataset_are_found(
    samples: Any, merged: Any, model: HieraEmbeddingModel, other: HieraEmbeddingModel
) -> None:
    model.embed_samples(samples[:10], "hiera")
    samples.add_collection(merged)
    foreign = merged.last()
    with pytest.raises(ValueError, match=_IS_FOREIGN.format("hiera")) as error:
        model.embed_samples(samples, "hiera")

    assert any(path in str(error.value) for path in merged.values("filepath"))
    assert "overwrite=True" in str(error.value)
    assert "adopt_embeddings()" in str(error.value)
    assert samples.count("hiera") == 14
    with pytest.raises(ValueError, match="not this model's"):
        model.embed_samples(samples, "hiera", shard=(0, 2))

    # Embeddings of files that cannot be read again do not stay, if others are foreign
    path = foreign.filepath
    sample = samples[path]
    sample.filepath = path + "-absent.png"
    sample.save()
    assert model.embed_samples(samples, "hiera", overwrite=True).embedded == 15
    assert samples.exists("hiera", False).values("id") == [sample.id]
    check_embeddings(samples.exists("hiera"), model)


def test_embeddings_merged_into_samples_are_found(
    samples: Any, model: HieraEmbeddingModel, other: HieraEmbeddingModel
) -> None:
    model.embed_samples(samples[:10], "hiera")
    clone = samples[:1].clone()
    other.embed_samples(clone, "hiera", overwrite=True)
    samples.merge_samples(clone)
    clone.delete()
    with pytest.raises(ValueError, match="not this model's"):
        model.embed_samples(samples, "hiera")


def test_embeddings_computed_natively_after_clearing_are_found(
    samples: Any, model: HieraEmbeddingModel, other: HieraEmbeddingModel
) -> None:
    model.embed_samples(samples, "hiera")
    samples.clear_sample_field("hiera")
    samples[:10].compute_embeddings(other, embeddings_field="hiera", num_workers=0)
    with pytest.raises(ValueError, match="not this model's"):
        model.embed_samples(samples, "hiera")

    # Whoever knows what computed them can say so
    with pytest.raises(ValueError, match=r"not this model's.*Nothing was recorded"):
        model.adopt_embeddings(samples, "hiera")

    other.adopt_embeddings(samples, "hiera")
    assert other.embed_samples(samples, "hiera").embedded == 2
    check_embeddings(samples, other)
    with pytest.raises(ValueError, match="differ in pooling"):
        model.embed_samples(samples, "hiera")


def test_record_of_a_cleared_field_does_not_count(
    samples: Any, model: HieraEmbeddingModel, other: HieraEmbeddingModel
) -> None:
    model.embed_samples(samples, "hiera")
    samples.clear_sample_field("hiera")
    assert other.embed_samples(samples, "hiera").embedded == 12
    check_embeddings(samples, other)


def test_other_dimensions_are_found(samples: Any, model: HieraEmbeddingModel) -> None:
    model.embed_samples(samples[:10], "hiera")
    samples.set_values("hiera", [np.ones(7, np.float32)] * 10 + [None] * 2)
    with pytest.raises(ValueError, match="it has 7 dimensions, not 192"):
        model.embed_samples(samples, "hiera")


@pytest.mark.parametrize(
    ("verify", "is_found"), [(3, True), (0, False), (np.int64(2), True)]
)
def test_number_of_embeddings_to_check(
    samples: Any, model: HieraEmbeddingModel, verify: int, is_found: bool
) -> None:
    model.embed_samples(samples, "hiera")
    sample = samples.last()
    sample["hiera"] = sample["hiera"] * 1.1
    sample.save()
    if not is_found:
        assert model.embed_samples(samples, "hiera", verify=verify).skipped == 12
        return

    with pytest.raises(ValueError, match=f"{sample.id}.*relative distance is 0.1"):
        model.embed_samples(samples, "hiera", verify=verify)


@pytest.fixture
def paths_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the images that are read, in turn."""
    paths: list[str] = []
    monkeypatch.setattr(
        prefetch,
        "read_image",
        lambda path, **kwargs: paths.append(path) or read_image(path, **kwargs),
    )
    return paths


def test_checked_embeddings_are_the_first_the_last_and_others(
    samples: Any, model: HieraEmbeddingModel, paths_read: list[str]
) -> None:
    model.embed_samples(samples, "hiera")
    paths_read.clear()
    assert model.embed_samples(samples, "hiera").skipped == 12
    by_id = samples.sort_by("id").values("filepath")
    assert paths_read[:2] == [by_id[0], by_id[-1]]
    assert len({*paths_read}) == len(paths_read) == 3


@pytest.mark.parametrize(("verify", "count"), [(1, 1), (10, 10), (1000, 12)])
def test_as_many_are_checked_as_asked_for(
    samples: Any,
    model: HieraEmbeddingModel,
    paths_read: list[str],
    monkeypatch: pytest.MonkeyPatch,
    verify: int,
    count: int,
) -> None:
    # IDs begin with the time: with a pause between, most of their range is empty
    collection = sample_collection(samples)
    early = ObjectId.from_datetime(datetime(2001, 1, 1, tzinfo=UTC))
    first = collection.find_one_and_delete({}, sort=[("_id", 1)])
    collection.insert_one({**first, "_id": early})
    model.embed_samples(samples, "hiera")
    for is_large in (False, True):
        monkeypatch.setattr(spot_check, "_MANY", 5 if is_large else 20_000)
        paths_read.clear()
        model.embed_samples(samples, "hiera", verify=verify)
        model_paths = [*paths_read]
        assert len({*model_paths}) == len(model_paths) == count

    paths_read.clear()
    model.adopt_embeddings(samples, "hiera", verify=verify)
    assert len({*paths_read}) == count


def test_check_without_readable_files_is_warned_of(
    samples: Any, model: HieraEmbeddingModel, caplog: pytest.LogCaptureFixture
) -> None:
    model.embed_samples(samples, "hiera")
    paths = samples.values("filepath")
    samples.set_values("filepath", [f"{path}-absent.png" for path in paths])
    model.embed_samples(samples, "hiera")
    assert "The embeddings in 'hiera' were not checked" in caplog.text


def test_files_that_cannot_be_read_are_left_out(
    samples: Any, model: HieraEmbeddingModel
) -> None:
    model.embed_samples(samples, "hiera")
    moved = samples[:3]
    moved.set_values(
        "filepath", [f"{path}-absent.png" for path in moved.values("filepath")]
    )
    assert model.embed_samples(samples, "hiera").skipped == 12

    paths = samples.values("filepath")
    samples.set_values("filepath", [f"{path}-absent.png" for path in paths])
    assert model.embed_samples(samples, "hiera").skipped == 12
    with pytest.raises(ValueError, match="none of the files that were tried can be read"):
        model.adopt_embeddings(samples, "hiera")


def test_overwriting_changed_files_is_not_refused(
    samples: Any, digits: list[Digit], model: HieraEmbeddingModel
) -> None:
    model.embed_samples(samples, "hiera")
    changed = samples[:1]
    changed.set_values("filepath", [str(digits[30].path)])
    with pytest.raises(ValueError, match="or the file has changed since"):
        model.embed_samples(samples, "hiera")

    assert model.embed_samples(changed, "hiera", overwrite=True).embedded == 1
    assert model.embed_samples(samples, "hiera").skipped == 12
    check_embeddings(samples, model)


def test_patches_are_checked(samples: Any, model: HieraEmbeddingModel) -> None:
    for sample in samples.iter_samples(autosave=True):
        boxes = ([0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1])
        labels = [fo.Detection(label="part", bounding_box=box) for box in boxes]
        sample["parts"] = fo.Detections(detections=labels)

    model.embed_samples(samples, "hiera", patches_field="parts")
    assert model.embed_samples(samples, "hiera", patches_field="parts").skipped == 24
    sample = samples.last()
    label = sample.parts.detections[1]
    label["hiera"] = -label["hiera"]
    sample.save()
    match = f"{label.id}.*" + _IS_FOREIGN.format("parts.detections.hiera")
    with pytest.raises(ValueError, match=match):
        model.embed_samples(samples, "hiera", patches_field="parts")


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffmpeg")
def test_frames_are_checked(
    dataset: Any, model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    path = tmp_path / "video.mp4"
    source = "testsrc=duration=1:size=128x96:rate=7"
    command = ["ffmpeg", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    dataset.add_sample(fo.Sample(filepath=str(path)))
    dataset.compute_embeddings(model, embeddings_field="frames.hiera", batch_size=4)
    model.adopt_embeddings(dataset, "frames.hiera")
    assert model.embed_samples(dataset, "hiera").skipped == 7
    sample = dataset.first()
    frame = sample.frames[2]
    frame["hiera"] = frame["hiera"] + 1
    sample.save()
    with pytest.raises(ValueError, match=_IS_FOREIGN.format("frames.hiera")):
        model.embed_samples(dataset, "hiera")


def test_grouped_datasets_are_checked(
    dataset: Any, digits: list[Digit], model: HieraEmbeddingModel
) -> None:
    dataset.add_group_field("group", default="left")
    for left, right in zip(digits[:4], digits[4:8], strict=True):
        group = fo.Group()
        elements = (("left", left), ("right", right))
        dataset.add_samples(
            [fo.Sample(filepath=str(d.path), group=group.element(n)) for n, d in elements]
        )

    right = dataset.select_group_slices("right")
    model.embed_samples(right, "hiera")
    right.set_values("hiera", [np.ones(192, np.float32)] * 4)
    with pytest.raises(ValueError, match="not this model's"):
        model.embed_samples(dataset.select_group_slices("left"), "hiera")


@pytest.mark.parametrize(
    ("dtype", "engine"),
    [
        ("bfloat16", "torch"),
        ("bfloat16", "openvino"),
        ("float32", "openvino"),
    ],
)
def test_rounding_is_no_difference(
    samples: Any, dtype: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")

    say_bfloat16(monkeypatch, dtype == "bfloat16")
    model = fiftyone_hiera.load_model(NANO, dtype=dtype, engine=engine)
    model.embed_samples(samples, "hiera", batch_size=7)
    assert model.embed_samples(samples, "hiera", verify=12).skipped == 12


def test_adoption_after_an_export(
    samples: Any, model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    model.embed_samples(samples[:10], "hiera")
    paths, embeddings = samples[:10].values(["filepath", "hiera"])
    imported = fo.Dataset()
    imported.add_samples(
        [
            fo.Sample(filepath=path, hiera=e)
            for path, e in zip(paths, embeddings, strict=True)
        ]
    )
    imported.add_sample(fo.Sample(filepath=samples.last().filepath))
    with pytest.raises(ValueError, match=r"10 embeddings with no .*adopt_embeddings\(\)"):
        model.embed_samples(imported, "hiera")

    model.adopt_embeddings(imported, "hiera")
    assert imported.get_field("hiera").info == samples.get_field("hiera").info
    report = model.embed_samples(imported, "hiera")
    assert (report.embedded, report.skipped) == (1, 10)
    imported.delete()


def test_adoption_is_refused(samples: Any, model: HieraEmbeddingModel) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="'hiera' holds no embeddings"):
            model.adopt_embeddings(samples, "hiera")

        samples.add_sample_field("hiera", fo.VectorField)

    for verify in (0, True, None):
        with pytest.raises(ValueError, match=f"verify {verify}: expected an integer"):
            model.adopt_embeddings(samples, "hiera", verify=verify)

    samples.compute_embeddings(model, embeddings_field="hiera", num_workers=0)
    field = samples.get_field("hiera")
    field.read_only = True
    field.save()
    with pytest.raises(ValueError, match="read-only"):
        model.adopt_embeddings(samples, "hiera")

    assert Target(samples, "hiera").count_embeddings() == (12, 12)
    assert samples.get_field("hiera").info is None
