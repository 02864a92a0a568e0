"""Feature maps and heatmaps, through FiftyOne's own methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fiftyone_hiera
from fiftyone_hiera.hiera.pca import fit_basis
from fiftyone_hiera.images.preprocessing import Preprocessing
from fiftyone_hiera.models.embedding import HieraEmbeddingModel
from fiftyone_hiera.models.heatmap import HieraFeatureHeatmapModel, make_heatmap

NANO = "hiera-nano-digits"

pytestmark = pytest.mark.samples(40)
# A basis of release 0.1.0 (nano, stage=3), and the dataset that it was fitted to
MADE_BY_0_1_0 = Path(__file__).parent / "data" / "made_by_0_1_0"


def _load(**options: Any) -> HieraFeatureHeatmapModel:
    options = {"output": "heatmap", "dtype": "float32", "engine": "torch", **options}
    model = fiftyone_hiera.load_model(NANO, **options)
    assert isinstance(model, HieraFeatureHeatmapModel)
    return model


@pytest.fixture
def fitted(samples: fo.Dataset) -> HieraFeatureHeatmapModel:
    model = _load(stage=2)
    model.fit_heatmap(samples)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_feature_maps(model: HieraEmbeddingModel, engine: str) -> None:
    images = [np.random.default_rng(51).integers(0, 256, (70, 90, 3), np.uint8)] * 2
    other = fiftyone_hiera.load_model(NANO, dtype="float32", engine=engine)
    maps = other.feature_maps(images)
    shapes = {name: values.shape for name, values in maps.items()}
    assert shapes == {
        "stage1": (2, 24, 16, 16),
        "stage2": (2, 48, 8, 8),
        "stage3": (2, 96, 4, 4),
        "stage4": (2, 192, 2, 2),
    }
    vectors = model.embed_all(images)
    assert np.allclose(maps["stage4"].mean(axis=(2, 3)), vectors, atol=1e-4)

    for stage in (1, 2, 3):
        name = f"stage{stage}"
        (alone,) = other.feature_maps(images[:1], stages=[stage]).items()
        assert alone[0] == name
        assert np.allclose(alone[1], maps[name][:1], atol=1e-4)
        pooled = fiftyone_hiera.load_model(NANO, dtype="float32", stage=stage)
        expected = maps[name].mean(axis=(2, 3))
        assert pooled.embedding_dim == expected.shape[1]
        assert np.allclose(pooled.embed_all(images), expected, atol=1e-4)


def test_feature_maps_of_an_empty_batch(model: HieraEmbeddingModel) -> None:
    maps = model.feature_maps([], stages=(4, 1))
    assert {name: values.shape for name, values in maps.items()} == {
        "stage1": (0, 24, 16, 16),
        "stage4": (0, 192, 2, 2),
    }
    with pytest.raises(ValueError, match=r"stages: \(5,\).* 1 to 4"):
        model.feature_maps([], stages=[5])

    for stages in ([], 3, "stage3"):
        with pytest.raises(ValueError, match=r"stages: .* non-empty list of stages"):
            model.feature_maps([], stages)

    with pytest.raises(ValueError, match="Expected a list of images"):
        model.feature_maps(Image.new("RGB", (9, 9)))
    assert model.feature_maps(np.zeros((2, 9, 9, 3), np.uint8), [4])["stage4"].shape[0] == 2


def test_basis_is_the_first_principal_component() -> None:
    generator = np.random.default_rng(51)
    tokens = generator.normal(size=(400, 6)) * [1, 2, 9, 1, 1, 3] + 5
    basis = fit_basis(torch.tensor(tokens).split(50), {})
    values = basis(torch.tensor(tokens).float()).numpy()
    assert abs(values.mean()) < 1e-4
    assert values.std() == pytest.approx(1, abs=1e-3)
    _, _, components = np.linalg.svd(tokens - tokens.mean(axis=0))
    cosine = basis.direction.numpy() @ components[0] / basis.direction.norm().item()
    assert abs(cosine) == pytest.approx(1, abs=1e-4)
    assert basis.direction[basis.direction.abs().argmax()] > 0

    negated = fit_basis([-torch.tensor(tokens)], {})
    assert torch.allclose(negated.direction, basis.direction, atol=1e-5)
    with pytest.raises(ValueError, match="all tokens are the same"):
        fit_basis([torch.ones(9, 3)], {})
    with pytest.raises(ValueError, match="there are 0 tokens"):
        fit_basis([], {})
    with pytest.raises(ValueError, match="the model returned NaN or infinity"):
        fit_basis([torch.full((9, 3), torch.nan)], {})


class _OnMPS(torch.Tensor):
    """A tensor on a device without float64, as far as :func:`fit_basis` can tell."""

    def double(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        raise TypeError("the MPS framework doesn't support float64")

    def cpu(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_basis_is_fitted_on_the_cpu() -> None:
    tokens = torch.randn(60, 4)
    basis = fit_basis([tokens.as_subclass(_OnMPS)], {})
    assert torch.equal(basis.direction, fit_basis([tokens], {}).direction)


@pytest.mark.parametrize(
    ("size", "preprocessing", "inside"),
    [
        ((60, 30), Preprocessing((32, 32), (28, 28)), (17, 2, 43, 28)),
        ((30, 60), Preprocessing((32, 32), (28, 28)), (2, 17, 28, 43)),
        ((60, 30), Preprocessing((32, 32), (28, 28), is_squashed=True), (0, 0, 60, 30)),
        ((32, 32), Preprocessing((32, 32), (32, 32)), (0, 0, 32, 32)),
        ((4, 4), Preprocessing((32, 32), (32, 32)), (0, 0, 4, 4)),
    ],
)
def test_map_covers_the_crop(
    size: tuple[int, int], preprocessing: Preprocessing, inside: tuple[int, ...]
) -> None:
    values = np.array([[-1, 0], [1, 9]], np.float32)
    drawn = make_heatmap(values, (-1, 1), preprocessing, size).map
    assert drawn.shape == size[::-1]
    assert drawn.dtype == np.uint8
    rows, columns = np.nonzero(drawn)
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert edges == inside
    left, top, right, bottom = inside
    assert drawn[top, left] == 1
    assert drawn[top, right - 1] == 128
    assert drawn[bottom - 1, left] == drawn[bottom - 1, right - 1] == 255


def test_cells_lie_on_their_pixels() -> None:
    """A map of an image's brightness is bright where the image is."""
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 150:] = 255
    preprocessing = Preprocessing((64, 64), (64, 64))
    pixels = preprocessing(image).float().mean(dim=0)
    grid = pixels.unflatten(0, (8, 8)).unflatten(2, (8, 8)).mean(dim=(1, 3)).numpy()
    drawn = make_heatmap(grid, (0, 255), preprocessing, (300, 100)).map
    inside = drawn > 0
    assert (drawn[inside] > 128).tolist() == (image[..., 0][inside] > 128).tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("to_disk", [False, True])
def test_apply_model(
    samples: fo.Dataset,
    fitted: HieraFeatureHeatmapModel,
    tmp_path: Path,
    num_workers: int,
    to_disk: bool,
) -> None:
    tall = tmp_path / "tall.png"
    Image.new("RGB", (30, 90), "gray").save(tall)
    samples.add_sample(fo.Sample(filepath=str(tall)))
    output_dir = str(tmp_path / "maps") if to_disk else None
    samples.apply_model(
        fitted, "heat", batch_size=16, num_workers=num_workers, output_dir=output_dir
    )
    for sample in samples:
        drawn = sample.heat.get_map()
        with Image.open(sample.filepath) as image:
            assert drawn.shape == image.size[::-1]
            assert np.array_equal(drawn, fitted.predict(image).map)

        assert (sample.heat.map_path is not None) == to_disk

    drawn = np.stack([sample.heat.get_map() for sample in samples[:40]])
    assert len(np.unique(drawn)) > 20


def test_maps_are_comparable(samples: fo.Dataset, fitted: HieraFeatureHeatmapModel) -> None:
    """The value of a token does not depend on the other tokens of its image."""
    images = [Image.open(path) for path in samples.values("filepath")]
    maps = fitted.feature_maps(images, stages=[2])["stage2"]
    basis = fitted._basis
    assert basis is not None
    values = (maps.transpose(0, 2, 3, 1) - basis.center.numpy()) @ basis.direction.numpy()
    assert np.abs(values.mean()) < 1e-4
    assert values.std() == pytest.approx(1, abs=1e-3)
    for label, grid, image in zip(fitted.predict_all(images), values, images, strict=True):
        expected = make_heatmap(grid, (-3, 3), fitted.transforms, image.size).map
        assert np.abs(label.map.astype(int) - expected).max() <= 1
        assert np.array_equal(fitted.predict(image).map, label.map)


def test_basis_is_saved_and_loaded(samples: fo.Dataset, tmp_path: Path) -> None:
    path = str(tmp_path / "basis.safetensors")
    model = _load()
    model.fit_heatmap(samples, path, max_samples=20)
    first = Image.open(samples.first().filepath)
    again = _load(heatmap_basis=Path(path))
    with pytest.raises(ValueError, match=r"the folder of .*absent.* does not exist"):
        model.fit_heatmap(samples, str(tmp_path / "absent" / "basis"))
    with pytest.raises(ValueError, match="is a folder; give a file"):
        model.fit_heatmap(samples, str(tmp_path))
    assert np.array_equal(again.predict(first).map, model.predict(first).map)

    for options, name, fitted_with, here in (
        ({"stage": 2}, "stage", "4", "2"),
        ({"image_size": (96, 64)}, "image_size", r"\[64, 64\]", r"\[96, 64\]"),
        ({"squash": True}, "squash", "False", "True"),
    ):
        message = f"with {name}={fitted_with}, but this model has {name}={here}. "
        with pytest.raises(ValueError, match=rf"basis\.safetensors' was fitted {message}"):
            _load(heatmap_basis=path, **options)

    plain = tmp_path / "plain"
    plain.touch()
    assert Path(path).stat().st_mode == plain.stat().st_mode
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"other\.safetensors is not a heatmap basis"):
        _load(heatmap_basis=str(other))
    with pytest.raises(ValueError, match=r"heatmap_basis: .*absent.* is not a file"):
        _load(heatmap_basis=str(tmp_path / "absent"))


def test_basis_of_0_1_0(dataset: fo.Dataset) -> None:
    basis = MADE_BY_0_1_0 / "basis.safetensors"
    paths = sorted((MADE_BY_0_1_0 / "dataset" / "data").iterdir())
    dataset.add_samples([fo.Sample(filepath=str(path)) for path in paths])
    model, refitted = _load(stage=3, heatmap_basis=basis), _load(stage=3)
    refitted.fit_heatmap(dataset)
    images = [Image.open(path) for path in paths]
    for old, new in zip(
        model.predict_all(images), refitted.predict_all(images), strict=True
    ):
        assert np.array_equal(old.map, new.map)

    with pytest.raises(ValueError, match="with stage=3, but this model has stage=4"):
        _load(heatmap_basis=basis)


def test_basis_of_a_later_release(tmp_path: Path) -> None:
    path = tmp_path / "basis.safetensors"
    tensors = {"center": torch.zeros(192), "direction": torch.ones(192)}
    save_file(tensors, path, metadata={"version": "2"})
    with pytest.raises(ValueError, match="its version is 2; this release reads 1"):
        _load(heatmap_basis=path)


def test_without_a_basis(samples: fo.Dataset) -> None:
    with pytest.raises(ValueError, match=r"call model.fit_heatmap\(dataset\) first"):
        samples.apply_model(_load(), "heat")

    assert not samples.has_field("heat")
    images = [Image.open(path) for path in samples[:2].values("filepath")]
    assert _load().embed_all(images).shape == (2, 192)


def test_bad_files(
    samples: fo.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("not an image")
    samples.add_sample(fo.Sample(filepath=str(bad)))
    model = _load()
    model.fit_heatmap(samples)
    assert f"Not used for the basis: Cannot read image '{bad}'" in caplog.text
    samples.apply_model(model, "heat", batch_size=8)
    assert samples.count("heat") == 40
    assert str(bad) in caplog.text
    with pytest.raises(ValueError, match="Cannot fit a basis to 1 images: there are 0"):
        model.fit_heatmap(samples[40:])


def test_fitting_halves_batches_that_run_out_of_memory(
    samples: fo.Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, roomy = _load(stage=2), _load(stage=2)
    sizes: list[int] = []
    network: Any = model._encoder._network

    def run_out(inputs: torch.Tensor) -> Any:
        if len(inputs) > 5:
            raise MemoryError

        sizes.append(len(inputs))
        return network(inputs)

    monkeypatch.setattr(model._encoder, "_network", run_out)
    model.fit_heatmap(samples)
    roomy.fit_heatmap(samples)
    assert sum(sizes) == 40
    assert max(sizes) <= 5
    assert "Out of memory at a batch size of 16: continuing with 8" in caplog.text
    assert model._basis is not None and roomy._basis is not None
    assert torch.allclose(model._basis.direction, roomy._basis.direction, atol=1e-4)
    assert torch.allclose(model._basis.center, roomy._basis.center, atol=1e-5)


def test_videos_are_refused(dataset: fo.Dataset) -> None:
    dataset.add_sample(fo.Sample(filepath="/video.mp4"))
    with pytest.raises(ValueError, match=r"not to media type 'video'\. .*to_frames"):
        _load().fit_heatmap(dataset)


def test_other_arguments_than_samples_are_refused(samples: fo.Dataset) -> None:
    with pytest.raises(ValueError, match="takes a dataset or a view, found list"):
        _load().fit_heatmap(samples.values("filepath"))


def test_embeddings_of_a_heatmap_model(
    samples: fo.Dataset, fitted: HieraFeatureHeatmapModel
) -> None:
    samples.compute_embeddings(fitted, embeddings_field="native", batch_size=16)
    fitted.embed_samples(samples, "ours")
    native, ours = (np.stack(samples.values(name)) for name in ("native", "ours"))
    assert np.allclose(native, ours, atol=1e-4)
    assert native.shape == (40, 48)


def test_maps_have_full_size_after_fast_decoding(
    samples: fo.Dataset, tmp_path: Path, fitted: HieraFeatureHeatmapModel
) -> None:
    path = tmp_path / "large.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise
    noise = np.random.default_rng(51).integers(0, 256, (600, 901, 3), np.uint8)
    Image.fromarray(noise).save(path, exif=exif)
    samples.add_sample(fo.Sample(filepath=str(path)))
    model = _load(stage=2, fast_decoding=True)
    model.fit_heatmap(samples)
    samples.apply_model(model, "heat", batch_size=16)
    assert samples.last().heat.map.shape == (901, 600)
    for by_path in (path, path.as_uri()):
        assert np.array_equal(model.predict(by_path).map, samples.last().heat.map)


def test_lists_of_images_or_batches(fitted: HieraFeatureHeatmapModel) -> None:
    with pytest.raises(ValueError, match=r"found one path: pass \['photo\.jpg'\]"):
        fitted.predict_all("photo.jpg")

    fitted.preprocess = False
    for args in (["photo.jpg"], [Image.new("RGB", (9, 9))]):
        with pytest.raises(
            ValueError, match=r"preprocess=False, pass a batch .* found list"
        ):
            fitted.predict_all(args)
