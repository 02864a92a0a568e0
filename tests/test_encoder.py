"""Embeddings against transformers, the authors' code and timm, with the same weights."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from random_hiera import (
    configuration,
    make_classifier,
    make_config,
    make_hiera,
    save_weights,
    to_reference_names,
)
from safetensors.torch import load_file, save_file
from transformers import HieraConfig, HieraModel

from fiftyone_hiera.checkpoints import CHECKPOINTS, Checkpoint
from fiftyone_hiera.hiera.checkpoint_kinds import expected_shapes
from fiftyone_hiera.hiera.encoder import Encoder
from fiftyone_hiera.hiera.pooling import POOLINGS
from fiftyone_hiera.hiera.weights_file import WeightsFile
from fiftyone_hiera.images.preprocessing import for_image_size

# The tests of a variant share its networks
pytestmark = pytest.mark.xdist_group("encoder")

_META = [c for c in CHECKPOINTS.values() if c.name.endswith("-224-hf")]
_TOO_LARGE = 60_000_000
# The others differ from these in the number of blocks and heads, and in width
_FAST = {f"facebook/hiera-{variant}-224-hf" for variant in ("tiny", "base-plus", "large")}
_VARIANTS = [
    pytest.param(
        checkpoint,
        id=checkpoint.name,
        marks=() if checkpoint.name in _FAST else pytest.mark.slow,
    )
    for checkpoint in _META
]


@pytest.fixture(scope="module", params=_VARIANTS)
def variant(request: pytest.FixtureRequest) -> Checkpoint:
    checkpoint: Checkpoint = request.param
    return checkpoint


@pytest.fixture(scope="module")
def config(variant: Checkpoint) -> HieraConfig:
    """The variant's real layout; of the three largest, fewer blocks a stage."""
    small = variant.parameters < _TOO_LARGE
    return HieraConfig(
        depths=variant.depths if small else (1, 1, 2, 1),
        embed_dim=variant.embed_dim,
        num_heads=variant.config.num_heads,
    )


@pytest.fixture(scope="module")
def hiera(config: HieraConfig) -> HieraModel:
    return make_hiera(config)


@pytest.fixture(scope="module")
def encoder(
    config: HieraConfig, hiera: HieraModel, tmp_path_factory: pytest.TempPathFactory
) -> Encoder:
    path = save_weights(tmp_path_factory.mktemp("weights") / "model.safetensors", hiera)
    own = configuration(config)
    file = WeightsFile(path, expected_shapes(own))
    return Encoder(own, file, for_image_size((224, 224)))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(51)
    return torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def inputs(encoder: Encoder, pixels: torch.Tensor) -> torch.Tensor:
    return encoder.normalize(pixels)


@pytest.fixture(scope="module")
def embeddings(encoder: Encoder, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        (tokens,) = encoder(pixels, 4)
        return {name: pool(tokens, encoder.norm) for name, pool in POOLINGS.items()}


@pytest.fixture(scope="module")
def maps(encoder: Encoder, pixels: torch.Tensor) -> list[torch.Tensor]:
    return encoder.maps(pixels, 1, 2, 3, 4)


@torch.inference_mode()
def test_embeddings_equal_transformers(
    hiera: HieraModel,
    inputs: torch.Tensor,
    embeddings: dict[str, torch.Tensor],
    maps: list[torch.Tensor],
) -> None:
    output = hiera(inputs, output_hidden_states=True)
    _check_embeddings(embeddings, output.last_hidden_state, output.pooler_output)
    stages = output.reshaped_hidden_states[1:]
    _check_maps(maps, [stage.permute(0, 3, 1, 2) for stage in stages])


@torch.inference_mode()
def test_embeddings_equal_the_formulas_of_the_plugin(
    hiera: HieraModel, inputs: torch.Tensor, embeddings: dict[str, torch.Tensor]
) -> None:
    for index, image in enumerate(inputs):
        hidden = hiera(image.unsqueeze(0)).last_hidden_state
        assert torch.allclose(embeddings["cls"][index], hidden[0, 0], atol=1e-4)
        assert torch.allclose(embeddings["mean"][index], hidden[0].mean(dim=0), atol=1e-4)


@torch.inference_mode()
def test_embeddings_equal_the_authors_code(
    config: HieraConfig,
    hiera: HieraModel,
    inputs: torch.Tensor,
    embeddings: dict[str, torch.Tensor],
    maps: list[torch.Tensor],
) -> None:
    from hiera import Hiera

    reference = Hiera(**_reference_layout(config), num_classes=1).eval()
    state = to_reference_names(hiera, "norm")
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert all(name.startswith("head.") for name in missing)
    assert unexpected == []

    reference.head = torch.nn.Identity()
    pooled, stages = reference(inputs, return_intermediates=True)
    _check_embeddings(embeddings, stages[-1].flatten(1, 2), pooled)
    _check_maps(maps, [stage.permute(0, 3, 1, 2) for stage in stages])


@torch.inference_mode()
def test_embeddings_equal_timm(
    config: HieraConfig,
    hiera: HieraModel,
    inputs: torch.Tensor,
    embeddings: dict[str, torch.Tensor],
    maps: list[torch.Tensor],
) -> None:
    from timm.models.hiera import Hiera

    reference = Hiera(**_reference_layout(config), num_classes=0).eval()
    reference.load_state_dict(to_reference_names(hiera, "head.norm"))
    stages = reference.forward_intermediates(inputs, intermediates_only=True)
    _check_embeddings(embeddings, stages[-1].flatten(2).transpose(1, 2), reference(inputs))
    _check_maps(maps, stages)


def _reference_layout(config: HieraConfig) -> dict[str, Any]:
    return {
        "embed_dim": config.embed_dim,
        "num_heads": config.num_heads[0],
        "stages": tuple(config.depths),
    }


def _check_embeddings(
    embeddings: dict[str, torch.Tensor], tokens: torch.Tensor, pooled: torch.Tensor
) -> None:
    assert torch.allclose(embeddings["mean"], tokens.mean(dim=1), atol=1e-4)
    assert torch.allclose(embeddings["cls"], tokens[:, 0], atol=1e-4)
    assert torch.allclose(embeddings["pooler"], pooled, atol=1e-4)


def _check_maps(maps: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    sides = [56, 28, 14, 7]
    for found, stage, side in zip(maps, expected, sides, strict=True):
        assert found.shape == stage.shape
        assert found.shape[2:] == (side, side)
        assert torch.allclose(found, stage, atol=1e-4)


def test_poolings_differ(embeddings: dict[str, torch.Tensor]) -> None:
    for one, other in (("mean", "cls"), ("mean", "pooler"), ("cls", "pooler")):
        assert not torch.allclose(embeddings[one], embeddings[other], atol=1e-2)


@pytest.mark.parametrize(
    "checkpoint",
    [
        pytest.param(checkpoint, id=checkpoint.name)
        for checkpoint in CHECKPOINTS.values()
        if hasattr(transformers, checkpoint.architecture.name)
    ],
)
def test_real_layout_has_the_stated_parameters(checkpoint: Checkpoint) -> None:
    with torch.device("meta"):
        network = getattr(transformers, checkpoint.architecture.name)(
            checkpoint.config.to_transformers()
        )

    assert sum(p.numel() for p in network.parameters()) == checkpoint.parameters
    hiera = getattr(network, "hiera", network)
    assert hiera.num_features == checkpoint.embedding_dim


def test_layout_is_the_authors(
    variant: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hiera import hiera

    monkeypatch.setattr(hiera, "Hiera", dict)
    name = variant.name.removeprefix("facebook/").removesuffix("-hf").replace("-", "_")
    layout = getattr(hiera, name)()
    expected = variant.depths, variant.embed_dim, variant.num_heads
    assert tuple(layout[name] for name in ("stages", "embed_dim", "num_heads")) == expected


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_weights(tmp_path / "model.safetensors", make_hiera(make_config()))


def _load(path: Path, config: HieraConfig | None = None, **kwargs: Any) -> Encoder:
    own = configuration(config or make_config())
    file = WeightsFile(path, expected_shapes(own))
    return Encoder(own, file, for_image_size((64, 64)), **kwargs)


def test_missing_tensor_is_refused(weights: Path) -> None:
    tensors = load_file(weights)
    del tensors["encoder.stages.0.layers.0.mlp.fc1.bias"]
    save_file(tensors, weights)
    with pytest.raises(
        ValueError, match=r"model.safetensors .*1 tensors missing .*fc1.bias"
    ):
        _load(weights)


def test_extra_tensor_is_refused(weights: Path) -> None:
    save_file({**load_file(weights), "surprise": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match=r"1 unexpected tensors \(first: surprise\)"):
        _load(weights)


def test_misshapen_tensor_is_refused(weights: Path) -> None:
    with pytest.raises(
        ValueError, match=r"tensors of another shape .*is \[.*\], not \[.*\]"
    ):
        _load(weights, make_config(image_size=(96, 96)))


@pytest.mark.parametrize("size", [0, 4, 1000, -1])
def test_truncated_file_is_refused(weights: Path, size: int) -> None:
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(
        ValueError, match=r"model.safetensors is not a complete safetensors"
    ):
        _load(weights)


def test_pickle_file_is_refused(weights: Path) -> None:
    torch.save(make_hiera(make_config()).state_dict(), weights)
    with pytest.raises(ValueError, match="Pickle files are never loaded"):
        _load(weights)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        _load(tmp_path / "absent.safetensors")


@torch.inference_mode()
def test_classifier_gives_its_encoder(tmp_path: Path) -> None:
    model = make_classifier(make_config(architectures=["HieraForImageClassification"]))
    path = save_weights(tmp_path / "model.safetensors", model)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)

    encoder = _load(path, model.config)
    expected = model.hiera(encoder.normalize(pixels)).pooler_output
    pooled = POOLINGS["pooler"](*encoder(pixels, 4), encoder.norm)
    assert torch.allclose(pooled, expected, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_dtypes_stay_close(weights: Path, dtype: torch.dtype) -> None:
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    encoder = _load(weights, dtype=dtype)
    (exact,), (reduced,) = _load(weights)(pixels, 4), encoder(pixels, 4)
    assert POOLINGS["pooler"](reduced, encoder.norm).dtype == torch.float32
    assert reduced.dtype == torch.float32
    assert not torch.equal(exact, reduced), "it was computed in float32"
    similarity = torch.nn.functional.cosine_similarity(exact, reduced, dim=-1)
    assert similarity.min() > 0.999


@torch.inference_mode()
def test_weights_of_another_dtype_are_converted(weights: Path) -> None:
    halves = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(halves, weights)
    hiera = make_hiera(make_config())
    hiera.load_state_dict({name: tensor.float() for name, tensor in halves.items()})

    encoder = _load(weights)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = hiera(encoder.normalize(pixels)).last_hidden_state
    assert torch.allclose(encoder(pixels, 4)[0], expected, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 96), (128, 128), (32, 32), (96, 64)], ids=str)
def test_other_sizes_equal_transformers(weights: Path, size: tuple[int, int]) -> None:
    hiera = make_hiera(make_config())
    config = configuration(make_config())
    file = WeightsFile(weights, expected_shapes(config))
    encoder = Encoder(config, file, for_image_size((64, 64)).at(size))
    pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    inputs = encoder.normalize(pixels)
    expected = hiera(inputs, interpolate_pos_encoding=True).last_hidden_state
    (tokens,) = encoder(pixels, 4)
    assert tokens.shape == (2, size[0] * size[1] // 32**2, 128)
    assert torch.allclose(tokens, expected, atol=1e-5)
    if size != (32, 32):  # of one token, there is nothing to mix up
        assert not torch.allclose(tokens, expected.flip(1), atol=1e-2)


def test_there_is_one_network(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = _load(weights)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = [encoder(pixels, stage)[0] for stage in (3, 4)]
    network = weakref.ref(encoder._network)
    build, built = encoder._build, []

    def build_one(stages: tuple[int, ...]) -> Any:
        gc.collect()
        assert network() is None, "two networks at once"
        built.append(stages)
        return build(stages)

    monkeypatch.setattr(encoder, "_build", build_one)
    assert [tokens.shape[1] for tokens in encoder(pixels, 1, 2)] == [256, 64]
    for stage, tokens in zip((3, 4), expected, strict=True):
        assert torch.equal(encoder(pixels, stage)[0], tokens)

    assert [tokens.shape[2] for tokens in encoder(pixels, 4, 1)] == [128, 16]
    assert built == [(1, 2, 3, 4)]


def test_network_that_cannot_be_built_is_built_later(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = _load(weights)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    (expected,) = encoder(pixels, 4)

    def fail(stages: tuple[int, ...]) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(encoder, "_build", fail)
        encoder(pixels, 2)

    assert torch.equal(encoder(pixels, 4)[0], expected)


def test_unknown_stage_is_refused(weights: Path) -> None:
    with pytest.raises(ValueError, match=r"stages: \(3, 5\). .* stages 1 to 4"):
        _load(weights).prepare(3, 5)


def test_nothing_trains(weights: Path) -> None:
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert not _load(weights)(pixels, 4)[0].requires_grad
