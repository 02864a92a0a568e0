"""birder's Hiera against birder, with the same random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_hiera import randomize
from safetensors.torch import load_file, save_file

import fiftyone_hiera
from fiftyone_hiera.checkpoints import CHECKPOINTS
from fiftyone_hiera.models.embedding import HieraEmbeddingModel

pytest.importorskip("birder")

NAME = "birder-project/hiera_abswin_base_mim"
_STATS = {"mean": [0.5191, 0.5306, 0.4877], "std": [0.2316, 0.2304, 0.2588]}


@pytest.fixture(scope="module")
def network() -> Any:
    from birder.model_registry import registry

    network = registry.net_factory("hiera_abswin_base", 0, 3, size=(224, 224)).eval()
    randomize(network)
    return network


@pytest.fixture(scope="module")
def weights(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as birder saves it."""
    from birder.common.fs_ops import save_st

    path = tmp_path_factory.mktemp("birder") / "hiera_abswin_base_mim.safetensors"
    signature: Any = {"inputs": [{"data_shape": [0, 3, 224, 224]}], "outputs": []}
    save_st(network, str(path), "image_classification", {}, signature, _STATS)
    return path


def _load(weights: Path, **options: Any) -> HieraEmbeddingModel:
    options = {"dtype": "float32", "engine": "torch", **options}
    return fiftyone_hiera.load_model(NAME, str(weights), **options)


def _images() -> list[Image.Image]:
    generator = np.random.default_rng(51)
    sizes = [(300, 200), (90, 400), (224, 224)]
    return [
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)) for size in sizes
    ]


@torch.inference_mode()
@pytest.mark.parametrize("size", [224, pytest.param(320, marks=pytest.mark.slow)], ids=str)
def test_embedding_is_birders(network: Any, weights: Path, size: int) -> None:
    import copy

    from birder.data.transforms.classification import inference_preset
    from birder.inference.classification import infer_image

    adjusted = copy.deepcopy(network)
    adjusted.adjust_size((size, size))
    transform = inference_preset((size, size), _STATS)
    expected = np.concatenate(
        [
            infer_image(adjusted, image, transform, return_embedding=True)[1]
            for image in _images()
        ]
    )
    model = _load(weights, **({} if size == 224 else {"image_size": size}))
    assert model.settings.pooling == "pooler"
    embeddings = model.embed_all(_images())
    assert embeddings.shape == (3, 768)
    assert np.abs(embeddings - expected).max() < 1e-4


@torch.inference_mode()
@pytest.mark.parametrize(
    "engine", ["torch", pytest.param("openvino", marks=pytest.mark.slow)]
)
def test_feature_maps_are_birders(network: Any, weights: Path, engine: str) -> None:
    from birder.data.transforms.classification import inference_preset

    transform = inference_preset((224, 224), _STATS)
    inputs = torch.stack([transform(image) for image in _images()])
    expected = network.detection_features(inputs)
    maps = _load(weights, engine=engine).feature_maps(_images())
    assert maps.keys() == expected.keys()
    for name, values in maps.items():
        assert values.shape == expected[name].shape
        assert np.abs(values - expected[name].numpy()).max() < 1e-3


def test_earlier_stages_are_averaged(weights: Path) -> None:
    model = _load(weights, stage=3)
    assert model.settings.pooling == "mean"
    maps = model.feature_maps(_images(), stages=[3])["stage3"]
    assert np.allclose(model.embed_all(_images()), maps.mean(axis=(2, 3)), atol=1e-4)
    with pytest.raises(ValueError, match=r"stage: 3\. Pooling 'pooler'"):
        _load(weights, stage=3, pooling="pooler")


def test_registry_has_the_same_file() -> None:
    from birder.model_registry.manifest import REGISTRY_MANIFEST
    from birder.net import hiera  # noqa: F401  # registers it

    entry = REGISTRY_MANIFEST["hiera_abswin_base_mim"]
    weights = CHECKPOINTS[NAME].file
    assert entry["formats"]["safetensors"]["sha256"] == weights.sha256
    assert entry["url"].endswith(f"{weights.repo_id}/resolve/main")
    assert entry["resolution"] == (224, 224)


def test_parameters_are_those_of_the_table(network: Any) -> None:
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == CHECKPOINTS[NAME].parameters


def test_file_that_does_not_say_how_to_normalize(weights: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(weights), bare)
    with pytest.raises(ValueError, match=r"bare\.safetensors .*how images are normalized"):
        _load(bare)

    bare.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"bare\.safetensors is not a complete"):
        _load(bare)

    wrong = tmp_path / "wrong.safetensors"
    tensors = load_file(weights)
    del tensors["pos_embed_win"]
    save_file(tensors, wrong, {"rgb_stats": json.dumps(_STATS)})
    with pytest.raises(ValueError, match=r"1 tensors missing \(first: pos_embed_win\)"):
        _load(wrong)
