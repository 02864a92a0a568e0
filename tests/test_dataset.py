"""FiftyOne's own methods with this model, on a real database and real files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import eta.core.video as etav
import fiftyone as fo
import fiftyone.brain as fob
import numpy as np
import pytest
from PIL import Image
from pil_processor import META, PilProcessor
from random_hiera import make_config, make_hiera
from sklearn.neighbors import KNeighborsClassifier

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

# A number that is no multiple of a batch
pytestmark = pytest.mark.samples(37, parts=[[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 0.5]])


@pytest.fixture
def expected(samples: fo.Dataset, expected: dict[str, np.ndarray]) -> np.ndarray:
    """The embeddings of the samples."""
    return np.stack([expected[path] for path in samples.values("filepath")])


def test_nano_recognizes_digits_it_was_not_trained_on(
    digits: list[Digit], model: HieraEmbeddingModel
) -> None:
    embeddings = model.embed_all([Image.open(digit.path) for digit in digits])
    labels = np.array([digit.label for digit in digits])
    is_train = np.array([digit.split == "train" for digit in digits])
    assert is_train.sum() == 1200
    knn = KNeighborsClassifier(5).fit(embeddings[is_train], labels[is_train])
    assert knn.score(embeddings[~is_train], labels[~is_train]) >= 0.97


@pytest.mark.parametrize("batch_size", [None, 1, 16, 64])
def test_in_memory(
    samples: fo.Dataset,
    model: HieraEmbeddingModel,
    expected: np.ndarray,
    batch_size: int | None,
) -> None:
    embeddings = samples.compute_embeddings(model, batch_size=batch_size, num_workers=0)
    assert embeddings.dtype == np.float32
    assert np.abs(embeddings - expected).max() < 1e-4


def test_batch_size_is_kept(
    samples: fo.Dataset, model: HieraEmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    embed_all = model.embed_all

    def spy(args: Any) -> Any:
        sizes.append(len(args))
        return embed_all(args)

    monkeypatch.setattr(model, "embed_all", spy)
    samples.compute_embeddings(model, batch_size=16, num_workers=0)
    assert sizes == [16, 16, 5]


def test_in_a_field(
    samples: fo.Dataset, model: HieraEmbeddingModel, expected: np.ndarray
) -> None:
    samples.compute_embeddings(model, embeddings_field="hiera", batch_size=16)
    assert isinstance(samples.get_field("hiera"), fo.VectorField)
    stored = samples.values("hiera")
    assert stored[0].dtype == np.float32
    assert np.abs(np.stack(stored) - expected).max() < 1e-4


def test_order_does_not_matter(
    samples: fo.Dataset, model: HieraEmbeddingModel, expected: np.ndarray
) -> None:
    by_id = dict(zip(samples.values("id"), expected, strict=True))
    view = samples.shuffle(seed=51)
    embeddings = view.compute_embeddings(model, batch_size=8, num_workers=2)
    in_order = np.stack([by_id[sample_id] for sample_id in view.values("id")])
    assert np.abs(embeddings - in_order).max() < 1e-4


def test_patches(samples: fo.Dataset, model: HieraEmbeddingModel) -> None:
    patches = samples[:5].compute_patch_embeddings(
        model, "parts", batch_size=16, num_workers=2
    )
    for sample in samples[:5]:
        image = np.asarray(Image.open(sample.filepath).convert("RGB"))
        crops = [image[6:39, 6:39], image[0:33, 0:65]]
        found = patches[sample.id]
        assert found.shape == (2, 192)
        # FiftyOne rounds the corners of a patch differently: compare by cosine
        wanted = model.embed_all(crops)
        cosine = (found * wanted).sum(axis=1)
        cosine /= np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        assert cosine.min() > 0.9


def test_patches_in_a_field(samples: fo.Dataset, model: HieraEmbeddingModel) -> None:
    in_memory = samples.compute_patch_embeddings(model, "parts", num_workers=0)
    samples.compute_patch_embeddings(
        model, "parts", embeddings_field="hiera", num_workers=0
    )
    for sample in samples:
        stored = np.stack([patch.hiera for patch in sample.parts.detections])
        assert np.allclose(stored, in_memory[sample.id], atol=1e-4)


def test_whole_image_patch_equals_the_image(
    dataset: fo.Dataset, model: HieraEmbeddingModel, digits: list[Digit]
) -> None:
    whole = fo.Detections(detections=[fo.Detection(bounding_box=[0, 0, 1, 1])])
    dataset.add_sample(fo.Sample(filepath=str(digits[0].path), whole=whole))
    (patch,) = dataset.compute_patch_embeddings(model, "whole", num_workers=0).values()
    assert np.allclose(patch, dataset.compute_embeddings(model, num_workers=0), atol=1e-4)


def test_bad_file_is_named_and_only_it_fails(
    samples: fo.Dataset,
    model: HieraEmbeddingModel,
    expected: np.ndarray,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("not an image")
    sample = samples.skip(20).first()
    sample.filepath = str(bad)
    sample.save()

    embeddings = samples.compute_embeddings(model, batch_size=1, num_workers=0)
    assert len(embeddings) == 37
    assert embeddings[20] is None
    assert np.allclose(embeddings[19], expected[19], atol=1e-4)
    assert np.allclose(embeddings[21], expected[21], atol=1e-4)
    assert f"Cannot read image {str(bad)!r}" in caplog.text

    with pytest.raises(ValueError, match=r"bad\.png"):
        samples.compute_embeddings(model, num_workers=0, skip_failures=False)


def test_brain(samples: fo.Dataset, model: HieraEmbeddingModel) -> None:
    samples.compute_embeddings(model, embeddings_field="hiera", num_workers=0)
    fob.compute_similarity(samples, embeddings="hiera", brain_key="sim")
    fob.compute_visualization(samples, embeddings="hiera", brain_key="map", method="pca")
    query = samples.first()
    nearest = samples.sort_by_similarity(query.id, k=3, brain_key="sim")
    assert nearest.first().id == query.id
    assert samples.load_brain_results("map").points.shape == (37, 2)

    patches = fob.compute_similarity(samples, model=model, patches_field="parts")
    assert patches.total_index_size == 74


def test_field_mapping(
    dataset: fo.Dataset, model: HieraEmbeddingModel, digits: list[Digit]
) -> None:
    for one, other in zip(digits[:4], digits[4:8], strict=True):
        dataset.add_sample(fo.Sample(filepath=str(one.path), other=str(other.path)))

    embeddings = dataset.compute_embeddings(model, num_workers=0, filepath="other")
    wanted = model.embed_all([Image.open(digit.path) for digit in digits[4:8]])
    assert np.allclose(embeddings, wanted, atol=1e-4)


def test_pooler_equals_fiftyones_own_integration(
    dataset: fo.Dataset, tmp_path: Path
) -> None:
    from skimage import data
    from transformers import AutoModel

    # Images of 256 px are not resized, and the margin of the crop is even: all
    # processors give the same pixels
    for index, array in enumerate((data.astronaut(), data.coffee())):
        path = tmp_path / f"{index}.png"
        Image.fromarray(array[100:356, 100:356]).save(path)
        dataset.add_sample(fo.Sample(filepath=str(path)))

    folder = tmp_path / "checkpoint"
    make_hiera(make_config(image_size=(224, 224))).save_pretrained(folder)
    PilProcessor(**META).save_pretrained(folder)

    theirs = dataset.compute_embeddings(AutoModel.from_pretrained(folder), num_workers=0)
    model = fiftyone_hiera.load_model(
        "hiera-nano-digits", checkpoint=str(folder), pooling="pooler", dtype="float32"
    )
    ours = dataset.compute_embeddings(model, num_workers=0)
    assert np.abs(ours - np.asarray(theirs)).max() < 1e-4


def test_apply_model_raises_before_the_first_sample(
    samples: fo.Dataset,
    model: HieraEmbeddingModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    passes: list[Any] = []
    monkeypatch.setattr(model, "predict_all", passes.append)
    for view in (samples, samples.to_patches("parts")):
        with pytest.raises(NotImplementedError, match="embed_samples"):
            view.apply_model(model, "labels", num_workers=0)

    assert not passes
    assert not samples.has_field("labels")
    assert "Traceback" not in caplog.text


def test_apply_model_to_videos_stores_nothing(
    dataset: fo.Dataset, model: HieraEmbeddingModel
) -> None:
    dataset.add_sample(fo.Sample(filepath="/video.mp4"))
    with pytest.raises(NotImplementedError, match="embed_samples"):
        dataset.apply_model(model, "frames.labels")


_METHODS: dict[str, Callable[..., Any]] = {
    "similarity": partial(fob.compute_similarity, brain_key="run", embeddings="e"),
    "map": partial(
        fob.compute_visualization, brain_key="run", embeddings="e", method="pca"
    ),
    "uniqueness": fob.compute_uniqueness,
    "representativeness": fob.compute_representativeness,
    "near duplicates": fob.compute_near_duplicates,
    "leaky splits": partial(fob.compute_leaky_splits, splits=["train", "test"]),
    "without a key": fob.compute_similarity,
}


@pytest.mark.parametrize("method", _METHODS.values(), ids=_METHODS)
def test_brain_on_videos_is_refused_and_leaves_nothing(
    dataset: fo.Dataset, model: HieraEmbeddingModel, method: Callable[..., Any]
) -> None:
    sample = fo.Sample(filepath="/video.mp4", tags=["train"], uniqueness=0.5)
    dataset.add_sample(sample)
    before = dataset.get_field_schema(), dataset.get_frame_field_schema()
    with pytest.raises(ValueError, match=r"dataset\.to_frames\(sample_frames=True\)"):
        method(dataset, model=model)

    assert dataset.list_brain_runs() == []
    assert (dataset.get_field_schema(), dataset.get_frame_field_schema()) == before
    assert dataset.values("uniqueness") == [0.5]


def test_index_refuses_the_embeddings_of_videos(
    dataset: fo.Dataset, model: HieraEmbeddingModel
) -> None:
    dataset.add_sample(fo.Sample(filepath="/video.mp4"))
    index = fob.compute_similarity(dataset, model=model, embeddings=False, brain_key="run")
    with pytest.raises(ValueError, match="to_frames"):
        index.compute_embeddings(dataset)

    assert dataset.list_brain_runs() == ["run"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_brain_on_frames(
    dataset: fo.Dataset, model: HieraEmbeddingModel, tmp_path: Path
) -> None:
    for name in ("a.mp4", "b.mp4"):
        path = str(tmp_path / name)
        with etav.FFmpegVideoWriter(path, 5, (64, 64)) as writer:
            for shade in (10, 120, 230):
                writer.write(np.full((64, 64, 3), shade, np.uint8))

        dataset.add_sample(fo.Sample(filepath=path))

    native = dataset.compute_embeddings(model)
    assert {embeddings.shape for embeddings in native.values()} == {(3, 192)}
    model.embed_samples(dataset, "hiera")
    frames = dataset.to_frames(sample_frames=True)
    assert frames.count("hiera") == 6
    for options in ({"embeddings": "hiera"}, {"model": model, "num_workers": 0}):
        index = fob.compute_similarity(frames, **options)
        assert index.embeddings.shape == (6, 192)
