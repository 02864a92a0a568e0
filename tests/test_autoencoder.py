"""Masked autoencoders equal transformers', by FiftyOne's own methods."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
import torch
from PIL import Image
from random_hiera import make_config, randomize, save_checkpoint
from transformers import HieraForPreTraining, HieraModel

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.hiera.autoencoder import make_masks
from fiftyone_hiera.models.heatmap import HieraAutoencoderModel

_DECODER: dict[str, Any] = {
    "num_query_pool": 2,
    "decoder_depth": 2,
    "decoder_hidden_size": 32,
    "decoder_num_heads": 4,
    "image_size": (96, 128),
}


def _make(**kwargs: Any) -> HieraForPreTraining:
    model = HieraForPreTraining(make_config(**{**_DECODER, **kwargs})).eval()
    randomize(model)
    return model


@pytest.fixture(scope="module")
def reference() -> HieraForPreTraining:
    return _make()


@pytest.fixture(scope="module")
def checkpoint(
    reference: HieraForPreTraining, tmp_path_factory: pytest.TempPathFactory
) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("autoencoder"), reference))


def _load(checkpoint: str, **options: Any) -> HieraAutoencoderModel:
    options = {"dtype": "float32", "engine": "torch", **options}
    model = fiftyone_hiera.load_model("hiera-nano-digits", checkpoint=checkpoint, **options)
    assert isinstance(model, HieraAutoencoderModel)
    return model


@pytest.fixture(scope="module")
def autoencoder(checkpoint: str) -> HieraAutoencoderModel:
    return _load(checkpoint)


def _noise(count: int, size: tuple[int, int], seed: int = 51) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, *size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@torch.inference_mode()
@pytest.mark.parametrize("normalize_pixel_loss", [True, False])
def test_loss_of_a_mask_is_transformers(tmp_path: Path, normalize_pixel_loss: bool) -> None:
    """The loss of a mask is the mean error of the units that only this mask hides."""
    reference = _make(normalize_pixel_loss=normalize_pixel_loss, mask_ratio=0.5)
    model = _load(str(save_checkpoint(tmp_path, reference)), num_masks=2)
    head = model._autoencoder
    assert head.masks.sum(dim=0).eq(1).all()  # 6 and 6 of 12

    pixels = _noise(3, (96, 128))
    inputs = head._normalize(pixels)
    errors = head.errors(pixels)
    assert errors.shape == (3, 3, 4)
    for mask in head.masks:
        noise = torch.where(mask, 0.9, 0.1).expand(3, -1) + 0.01 * torch.rand(3, 12)
        expected = reference(inputs, noise=noise).loss
        assert errors.flatten(1)[:, mask].mean().item() == pytest.approx(
            expected.item(), rel=1e-4
        )


def test_older_name_of_the_targets(checkpoint: str, tmp_path: Path) -> None:
    folder = tmp_path / "older"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config.pop("normalize_pixel_loss") is True
    config["norm_pix_loss"] = False
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    assert not _load(str(folder))._autoencoder._network.config.normalize_pixel_loss


def test_masks_hide_everything() -> None:
    for units, ratio, count in ((49, 0.6, 4), (49, 0.6, 2), (12, 0.6, 3), (196, 0.6, 7)):
        masks = make_masks(units, ratio, count)
        hidden = units - int(units * (1 - ratio))
        assert masks.shape == (count, units)
        assert masks.sum(dim=1).eq(hidden).all()
        times = masks.sum(dim=0)
        assert times.min() >= max(1, math.floor(count * hidden / units))
        assert times.max() <= math.ceil(count * hidden / units)
        assert torch.equal(masks, make_masks(units, ratio, count))

    with pytest.raises(
        ValueError, match=r"num_masks: 1. Each masks 30 of 49 .* at least 2"
    ):
        make_masks(49, 0.6, 1)
    with pytest.raises(ValueError, match="too small to mask 60%"):
        make_masks(1, 0.6, 4)


def test_few_masks_are_refused(checkpoint: str) -> None:
    with pytest.raises(ValueError, match="num_masks: 1"):
        _load(checkpoint, num_masks=1)


def test_apply_model(
    dataset: fo.Dataset, digits: list[Digit], autoencoder: HieraAutoencoderModel
) -> None:
    paths = [str(digit.path) for digit in digits[:13]]
    dataset.add_samples([fo.Sample(filepath=path) for path in paths])
    dataset.apply_model(autoencoder, "errors", batch_size=5, num_workers=2)
    pixels = torch.stack([autoencoder.transforms(Image.open(path)) for path in paths])
    expected = autoencoder._autoencoder.errors(pixels).numpy()
    assert np.allclose(
        dataset.values("errors.error"), expected.mean(axis=(1, 2)), atol=1e-4
    )
    for sample in dataset:
        with Image.open(sample.filepath) as image:
            assert sample.errors.map.shape == image.size[::-1]
            alone = autoencoder.predict(image)
            assert alone.error == pytest.approx(sample.errors.error, abs=1e-4)

    by_error = dataset.sort_by("errors.error", reverse=True)
    assert by_error.first().filepath == paths[expected.mean(axis=(1, 2)).argmax()]


def _undo(model: HieraAutoencoderModel, values: torch.Tensor) -> torch.Tensor:
    mean, std = (
        torch.tensor(channels).view(3, 1, 1)
        for channels in (model.transforms.mean, model.transforms.std)
    )
    return (255 * (values * std + mean)).clamp(0, 255)


@torch.inference_mode()
def test_reconstruction(
    reference: HieraForPreTraining, checkpoint: str, tmp_path: Path
) -> None:
    model = _load(checkpoint, num_masks=2)
    head = model._autoencoder
    image = _noise(1, (96, 128))[0].permute(1, 2, 0).numpy()
    reconstruction = np.asarray(model.reconstruct(image))
    assert reconstruction.shape == (96, 128, 3)
    assert np.array_equal(reconstruction, np.asarray(model.reconstruct(image)))
    Image.fromarray(image).save(tmp_path / "image.png")
    by_path = model.reconstruct(tmp_path / "image.png")
    assert np.array_equal(reconstruction, np.asarray(by_path))

    # Patch by patch, from transformers' predictions and the statistics of the image
    pixels = model.transforms(image)
    inputs = head._normalize(pixels[None])
    predictions = [
        reference(inputs, noise=mask.float()[None]).logits[0] for mask in head.masks
    ]
    for row in range(6):
        for column in range(8):
            where = np.s_[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            patch = inputs[0][where]
            unit = row // 2 * 4 + column // 2
            hiding = [
                predicted
                for predicted, mask in zip(predictions, head.masks, strict=True)
                if mask[unit]
            ]
            mean = torch.stack(hiding).mean(dim=0)[8 * row + column].view(3, 16, 16)
            mean = mean * (patch.var() + 1e-6).sqrt() + patch.mean()
            expected = _undo(model, mean)[:, :, :].permute(1, 2, 0).numpy()
            found = reconstruction[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            assert np.abs(found - expected).max() <= 0.51


def test_a_perfect_reconstruction_has_no_error(
    monkeypatch: pytest.MonkeyPatch, autoencoder: HieraAutoencoderModel
) -> None:
    head = autoencoder._autoencoder
    pixels = _noise(1, (96, 128))
    inputs = head._normalize(pixels)
    patches = head._to_patches(inputs)
    mean, deviation = patches.mean(-1, True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    perfect = (patches - mean) / deviation
    monkeypatch.setattr(
        head,
        "_reconstruct",
        lambda _: [(perfect, is_masked) for is_masked in head._is_masked],
    )
    assert head.errors(pixels).abs().max() < 1e-9
    assert torch.equal(head.reconstruct(pixels), pixels)
    broken = perfect * torch.nan
    monkeypatch.setattr(head, "_reconstruct", lambda _: [(broken, head._is_masked[0])])
    with pytest.raises(ValueError, match="The model returned NaN or infinity"):
        head.reconstruct(pixels)

    plain = torch.zeros_like(perfect)
    monkeypatch.setattr(
        head,
        "_reconstruct",
        lambda _: [(plain, is_masked) for is_masked in head._is_masked],
    )
    assert torch.allclose(head.errors(pixels), torch.ones(1, 3, 4), atol=2e-3)


@torch.inference_mode()
def test_another_size(tmp_path: Path) -> None:
    square = _make(image_size=(96, 96), mask_ratio=0.5)
    model = _load(
        str(save_checkpoint(tmp_path, square)), image_size=(192, 128), num_masks=2
    )
    head = model._autoencoder
    larger = _make(image_size=(192, 128), mask_ratio=0.5)
    state = square.state_dict()
    embeddings = square.hiera.embeddings
    state["hiera.embeddings.position_embeddings"] = embeddings.interpolate_pos_encoding(
        torch.empty(1, 48 * 32, 16), embeddings.position_embeddings, 192, 128
    )
    grid = square.decoder.decoder_position_embeddings.view(1, 6, 6, 32).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (12, 8), mode="bicubic")
    name = "decoder.decoder_position_embeddings"
    state[name] = grid.permute(0, 2, 3, 1).reshape(1, 96, 32)
    larger.load_state_dict(state)

    pixels = _noise(2, (192, 128))
    inputs = head._normalize(pixels)
    errors = head.errors(pixels)
    assert errors.shape == (2, 6, 4)
    for mask in head.masks:
        loss = larger(inputs, noise=mask.float().expand(2, -1)).loss
        found = errors.flatten(1)[:, mask].mean().item()
        assert found == pytest.approx(loss.item(), rel=1e-4)


@torch.inference_mode()
def test_embeddings(checkpoint: str, reference: HieraForPreTraining) -> None:
    model = _load(checkpoint)
    pixels = _noise(2, (96, 128))
    state = reference.hiera.state_dict()
    encoder = HieraModel(reference.config, add_pooling_layer=False).eval()
    encoder.load_state_dict(state)
    inputs = model._encoder.normalize(pixels)
    tokens = encoder(inputs).last_hidden_state
    model.preprocess = False
    assert np.allclose(model.embed_all(pixels), tokens.mean(dim=1).numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="type HieraForPreTraining: 'pooler'"):
        _load(checkpoint, pooling="pooler")
