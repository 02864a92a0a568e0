"""The model by itself: input forms, batches and refusals."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_hiera import make_config, make_hiera, save_checkpoint
from transformers import HieraModel

import fiftyone_hiera
from fiftyone_hiera.checkpoints import CHECKPOINTS
from fiftyone_hiera.hiera.encoder import Normalization
from fiftyone_hiera.hiera.hub import DownloadError
from fiftyone_hiera.hiera.pooling import POOLINGS
from fiftyone_hiera.images.decoding import read_image
from fiftyone_hiera.images.pickling import import_package
from fiftyone_hiera.models.embedding import HieraEmbeddingModel


def load(**options: Any) -> HieraEmbeddingModel:
    exact = {"dtype": "float32", "engine": "torch"}
    return fiftyone_hiera.load_model("hiera-nano-digits", **{**exact, **options})


@pytest.fixture(scope="module")
def model() -> HieraEmbeddingModel:
    return load()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    from skimage import data

    arrays = [data.astronaut(), data.coffee(), data.cat(), data.rocket()]
    crops = [
        array[y : y + 199, x : x + 261]
        for array in arrays
        for x in (0, 90)
        for y in (0, 70)
    ]
    return [Image.fromarray(crop) for crop in crops]


@pytest.fixture(scope="module")
def embeddings(model: HieraEmbeddingModel, images: list[Image.Image]) -> np.ndarray:
    return model.embed_all(images)


def test_embeddings_are_float32(embeddings: np.ndarray, images: list[Image.Image]) -> None:
    assert embeddings.shape == (len(images), 192)
    assert embeddings.dtype == np.float32


def test_input_forms_agree(
    model: HieraEmbeddingModel, images: list[Image.Image], embeddings: np.ndarray
) -> None:
    arrays = [np.asarray(image) for image in images]
    tensors = [torch.tensor(array).permute(2, 0, 1) for array in arrays]
    assert np.array_equal(model.embed_all(arrays), embeddings)
    assert np.array_equal(model.embed_all(np.stack(arrays)), embeddings)
    assert np.array_equal(model.embed_all(tensors), embeddings)
    assert np.array_equal(model.embed_all(torch.stack(tensors)), embeddings)
    assert np.array_equal(model.embed_all(iter(images)), embeddings)


def test_paths(
    model: HieraEmbeddingModel,
    images: list[Image.Image],
    embeddings: np.ndarray,
    tmp_path: Path,
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)

    assert np.array_equal(model.embed_all(paths), embeddings)
    assert np.array_equal(model.embed_all([*paths[:1], *images[1:]]), embeddings)
    assert np.array_equal(model.embed_all(np.array(paths, str)), embeddings)
    assert np.array_equal(model.embed(str(paths[0])), model.embed(images[0]))
    maps = model.feature_maps(paths, [4])["stage4"]
    assert np.array_equal(maps, model.feature_maps(images, [4])["stage4"])

    large = tmp_path / "large.jpg"
    images[0].resize((1000, 800)).save(large)
    fast = load(fast_decoding=True).transforms
    assert torch.equal(fast(large), fast(read_image(large, fast.shortest_edge)))
    assert not torch.equal(fast(large), fast(read_image(large)))


@pytest.mark.parametrize("name", ["absent.png", "text.jpg"])
def test_paths_that_cannot_be_read(
    model: HieraEmbeddingModel, images: list[Image.Image], tmp_path: Path, name: str
) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    path = tmp_path / name
    for call in (model.embed_all, model.feature_maps):
        with pytest.raises(ValueError, match=f"Cannot read image '{path}': "):
            call([images[0], path])


def test_transformed_tensors_agree(
    model: HieraEmbeddingModel, images: list[Image.Image], embeddings: np.ndarray
) -> None:
    transformed = [model.transforms(image) for image in images]
    model.preprocess = False
    try:
        assert np.array_equal(model.embed_all(torch.stack(transformed)), embeddings)
        assert np.array_equal(model.embed_all(transformed), embeddings)
        assert np.allclose(model.embed(transformed[0]), embeddings[0], atol=1e-4)
    finally:
        model.preprocess = True


def test_batch_size_and_order_do_not_matter(
    model: HieraEmbeddingModel, images: list[Image.Image], embeddings: np.ndarray
) -> None:
    single = np.stack([model.embed(image) for image in images])
    assert np.abs(single - embeddings).max() < 1e-4

    order = np.random.default_rng(51).permutation(len(images))
    shuffled = model.embed_all([images[index] for index in order])
    assert np.abs(shuffled - embeddings[order]).max() < 1e-4

    repeated = model.embed_all(images * 4)
    assert np.abs(repeated - np.tile(embeddings, (4, 1))).max() < 1e-4


def test_grayscale_equals_rgb(
    model: HieraEmbeddingModel, images: list[Image.Image]
) -> None:
    grey = images[0].convert("L")
    expected = model.embed(grey.convert("RGB"))
    array = np.asarray(grey)
    for form in (grey, array, array[:, :, np.newaxis], array.astype(np.uint16) * 257):
        assert np.array_equal(model.embed(form), expected)


def test_rgba_equals_rgb(
    model: HieraEmbeddingModel, images: list[Image.Image], embeddings: np.ndarray
) -> None:
    rgba = images[0].copy()
    rgba.putalpha(3)
    assert np.allclose(model.embed(rgba), embeddings[0], atol=1e-4)
    assert np.allclose(model.embed(np.asarray(rgba)), embeddings[0], atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("pooling", list(POOLINGS))
def test_equals_transformers(
    tmp_path: Path, images: list[Image.Image], pooling: str
) -> None:
    folder = save_checkpoint(tmp_path, make_hiera(make_config()))
    reference = HieraModel.from_pretrained(folder).eval()
    model = load(checkpoint=str(folder), pooling=pooling)

    pixels = torch.stack([model.transforms(image) for image in images])
    normalize = Normalization(model.transforms, torch.device("cpu"))
    output = reference(normalize(pixels))
    expected = {
        "mean": output.last_hidden_state.mean(dim=1),
        "cls": output.last_hidden_state[:, 0],
        "pooler": output.pooler_output,
    }[pooling]
    assert np.allclose(model.embed_all(images), expected.numpy(), atol=1e-5)


def test_single_image_is_refused(
    model: HieraEmbeddingModel, images: list[Image.Image]
) -> None:
    array = np.asarray(images[0])
    for one in (images[0], array, array[..., 0], torch.tensor(array).permute(2, 0, 1)):
        with pytest.raises(
            ValueError, match=r"list of images, found one image: pass \[image\]"
        ):
            model.embed_all(one)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"a": np.zeros((9, 9, 3), np.uint8)}, r"found dict: pass \[\*images.values\(\)\]"),
        ("photo.jpg", r"found one path: pass \['photo\.jpg'\]"),
        (Path("photo.jpg"), r"found one path: pass \['photo\.jpg'\]"),
        (b"\xff\xd8", r"found bytes: pass \[PIL\.Image\.open\(io\.BytesIO\(data\)\)\]"),
        (None, "found NoneType"),
        (3, "found int"),
    ],
    ids=str,
)
@pytest.mark.parametrize("preprocess", [True, False])
def test_other_than_lists_of_images_are_refused(
    images: Any, message: str, preprocess: bool
) -> None:
    model = load()
    model.preprocess = preprocess
    for call in (model.embed_all, model.feature_maps):
        with pytest.raises(ValueError, match=f"Expected a list of images, {message}"):
            call(images)


def test_normalize(images: list[Image.Image], embeddings: np.ndarray) -> None:
    normalized = load(normalize=True).embed_all(images)
    assert np.allclose(np.linalg.norm(normalized, axis=1), 1, atol=1e-6)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert np.allclose(normalized * lengths, embeddings, atol=1e-4)


def test_device(embeddings: np.ndarray, images: list[Image.Image]) -> None:
    assert np.allclose(load(device="cpu").embed_all(images), embeddings, atol=1e-4)


def test_get_embeddings(model: HieraEmbeddingModel, images: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="embed_all"):
        load().get_embeddings()

    embeddings = model.embed_all(images[:3])
    assert model.get_embeddings() is embeddings
    embedding = model.embed(images[0])
    assert np.array_equal(model.get_embeddings(), [embedding])


def test_empty_batch(model: HieraEmbeddingModel) -> None:
    assert model.embed_all([]).shape == (0, 192)
    assert model.embed_all([]).dtype == np.float32


def test_predict_names_the_methods_to_call(
    model: HieraEmbeddingModel, images: list[Image.Image]
) -> None:
    for call in (lambda: model.predict(images[0]), lambda: model.predict_all(images)):
        with pytest.raises(NotImplementedError, match="embed_samples"):
            call()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("fit_heatmap", "output='heatmap'"), ("reconstruct", "'mae'"), ("x", "")],
)
def test_methods_of_other_models(model: HieraEmbeddingModel, name: str, hint: str) -> None:
    assert not hasattr(model, name)
    with pytest.raises(AttributeError, match=rf"no attribute {name!r}.*{hint}"):
        getattr(model, name)


def test_repr(own: Path) -> None:
    options = "dtype='float32', device='cpu', engine='torch', embedding_dim="
    assert repr(load(device="cpu")) == (
        f"HieraEmbeddingModel('hiera-nano-digits', pooling='mean', {options}192)"
    )
    other = load(checkpoint=own, pooling="cls", stage=3, output="heatmap", device="cpu")
    assert str(other) == (
        f"HieraFeatureHeatmapModel({str(own)!r}, pooling='cls', {options}96)"
    )


def test_properties(model: HieraEmbeddingModel) -> None:
    assert model.media_type == "image"
    assert model.has_embeddings
    assert not model.has_logits
    assert not model.can_embed_prompts
    assert not model.ragged_batches
    assert model.embedding_dim == 192
    assert model.required_keys == ["filepath"]
    with model as entered:
        assert entered is model


@pytest.mark.parametrize(
    "args",
    [
        torch.zeros(2, 3, 64, 64),
        torch.zeros(2, 3, 65, 64, dtype=torch.uint8),
        [np.zeros((64, 64, 3), np.uint8)],
        [Image.new("RGB", (64, 64))],
        ["photo.jpg"],
    ],
    ids=["float", "shape", "array", "PIL", "path"],
)
def test_without_preprocessing_only_transformed_tensors(
    model: HieraEmbeddingModel, args: Any
) -> None:
    model.preprocess = False
    try:
        with pytest.raises(ValueError, match=r"uint8 tensor of shape \(3, 64, 64\)"):
            model.embed_all(args)
    finally:
        model.preprocess = True


def test_unknown_field_is_refused(model: HieraEmbeddingModel) -> None:
    assert model.build_get_item({"filepath": "crop"}).field_mapping == {"filepath": "crop"}
    with pytest.raises(ValueError, match="Unknown key 'image'"):
        model.build_get_item({"image": "crop"})


@pytest.mark.slow
def test_unpickles_where_the_package_cannot_be_imported(
    model: HieraEmbeddingModel, images: list[Image.Image], tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    images[0].save(path)
    # As FiftyOne imports a plugin: by its path, under another name
    name = "fiftyone.plugins.orgs.owner.plugin"
    import_package(name, str(Path(__file__).parents[1]))
    as_plugin = sys.modules[name].load_model("hiera-nano-digits")
    script = (
        "import pickle, sys\n"
        "transforms, get_item, as_plugin = pickle.load(sys.stdin.buffer)\n"
        f"pixels = get_item({{'filepath': {str(path)!r}}})\n"
        "sys.stdout.buffer.write(pixels.numpy().tobytes())\n"
        "assert type(transforms).__module__ == 'fiftyone_hiera.images.preprocessing'\n"
        f"assert type(as_plugin).__module__ == '{name}.models.datasets'\n"
        f"assert as_plugin({{'filepath': {str(path)!r}}}).equal(pixels)\n"
    )
    pickled = (model.transforms, model.build_get_item(), as_plugin.build_get_item())
    result = subprocess.run(
        [sys.executable, "-I", "-c", script],  # -I: neither PYTHONPATH nor this folder
        input=pickle.dumps(pickled),
        capture_output=True,
    )
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]

    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout == model.transforms(images[0]).numpy().tobytes()


def test_hand_placed_weights(nano: Path, tmp_path: Path, images: list[Image.Image]) -> None:
    path = tmp_path / "hiera-nano-digits.safetensors"
    path.write_bytes(nano.read_bytes())
    model = fiftyone_hiera.load_model("hiera-nano-digits", str(path))
    assert model.embed_all(images).shape == (len(images), 192)


def test_changed_weights_of_this_source_are_refused(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(nano.read_bytes()[:-1] + b"x")
    entry = CHECKPOINTS["hiera-nano-digits"]
    entry = replace(entry, file=replace(entry.file, path=changed))
    monkeypatch.setitem(CHECKPOINTS, entry.name, entry)
    destination = tmp_path / "source" / "hiera-nano-digits.safetensors"
    with pytest.raises(DownloadError, match=r"changed\.safetensors: expected sha256"):
        fiftyone_hiera.download_model(entry.name, str(destination))

    assert not destination.exists()


def test_weights_of_another_entry_are_refused(nano: Path) -> None:
    same_shapes = {"hiera-nano-digits", "hiera-nano-photos"}
    for name in set(CHECKPOINTS) - same_shapes:
        with pytest.raises(ValueError, match="does not hold the weights of this model"):
            fiftyone_hiera.load_model(name, str(nano))

    with pytest.raises(DownloadError, match=rf"{nano}: expected sha256 2134c8ba"):
        fiftyone_hiera.load_model("hiera-nano-photos", str(nano))


def test_options_are_checked_before_weights_are_touched() -> None:
    with pytest.raises(ValueError, match="Unknown option 'poling'"):
        fiftyone_hiera.load_model("hiera-nano-digits", "absent.safetensors", poling="cls")
