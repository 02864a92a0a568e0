"""Runs of embed_samples, on a real database and real files."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.core.media as fom
import numpy as np
import pytest
import torch
from digit_samples import check_embeddings
from fiftyone import ViewField as F
from PIL import Image
from random_hiera import make_config, make_hiera
from safetensors.torch import load_file, save_file

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.hiera.oom import Halving
from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.runs.report import EmbeddingError
from fiftyone_hiera.runs.target import Target

NANO = "hiera-nano-digits"


@pytest.fixture
def samples(dataset: Any, digits: list[Digit]) -> Any:
    """37 digits, which is no multiple of a batch, in no order of their files."""
    order = np.random.default_rng(51).permutation(37)
    dataset.add_samples([fo.Sample(filepath=str(digits[i].path)) for i in order])
    return dataset


@pytest.fixture
def other() -> Iterator[Any]:
    """A second empty dataset."""
    dataset = fo.Dataset()
    yield dataset
    dataset.delete()


def _absent(sample: fo.Sample) -> str:
    path = Path(sample.filepath)
    return str(path.with_name(f"{path.stem}-absent.png"))


def test_field_that_was_lost_from_memory(
    samples: Any, model: HieraEmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Target.store

    def store_and_lose(target: Target, *args: Any) -> Any:
        stored = store(target, *args)
        if samples.get_field("hiera") is not None:
            samples._sample_doc_cls._undeclare_field("hiera")  # as reloads elsewhere may

        return stored

    monkeypatch.setattr(Target, "store", store_and_lose)
    model.embed_samples(samples, "hiera", batch_size=64)
    check_embeddings(samples, model)


@pytest.mark.parametrize(
    ("batch_size", "num_workers"), [(None, None), (1, 9), (16, 0), (64, 2)]
)
def test_everything_is_embedded(
    samples: Any,
    model: HieraEmbeddingModel,
    batch_size: int | None,
    num_workers: int | None,
) -> None:
    report = model.embed_samples(
        samples, "hiera", batch_size=batch_size, num_workers=num_workers
    )
    assert (report.embedded, report.skipped, report.failed) == (37, 0, [])
    assert report.images_per_second == pytest.approx(37 / report.seconds)
    assert isinstance(samples.get_field("hiera"), fo.VectorField)
    check_embeddings(samples, model)


def test_batches_are_full_and_in_order_of_the_ids(
    samples: Any, model: HieraEmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    forward = model.embedder._embed_batch
    monkeypatch.setattr(
        model.embedder, "_embed_batch", lambda x: sizes.append(len(x)) or forward(x)
    )
    paths: list[str] = []
    monkeypatch.setattr(
        "fiftyone_hiera.embedding.prefetch.read_image",
        lambda path, *_, **__: paths.append(path) or Image.open(path),
    )
    model.embed_samples(samples, "hiera", batch_size=16, num_workers=0)
    assert sizes == [16, 16, 5]
    assert paths == samples.sort_by("id").values("filepath")


def test_second_run_skips_what_there_is(samples: Any, model: HieraEmbeddingModel) -> None:
    first = model.embed_samples(samples[:20], "hiera", batch_size=8)
    second = model.embed_samples(samples, "hiera", batch_size=8)
    third = model.embed_samples(samples, "hiera")
    done = [(report.embedded, report.skipped) for report in (first, second, third)]
    assert done == [(20, 0), (17, 20), (0, 37)]
    check_embeddings(samples, model)


def test_overwrite_embeds_again(samples: Any, model: HieraEmbeddingModel) -> None:
    model.embed_samples(samples, "hiera")
    wrong = np.zeros(model.embedding_dim, np.float32)
    samples.set_values("hiera", [wrong] * len(samples))
    report = model.embed_samples(samples, "hiera", overwrite=True)
    assert (report.embedded, report.skipped) == (37, 0)
    check_embeddings(samples, model)


def test_overwriting_keeps_embeddings_that_cannot_be_computed_again(
    samples: Any, model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    model.embed_samples(samples, "hiera")
    before = samples.first().hiera
    sample = samples.first()
    sample.filepath = str(tmp_path / "moved.png")
    sample.save()
    report = model.embed_samples(samples, "hiera", overwrite=True)
    assert (report.embedded, len(report.failed)) == (36, 1)
    assert np.array_equal(samples.first().hiera, before)


def test_provenance_is_recorded(samples: Any, model: HieraEmbeddingModel) -> None:
    samples.add_sample_field("hiera", fo.VectorField, info={"mine": "kept"})
    model.embed_samples(samples, "hiera")
    samples.reload()
    assert samples.get_field("hiera").info == {
        "mine": "kept",
        "provenance_version": 2,
        "made_with": "fiftyone-hiera 0.2.0",
        "checkpoint": NANO,
        "revision": "unknown",
        "sha256": "9acba5f0399ad6a7d8c4cbb0f9ddbc7755537ab071b1079cf1aa9a8e85b6045c",
        "pooling": "mean",
        "normalize": False,
        "dtype": "float32",
        "engine": "torch",
        "fast_decoding": False,
        "stage": 4,
        "squash": False,
        "preprocessing": {
            "resize": [73, 73],
            "crop": [64, 64],
            "resample": 3,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "squash": False,
        },
    }


def _another_checkpoint(nano: Path, folder: Path) -> str:
    config = make_config(depths=[1, 1, 2, 1], embed_dim=24, image_size=(64, 64))
    config.num_heads = [1, 2, 4, 8]
    make_hiera(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    nano_tensors = load_file(nano)
    assert set(tensors) == set(nano_tensors)
    changed = {name: tensor * 1.001 for name, tensor in nano_tensors.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "cls"},
        "checkpoint",
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {"normalize": True},
                {"dtype": "bfloat16"},
                {"fast_decoding": True},
                {"stage": 3},
                {"image_size": (96, 64)},
                {"squash": True},
            )
        ),
    ],
)
def test_field_with_other_settings_is_refused(
    samples: Any, model: HieraEmbeddingModel, nano: Path, tmp_path: Path, options: Any
) -> None:
    if options == "checkpoint":
        options = {"checkpoint": _another_checkpoint(nano, tmp_path)}

    other = fiftyone_hiera.load_model(NANO, **{"dtype": "float32", **options})
    model.embed_samples(samples[:20], "hiera")
    with pytest.raises(ValueError, match=r"(?s)20 embeddings.*The field:.*This run:") as e:
        other.embed_samples(samples, "hiera")

    (name, value), *_ = options.items()
    samples.reload()
    info = samples.get_field("hiera").info
    held = {"pooling": "mean", "normalize": "False", "dtype": "float32", "checkpoint": NANO}
    held |= {"fast_decoding": "False", "stage": "4"}
    assert f"The field: checkpoint {NANO}" in str(e.value)
    if name in ("image_size", "squash"):  # options that the preprocessing follows
        assert str(e.value).count("preprocessing ") == 2
    else:
        assert f"{name} {held[name]}" in str(e.value)
        assert f"{name} {value}" in str(e.value)

    advised = f"To add to it, load the model with {name}={info.get(name)!r}"
    assert (advised in str(e.value)) == (name != "checkpoint")
    assert samples.count("hiera") == 20

    # Never mixed: neither by a part of the samples nor by a shard
    with pytest.raises(ValueError, match="only some would be overwritten"):
        other.embed_samples(samples[10:], "hiera", overwrite=True)

    with pytest.raises(ValueError, match="only some would be overwritten"):
        other.embed_samples(samples, "hiera", overwrite=True, shard=(0, 2))

    check_embeddings(samples[:20], model)
    assert other.embed_samples(samples, "hiera", overwrite=True).embedded == 37
    check_embeddings(samples, other)
    with pytest.raises(ValueError, match="computed with different settings"):
        model.embed_samples(samples, "hiera")


def test_overwriting_with_other_settings_leaves_no_old_embedding(
    samples: Any, model: HieraEmbeddingModel
) -> None:
    model.embed_samples(samples, "hiera")
    sample = samples.first()
    sample.filepath = _absent(sample)
    sample.save()
    other = fiftyone_hiera.load_model(NANO, pooling="cls", dtype="float32")
    other.embed_samples(samples, "hiera", overwrite=True)
    assert samples.exists("hiera", False).values("id") == [sample.id]


def test_nothing_is_overwritten_before_the_first_embedding(
    samples: Any, model: HieraEmbeddingModel
) -> None:
    model.embed_samples(samples, "hiera")
    paths = samples.values("filepath")
    samples.set_values("filepath", [path + ".unmounted.png" for path in paths])
    other = fiftyone_hiera.load_model(NANO, pooling="cls", dtype="float32")
    with pytest.raises(RuntimeError, match=r"All inputs failed \(37 of 37\)"):
        other.embed_samples(samples, "hiera", overwrite=True)

    samples.set_values("filepath", paths)
    check_embeddings(samples, model)
    assert model.embed_samples(samples, "hiera").skipped == 37


def test_same_weights_under_another_name_go_on(
    samples: Any, model: HieraEmbeddingModel, nano: Path, tmp_path: Path
) -> None:
    folder = _another_checkpoint(nano, tmp_path)
    shutil.copy(nano, tmp_path / "model.safetensors")
    model.embed_samples(samples[:20], "hiera")
    copy = fiftyone_hiera.load_model(NANO, checkpoint=folder, dtype="float32")
    assert copy.embed_samples(samples, "hiera").embedded == 17


def test_embeddings_with_no_recorded_provenance_are_refused(
    samples: Any, model: HieraEmbeddingModel
) -> None:
    samples[:5].compute_embeddings(model, embeddings_field="hiera", num_workers=0)
    with pytest.raises(ValueError, match="5 embeddings with no recorded provenance"):
        model.embed_samples(samples, "hiera")

    assert model.embed_samples(samples, "hiera", overwrite=True).embedded == 37


_TYPES = "Detection, Detections, Polyline, Polylines"


@pytest.mark.parametrize(
    ("field", "patches_field", "message"),
    [
        ("filepath", None, "'filepath' is of type StringField, not VectorField: choose"),
        ("part", None, "'part' is of type Detection, not VectorField"),
        ("tags", None, "'tags' is of type ListField, not VectorField"),
        ("label", "part", r"'part\.label' is of type StringField"),
        ("e", "filepath", f"'filepath': the field is of type StringField.*{_TYPES}"),
        ("e", "truth", r"type Classification\. Valid are .*: \['part', 'parts'\]"),
        ("e", "absent", r"Invalid patches_field 'absent': the field does not exist"),
        ("e", "parts.detections", "the field is of type ListField"),
        ("e", 3, "Invalid patches_field 3: expected the name of a field"),
        ("parts.detections.e", "parts", "attribute of the labels, pass 'e'"),
        ("parts.e", "parts", "attribute of the labels, pass 'e'"),
        ("part.e", "parts", r"expected a name without '\.'"),
        ("parts.", "parts", r"expected a name without '\.'"),
        (".e", None, r"expected a name without '\.'"),
    ],
)
def test_other_fields_are_refused(
    samples: Any, model: HieraEmbeddingModel, field: str, patches_field: Any, message: str
) -> None:
    sample = samples.first()
    box, *_ = _boxes()
    sample["part"], sample["parts"] = box, fo.Detections(detections=_boxes())
    sample["truth"] = fo.Classification(label="7")
    sample.save()
    with pytest.raises(ValueError, match=message) as error:
        model.embed_samples(samples, field, patches_field=patches_field)

    assert "class" not in str(error.value)


def test_everything_bad_raises_and_says_why(
    samples: Any, model: HieraEmbeddingModel
) -> None:
    samples.set_values("filepath", [p + ".absent.png" for p in samples.values("filepath")])
    with pytest.raises(RuntimeError, match=r"(?s)37 of 37.*No such file") as error:
        model.embed_samples(samples, "hiera", failure_tag="bad")

    assert len(error.value.report.failed) == 37
    assert str(error.value).count("No such file") == 10
    assert "and 27 more" in str(error.value)
    assert samples.count_sample_tags() == {"bad": 37}


def test_leftovers_that_fail_again_do_not_raise(
    samples: Any, model: HieraEmbeddingModel
) -> None:
    sample = samples.first()
    sample.filepath = _absent(sample)
    sample.save()
    model.embed_samples(samples, "hiera")
    report = model.embed_samples(samples, "hiera")
    assert (report.embedded, report.skipped, len(report.failed)) == (0, 36, 1)


def test_stops_at_the_first_failure(samples: Any, model: HieraEmbeddingModel) -> None:
    by_id = samples.sort_by("id")
    sample = by_id.skip(20).first()
    sample.filepath = _absent(sample)
    sample.save()
    with pytest.raises(RuntimeError, match=r"-absent\.png': No such file") as error:
        model.embed_samples(
            samples, "hiera", batch_size=8, skip_failures=False, failure_tag="bad"
        )

    assert error.value.report.embedded == 20
    assert by_id.exists("hiera").values("id") == by_id.values("id")[:20]
    assert samples.match_tags("bad").values("id") == [sample.id]


def test_failure_tag_is_removed_after_success(
    samples: Any, model: HieraEmbeddingModel
) -> None:
    path = samples.first().filepath
    sample = samples.first()
    sample.filepath = _absent(sample)
    sample.tags = ["mine"]
    sample.save()
    model.embed_samples(samples, "hiera", failure_tag="bad")
    assert samples.count_sample_tags() == {"mine": 1, "bad": 1}
    sample.reload()
    sample.filepath = path
    sample.save()
    model.embed_samples(samples, "hiera", failure_tag="bad")
    assert samples.count_sample_tags() == {"mine": 1}


@pytest.mark.parametrize("failing", [1, 2, 5])
def test_failed_write_stops_the_run(
    samples: Any,
    model: HieraEmbeddingModel,
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
) -> None:
    store = Target.store
    calls: list[int] = []

    def fail(*args: Any) -> Any:
        calls.append(len(calls) + 1)
        if calls[-1] == failing:
            raise ValueError("the server said no")

        return store(*args)

    monkeypatch.setattr(Target, "store", fail)
    with pytest.raises(
        RuntimeError, match="refused to store embeddings: the server"
    ) as error:
        model.embed_samples(samples, "hiera", batch_size=8)

    stored = 8 * (failing - 1)
    assert calls == list(range(1, failing + 1))
    assert samples.count("hiera") == error.value.report.embedded == stored


def test_shards_are_disjoint_and_complete(samples: Any, model: HieraEmbeddingModel) -> None:
    reports = [
        model.embed_samples(samples, "hiera", shard=(index, 3)) for index in range(3)
    ]
    assert sum(report.embedded for report in reports) == 37
    assert min(report.embedded for report in reports) > 0
    again = [
        model.embed_samples(samples, "hiera", shard=(index, 3)).skipped
        for index in range(3)
    ]
    assert again == [report.embedded for report in reports]
    check_embeddings(samples, model)


def test_views(samples: Any, model: HieraEmbeddingModel) -> None:
    shuffled = samples.shuffle(seed=51).limit(20)
    samples.save_view("mine", shuffled)
    assert model.embed_samples(samples.load_saved_view("mine"), "hiera").embedded == 20
    assert sorted(samples.exists("hiera").values("id")) == sorted(shuffled.values("id"))
    assert model.embed_samples(samples.skip(30), "other").embedded == 7
    check_embeddings(samples.skip(30), model, "other")


def _hide(samples: Any, path: str) -> Any:
    return samples.exclude_fields(path) if samples.get_field(path) else samples.view()


VIEWS: dict[str, tuple[Any, str | None]] = {
    "files": (lambda s: s.set_field("filepath", F("other")), None),
    "sorted files": (lambda s: s.sort_by("id").set_field("filepath", F("other")), None),
    "boxes": (
        lambda s: s.limit(2).set_field("parts.detections.bounding_box", [0, 0, 1, 1]),
        "parts",
    ),
    "default fields": (lambda s: s.select_fields(), None),
    "another field": (lambda s: s.limit(2).select_fields("parts"), None),
    "all other fields": (lambda s: _hide(s, "hiera").limit(2), None),
    "no vectors": (lambda s: s.exclude_fields(meta_filter={"type": "VectorField"}), None),
    "labels": (lambda s: s.select_fields("parts"), "parts"),
    "names of labels": (lambda s: s.select_fields("parts.detections.label"), "parts"),
    "labels without vectors": (lambda s: _hide(s, "parts.detections.hiera"), "parts"),
}


def test_views_are_embedded_as_fiftyone_does(
    dataset: Any, model: HieraEmbeddingModel, digits: list[Digit]
) -> None:
    paths = [str(digit.path) for digit in digits[:3]]
    for path, other_path in zip(paths, paths[::-1], strict=True):
        parts = fo.Detections(detections=_boxes())
        dataset.add_sample(fo.Sample(filepath=path, other=other_path, parts=parts))

    for name, (make_view, field) in VIEWS.items():
        view = make_view(dataset)
        count = len(view) * (2 if field else 1)
        assert model.embed_samples(view, "hiera", patches_field=field).embedded == count
        again = model.embed_samples(make_view(dataset), "hiera", patches_field=field)
        assert (again.embedded, again.skipped) == (0, count), name
        path = f"{field}.detections.hiera" if field else "hiera"
        stored = dataset.select(view.values("id")).values(path, unwind=True)
        if field is None:
            native = view.compute_embeddings(model, num_workers=0)
        else:
            patches = view.compute_patch_embeddings(model, field, num_workers=0)
            native = np.concatenate([*patches.values()])

        assert np.abs(np.stack(stored) - native).max() < 1e-4, name
        dataset.delete_sample_field(path)


def test_view_that_repeats_samples(samples: Any, model: HieraEmbeddingModel) -> None:
    view = samples.concat(samples)
    assert model.embed_samples(view, "hiera").embedded == 37
    assert model.embed_samples(view, "hiera").skipped == 37


def test_nothing_to_embed(dataset: Any, samples: Any, model: HieraEmbeddingModel) -> None:
    for empty in (samples.limit(0), samples.match(F("filepath") == "none")):
        report = model.embed_samples(empty, "hiera")
        assert (report.embedded, report.skipped, report.failed) == (0, 0, [])

    assert dataset.get_field("hiera") is None, "an empty field was left"
    assert dataset.limit(0).compute_embeddings(model, num_workers=0).size == 0


def test_empty_dataset(dataset: Any, model: HieraEmbeddingModel) -> None:
    assert model.embed_samples(dataset, "hiera").embedded == 0


def _boxes() -> list[Any]:
    boxes = ([0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1])
    return [fo.Detection(label="part", bounding_box=box) for box in boxes]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_patches(samples: Any, model: HieraEmbeddingModel, batch_size: int) -> None:
    samples = samples.limit(11)
    for sample in samples.iter_samples(autosave=True):
        sample["parts"] = fo.Detections(detections=_boxes())

    report = model.embed_samples(
        samples, "hiera", patches_field="parts", batch_size=batch_size
    )
    assert report.embedded == 22
    assert isinstance(samples.get_field("parts.detections.hiera"), fo.VectorField)
    native = samples.compute_patch_embeddings(model, "parts", num_workers=0)
    for sample in samples:
        stored = np.stack([patch.hiera for patch in sample.parts.detections])
        assert np.abs(stored - native[sample.id]).max() < 1e-4
        whole = model.embed(Image.open(sample.filepath))
        assert np.abs(stored[1] - whole).max() < 1e-4

    assert model.embed_samples(samples, "hiera", patches_field="parts").skipped == 22


@pytest.mark.parametrize("kind", ["Detection", "Polyline", "Polylines"])
def test_patches_of_other_labels(
    samples: Any, model: HieraEmbeddingModel, kind: str
) -> None:
    corners = [[(0.1, 0.2), (0.6, 0.2), (0.3, 0.9)]]
    labels = {
        "Detection": fo.Detection(bounding_box=[0.1, 0.2, 0.5, 0.7]),
        "Polyline": fo.Polyline(points=corners),
        "Polylines": fo.Polylines(polylines=[fo.Polyline(points=corners)]),
    }
    view = samples[:5]
    for sample in view.iter_samples(autosave=True):
        sample["part"] = labels[kind].copy()

    assert model.embed_samples(samples, "hiera", patches_field="part").embedded == 5
    native = view.compute_patch_embeddings(model, "part", num_workers=0)
    path = "part.polylines.hiera" if kind == "Polylines" else "part.hiera"
    for sample_id, embedding in zip(view.values("id"), view.values(path), strict=True):
        (stored,) = embedding if kind == "Polylines" else [embedding]
        assert np.abs(stored - native[sample_id][0]).max() < 1e-4


def test_only_the_bad_patch_fails(samples: Any, model: HieraEmbeddingModel) -> None:
    sample = samples.first()
    outside = fo.Detection(bounding_box=[1.5, 0.5, 0.1, 0.1])
    shapeless = fo.Detection()
    sample["parts"] = fo.Detections(detections=[*_boxes(), outside, shapeless])
    sample.save()
    report = model.embed_samples(samples, "hiera", patches_field="parts", failure_tag="bad")
    assert report.embedded == 2
    assert [failure.id for failure in report.failed] == [outside.id, shapeless.id]
    assert {failure.sample_id for failure in report.failed} == {sample.id}
    reasons = [failure.reason for failure in report.failed]
    assert "outside of the image" in reasons[0]
    assert "no bounding box" in reasons[1]
    assert all(repr(sample.filepath) in reason for reason in reasons)
    assert samples.match_tags("bad").values("id") == [sample.id]


def test_only_the_patches_of_the_view(samples: Any, model: HieraEmbeddingModel) -> None:
    sample = samples.first()
    cat, dog = _boxes()
    cat.label, dog.label = "cat", "dog"
    sample["parts"] = fo.Detections(detections=[cat, dog])
    sample.save()
    view = samples.filter_labels("parts", F("label") == "dog")
    assert model.embed_samples(view, "hiera", patches_field="parts").embedded == 1
    stored = samples.values("parts.detections.hiera")[0]
    assert [embedding is None for embedding in stored] == [True, False]


def _video(path: Path, seconds: int = 3) -> str:
    source = f"testsrc=duration={seconds}:size=128x96:rate=7"
    command = ["ffmpeg", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return str(path)


_needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffprobe") is None, reason="FiftyOne reads videos by ffmpeg"
)


@_needs_ffmpeg
@pytest.mark.parametrize("num_workers", [None, pytest.param(0, marks=pytest.mark.slow)])
def test_frames(
    dataset: Any, model: HieraEmbeddingModel, tmp_path: Path, num_workers: int | None
) -> None:
    for name in ("a.mp4", "b.mp4"):
        dataset.add_sample(fo.Sample(filepath=_video(tmp_path / name)))

    native = dataset.compute_embeddings(model, batch_size=4)
    dataset.compute_embeddings(model, embeddings_field="frames.native", batch_size=4)
    report = model.embed_samples(
        dataset[:1], "frames.hiera", batch_size=4, num_workers=num_workers
    )
    assert (report.embedded, report.skipped) == (21, 0)
    report = model.embed_samples(dataset, "hiera", batch_size=4, num_workers=num_workers)
    assert (report.embedded, report.skipped) == (21, 21)
    for sample in dataset:
        frames = sample.frames.values()
        stored = np.stack([[frame.hiera, frame.native] for frame in frames])
        assert stored.shape == (21, 2, 192)
        assert np.abs(stored - native[sample.id][:, None]).max() < 1e-4
        assert not np.allclose(stored[0], stored[-1], atol=1e-3)

    sample = dataset.last()
    sample.frames[5]["parts"] = fo.Detections(detections=_boxes())
    sample.save()
    report = model.embed_samples(
        dataset, "hiera", patches_field="parts", num_workers=num_workers
    )
    assert report.embedded == 2
    sample.reload()
    frame = sample.frames[5]
    assert np.abs(frame.parts.detections[1].hiera - frame.hiera).max() < 1e-4
    info = dataset.get_field("frames.parts.detections.hiera").info
    assert info["checkpoint"] == NANO

    # Boxes that only views show
    view = dataset.set_field("frames.parts.detections.bounding_box", [0, 0, 1, 1])
    for name, shown in (("paged", view), ("read", view.sort_by("id").skip(1))):
        for count in (2, 0):
            report = model.embed_samples(shown, name, patches_field="parts")
            assert report.embedded == count

        sample.reload()
        (first, second) = sample.frames[5].parts.detections
        assert np.abs(first[name] - frame.hiera).max() < 1e-4
        assert np.abs(second[name] - frame.hiera).max() < 1e-4

    hidden = dataset.select_fields().limit(1)
    for count in (21, 0):
        assert model.embed_samples(hidden, "other").embedded == count


@_needs_ffmpeg
def test_bad_videos(dataset: Any, model: HieraEmbeddingModel, tmp_path: Path) -> None:
    whole = _video(tmp_path / "whole.mkv", seconds=9)
    cut, short = tmp_path / "cut.mkv", tmp_path / "short.mkv"
    cut.write_bytes(Path(whole).read_bytes()[:12_000])
    short.write_bytes(b"not a video")
    os.mkfifo(tmp_path / "fifo.mkv")
    paths = [
        str(cut),
        str(short),
        str(tmp_path / "missing.mkv"),
        str(tmp_path / "fifo.mkv"),
        whole,
    ]
    dataset.add_samples([fo.Sample(filepath=path) for path in paths])
    report = model.embed_samples(dataset, "hiera", batch_size=8, failure_tag="bad")
    reasons = {failure.path: failure.reason for failure in report.failed}
    assert set(reasons) == set(paths[:4])
    assert "FIFO" in reasons[paths[3]]
    assert "ffprobe finds no video in it" in reasons[str(short)]
    assert "from frame" in reasons[str(cut)]
    assert "No such file" in reasons[paths[2]]
    assert set(dataset.match_tags("bad").values("filepath")) == set(paths[:4])
    assert dataset.last().frames.last().hiera.shape == (192,)
    assert all("\n" not in reason for reason in reasons.values())
    with pytest.raises(ValueError, match=r"SetField\(.* changes the paths of videos"):
        model.embed_samples(dataset.limit(1).set_field("filepath", whole), "hiera")

    # The frames before the cut were whole
    first = dataset.first().frames.first().hiera
    assert np.abs(first - dataset.last().frames.first().hiera).max() < 1e-4


@_needs_ffmpeg
def test_rotated_video(dataset: Any, model: HieraEmbeddingModel, tmp_path: Path) -> None:
    upright, turned, noted = (tmp_path / f"{name}.mp4" for name in ("up", "turn", "note"))
    _video(upright, seconds=1)
    turn, note = ["-vf", "transpose=2"], ["-c", "copy", "-metadata:s:v", "rotate=270"]
    for source, options, target in ((upright, turn, turned), (turned, note, noted)):
        command = ["ffmpeg", "-i", str(source), *options, str(target)]
        subprocess.run(command, check=True, capture_output=True)

    # A phone's video: turned as it is stored, with a note of how to turn it back
    dataset.add_samples([fo.Sample(filepath=str(path)) for path in (upright, noted)])
    model.embed_samples(dataset, "hiera")
    one, other = (np.stack(embeddings) for embeddings in dataset.values("frames.hiera"))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    assert ((one * other).sum(axis=1) / lengths).min() > 0.99


def test_groups(
    dataset: Any, model: HieraEmbeddingModel, digits: list[Digit], other: Any
) -> None:
    dataset.add_group_field("group", default="left")
    for left, right in zip(digits[:5], digits[5:10], strict=True):
        group = fo.Group()
        dataset.add_samples(
            [
                fo.Sample(filepath=str(left.path), group=group.element("left")),
                fo.Sample(filepath=str(right.path), group=group.element("right")),
            ]
        )

    with pytest.raises(ValueError, match="select_group_slices"):
        model.embed_samples(dataset, "hiera")

    right_slice = dataset.select_group_slices("right")
    assert model.embed_samples(right_slice, "hiera", failure_tag="bad").embedded == 5
    check_embeddings(right_slice, model)
    assert dataset.select_group_slices("left").count("hiera") == 0
    both = dataset.select_group_slices(["left", "right"])
    report = model.embed_samples(both, "hiera")
    assert (report.embedded, report.skipped) == (5, 5)
    for view in (right_slice.select_fields(), dataset.select_fields()):
        view = view.select_group_slices("left") if view.media_type == "group" else view
        for embedded in (5, 0):
            assert model.embed_samples(view, "hidden").embedded == embedded


@pytest.mark.parametrize("is_ordered", [False, True])
def test_dynamic_groups(samples: Any, model: HieraEmbeddingModel, is_ordered: bool) -> None:
    samples.set_values("scene", [f"scene {i % 5}" for i in range(37)])
    samples.set_values("number", list(range(37)))
    view = samples.group_by("scene", order_by="number" if is_ordered else None)
    assert model.embed_samples(view.limit(2), "hiera", failure_tag="bad").embedded == 16
    report = model.embed_samples(view, "hiera")
    assert (report.embedded, report.skipped) == (21, 16)
    check_embeddings(samples, model)
    hidden = samples.select_fields(["scene", "number"]).group_by("scene")
    for embedded in (37, 0):
        assert model.embed_samples(hidden, "hidden").embedded == embedded


def test_dynamic_groups_that_would_lose_what_the_view_shows_are_refused(
    samples: Any, model: HieraEmbeddingModel
) -> None:
    samples.set_values("parts", [fo.Detections(detections=_boxes()) for _ in samples])
    grouped = samples.group_by("filepath")
    part = F("label") == "part"
    for view, stage, field in (
        (grouped.set_field("filepath", "/a.png"), "SetField", None),
        (grouped.mongo([{"$limit": 3}]), "Mongo", None),
        (grouped.filter_labels("parts", part).limit(3), "FilterLabels", "parts"),
    ):
        with pytest.raises(ValueError, match=rf"stage {stage}\(.*put it before group_by"):
            model.embed_samples(view, "hiera", patches_field=field)

    filtered = samples.filter_labels("parts", part).group_by("filepath").limit(3)
    assert model.embed_samples(filtered, "hiera", patches_field="parts").embedded == 6
    assert model.embed_samples(grouped.filter_labels("parts", part), "hiera").embedded == 37


def test_dynamic_groups_of_groups_are_refused(
    dataset: Any, model: HieraEmbeddingModel, digits: list[Digit]
) -> None:
    dataset.add_group_field("group", default="left")
    paths = [str(digit.path) for digit in digits[:2]]
    left, right = fo.Group().element("left"), fo.Group().element("right")
    dataset.add_samples(
        [fo.Sample(filepath=p, group=g) for p, g in zip(paths, (left, right), strict=True)]
    )
    for view in (dataset, dataset.select_group_slices("left")):
        with pytest.raises(ValueError, match=r"dynamic groups of a grouped dataset"):
            model.embed_samples(view.group_by("filepath"), "hiera")

        flat = dataset.select_group_slices("left").group_by("filepath", flat=True)
        model.embed_samples(flat, "hiera")


def test_views_of_copies_are_refused(dataset: Any, model: HieraEmbeddingModel) -> None:
    digits = fo.Detections(detections=[fo.Detection(bounding_box=[0, 0, 1, 1])])
    video = fo.Sample(filepath="/video.mp4")
    video.frames[1] = fo.Frame(filepath="/1.png", digits=digits, others=digits)
    dataset.add_sample(video)
    frames = dataset.to_frames()
    images = frames.clone()
    images.evaluate_detections("digits", gt_field="others", eval_key="even")
    for view in (
        frames,
        dataset.to_clips([[[1, 1]]]),
        images.to_patches("digits"),
        images.to_evaluation_patches("even"),
    ):
        for copies in (view, view.limit(1)):
            with pytest.raises(ValueError, match="Views of patches, frames or clips are"):
                model.embed_samples(copies, "hiera")

    images.delete()


def test_what_cannot_be_embedded_is_refused(
    samples: Any, other: Any, model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    sample = samples.first()
    sample["parts"] = fo.Detections(detections=_boxes())
    sample.save()
    with pytest.raises(ValueError, match="patches_field="):
        model.embed_samples(samples.to_patches("parts"), "hiera")

    with pytest.raises(ValueError, match="dataset or view, found list"):
        model.embed_samples([sample], "hiera")

    samples.set_values("others", [fo.Detections(detections=_boxes()) for _ in samples])
    for view in (samples, samples.limit(3)):
        view = view.set_field("parts", F("others"))
        with pytest.raises(
            ValueError, match="dataset does not store there: pass the field"
        ):
            model.embed_samples(view, "hiera", patches_field="parts")

    others = {"$group": {"_id": "b", "filepath": {"$first": "$filepath"}}}
    with pytest.raises(ValueError, match="a sample 'b' that the dataset does not store"):
        model.embed_samples(samples.mongo([others]), "hiera")

    view = samples.set_field("filepath", F("absent"), _allow_missing=True)
    with pytest.raises(RuntimeError, match="All inputs failed"):
        model.embed_samples(view, "hiera")

    with pytest.raises(ValueError, match="embeddings_field '': expected the name of a"):
        model.embed_samples(samples, "")

    with pytest.raises(ValueError, match="give an embeddings_field or a brain_key"):
        model.embed_samples(samples)

    other.add_sample(fo.Sample(filepath=str(tmp_path / "cloud.pcd")))
    with pytest.raises(fom.MediaTypeError, match="point-cloud"):
        model.embed_samples(other, "hiera")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": "32"}, "batch_size '32'"),
        ({"batch_size": 2.5}, r"batch_size 2\.5: expected an integer of at least 1"),
        ({"batch_size": True}, "batch_size True: expected an integer of at least 1"),
        ({"num_workers": False}, "num_workers False: expected an integer"),
        ({"overwrite": "no"}, "overwrite 'no': expected True or False"),
        ({"overwrite": None}, "overwrite None: expected True or False"),
        ({"skip_failures": 0}, "skip_failures 0: expected True or False"),
        ({"verify": -1}, "verify -1: expected an integer of at least 0"),
        ({"verify": True}, "verify True: expected an integer of at least 0"),
        ({"verify": None}, "verify None: expected an integer of at least 0"),
        ({"progress": 5}, "progress 5: expected True, False, None or a function"),
        ({"progress": "yes"}, "progress 'yes': expected True, False"),
        ({"shard": (False, True)}, r"shard \(False, True\)"),
        ({"num_workers": -1}, "num_workers -1"),
        ({"shard": 3}, r"shard 3: expected \(k, n\)"),
        ({"shard": (0, 2.0)}, r"shard \(0, 2\.0\)"),
        ({"failure_tag": ""}, "failure_tag ''"),
        ({"failure_tag": ["a"]}, r"failure_tag \['a'\]"),
        ({"shard": (3, 3)}, r"shard \(3, 3\).*0 <= k < n"),
        ({"shard": (-1, 3)}, r"shard \(-1, 3\)"),
    ],
)
def test_invalid_options(
    samples: Any, model: HieraEmbeddingModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.embed_samples(samples, "hiera", **options)

    assert not samples.has_field("hiera")


def test_integers_and_booleans_of_numpy(samples: Any, model: HieraEmbeddingModel) -> None:
    options: dict[str, Any] = {
        "batch_size": np.int64(2),
        "num_workers": np.int32(1),
        "shard": (np.int64(0), np.uint8(1)),
        "verify": np.int64(1),
        "overwrite": np.bool_(True),
    }
    for _ in range(2):
        assert model.embed_samples(samples[:5], "hiera", **options).embedded == 5


def test_progress(
    samples: Any, model: HieraEmbeddingModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model.embed_samples(samples, "silent", progress=False)
    assert "/37" not in capsys.readouterr().out
    model.embed_samples(samples, "shown", progress=True)
    assert "/37" in capsys.readouterr().out
    model.embed_samples(samples, "shown", progress=True)
    assert capsys.readouterr().out == "", "a bar of nothing"

    seen: list[tuple[int, int]] = []
    model.embed_samples(
        samples,
        "called",
        batch_size=8,
        progress=lambda bar: seen.append((bar.iteration, bar.total)),
    )
    assert seen[-1] == (37, 37)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert (8, 37) in seen


def test_report_prints_as_a_table(samples: Any, model: HieraEmbeddingModel) -> None:
    sample = samples.first()
    sample.filepath = _absent(sample)
    sample.save()
    report = model.embed_samples(samples, "hiera")
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines[:6]] == [
        "embedded",
        "skipped",
        "failed",
        "warned",
        "seconds",
        "images/s",
    ]
    assert lines[0].split()[1] == "36"
    assert sample.id in lines[6]


def _overflowing(nano: Path, folder: Path) -> str:
    """Weights that overflow in float16 for bright images, and not for dark ones."""
    checkpoint = _another_checkpoint(nano, folder)
    tensors = load_file(nano)
    block = "encoder.stages.0.layers.0"

    # Brightness shows in the first channel alone, and the values of attention follow it
    tensors["embeddings.patch_embeddings.projection.weight"].zero_()[0] = 0.01
    tensors["embeddings.position_embeddings"][:, :, 0] = 0
    tensors[f"{block}.layernorm_before.weight"].fill_(1)
    tensors[f"{block}.layernorm_before.bias"].fill_(0)
    tensors[f"{block}.attn.qkv.weight"][-24:, 0] = 20_000
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return checkpoint


def test_nan_is_never_stored(
    dataset: Any, nano: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = _overflowing(nano, tmp_path)
    model = fiftyone_hiera.load_model(NANO, checkpoint=checkpoint, dtype="float16")
    for index, color in enumerate(((124, 116, 104), "white", (120, 116, 104))):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (64, 64), color).save(path)
        dataset.add_sample(fo.Sample(filepath=str(path)))

    report = model.embed_samples(dataset, "hiera", batch_size=3)
    (failure,) = report.failed
    assert failure.path.endswith("1.png")
    assert "NaN or infinity" in failure.reason
    assert "float16" in failure.reason
    assert [v is None for v in dataset.values("hiera")] == [False, True, False]

    dataset.compute_embeddings(model, embeddings_field="n", batch_size=1, num_workers=0)
    assert [v is None for v in dataset.values("n")] == [False, True, False]
    dataset.compute_embeddings(model, embeddings_field="m", batch_size=3, num_workers=0)
    assert dataset.values("m") == [None] * 3
    assert "NaN or infinity for the images [1] of a batch of 3" in caplog.text


def test_errors_of_the_model_have_the_report(
    samples: Any, model: HieraEmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = model.embedder._embed_batch
    batches: list[int] = []

    def break_down(pixels: Any) -> Any:
        batches.append(len(pixels))
        return forward(pixels) if len(batches) < 3 else [torch.ones(2, 3) @ torch.ones(2)]

    monkeypatch.setattr(model.embedder, "_embed_batch", break_down)
    with pytest.raises(EmbeddingError, match=r"(?s)size mismatch.*resumes there") as error:
        model.embed_samples(samples, "hiera", batch_size=8)

    assert type(error.value.__cause__) is RuntimeError
    assert error.value.report.embedded == samples.count("hiera") == 16
    assert error.value.report.seconds > 0
    again = pickle.loads(pickle.dumps(error.value))  # as between processes
    assert (again.report, str(again)) == (error.value.report, str(error.value))
    monkeypatch.undo()
    assert model.embed_samples(samples, "hiera").embedded == 21
    check_embeddings(samples, model)


def test_batches_are_halved_until_they_fit() -> None:
    sizes: list[int] = []

    def forward(pixels: Any) -> Any:
        sizes.append(len(pixels))
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return pixels, -pixels

    halving = Halving(forward)
    some, others = halving(torch.arange(10))
    assert some.tolist() == (-others).tolist() == list(range(10))
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    sizes.clear()
    assert halving(torch.arange(5))[0].tolist() == list(range(5))
    assert sizes == [2, 2, 1]


def test_results_that_are_missing_are_noticed() -> None:
    halving = Halving(lambda pixels: [torch.zeros(len(pixels), 3), torch.zeros(2, 3)])
    with pytest.raises(RuntimeError, match=r"\[4, 2\] results for 4 images"):
        halving(torch.arange(4))


def test_batches_are_halved_natively(
    samples: Any, model: HieraEmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = model.embedder._forward

    def small(pixels: Any) -> Any:
        if len(pixels) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return forward(pixels)

    monkeypatch.setattr(model.embedder, "_embed_batch", Halving(small))
    samples.compute_embeddings(model, "hiera", batch_size=32, num_workers=0)
    check_embeddings(samples, model)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def forward(pixels: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        Halving(forward)(torch.arange(10))
