"""Train hiera-nano-photos, the checkpoint for photographs that this repository carries.

A Hiera of 0.67 M parameters for 64 px learns without labels, as in SimCLR, to recognize
two overlapping crops of a photograph among others. It sees the left two thirds of each
photograph; the views of the right thirds are only looked at once, at the end. Takes four
minutes on two CPU cores:

    python examples/train_nano_photos.py

It prints the number of parameters and the sha256 for the table in checkpoints.py, and
measures the vectors beside those of other weights and color histograms.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance, ImageOps
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torchvision.transforms.v2.functional import resized_crop
from transformers import HieraConfig, HieraModel

from fiftyone_hiera.hiera.encoder import Normalization
from fiftyone_hiera.images.preprocessing import for_image_size
from photographs import PHOTOGRAPHS, View, open_photograph, write_photographs

_ASSETS = Path(__file__).parents[1] / "assets"
_OUTPUT = _ASSETS / "hiera-nano-photos.safetensors"
_DIGITS = _ASSETS / "hiera-nano-digits.safetensors"
_SIDE = 64
_STEPS = 700
_BATCH_SIZE = 64
_LEARNING_RATE = 2e-3
_TEMPERATURE = 0.1

_PHOTOGRAPH_SIDE = 224  # the shorter side of a photograph, in pixels
_CROP_SIDES = (38, 90)  # of a crop in it
_SHIFT = 0.25  # of a crop from the center of its pair, relative to its side
_COLOR = 0.3  # the change of saturation, contrast and brightness
_GRAY = 0.1  # the share of crops without color

_Embed = Callable[[Sequence[Image.Image]], npt.NDArray[np.float32]]


def main() -> None:
    """Train, evaluate and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=51)
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    untrained = _model().eval()
    model = _model()
    _train(model, np.random.default_rng(args.seed))
    tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
    save_file(tensors, args.output, metadata={"format": "pt"})
    print(f"parameters: {sum(t.numel() for t in tensors.values())}")
    print(f"sha256: {hashlib.sha256(args.output.read_bytes()).hexdigest()}")

    digits = _model().eval()
    digits.load_state_dict(load_file(_DIGITS))
    _evaluate(
        {
            "hiera-nano-photos": _embed_with(model.eval()),
            "hiera-nano-digits": _embed_with(digits),
            "random weights": _embed_with(untrained),
            "color histograms": _histograms,
        }
    )


def _model() -> HieraModel:
    config = HieraConfig(
        image_size=(_SIDE, _SIDE),
        embed_dim=24,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
    )
    return HieraModel(config)


def _train(model: nn.Module, generator: np.random.Generator) -> None:
    photographs = [_left_part(open_photograph(name)) for name in PHOTOGRAPHS]
    normalization = Normalization(for_image_size((_SIDE, _SIDE)), torch.device("cpu"))
    dim = 192
    head = nn.Sequential(
        nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, 128)
    )
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, _STEPS, pct_start=0.1
    )

    model.train()
    for step in range(1, _STEPS + 1):
        chosen = generator.integers(0, len(photographs), _BATCH_SIZE)
        pairs = [_crop_twice(photographs[number], generator) for number in chosen]
        first, second = zip(*pairs, strict=True)
        pixels = _change_colors(torch.stack([*first, *second]))
        tokens = model(normalization(pixels)).last_hidden_state
        loss = _contrast(head(tokens.mean(dim=1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.2f}", flush=True)


def _left_part(photograph: Image.Image) -> torch.Tensor:
    """Return the part that no view of the split "test" shows."""
    left = photograph.crop((0, 0, round(photograph.width * 2 / 3), photograph.height))
    scale = _PHOTOGRAPH_SIDE / min(photograph.size)
    size = (round(left.width * scale), round(left.height * scale))
    pixels = np.array(left.resize(size, Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _crop_twice(
    photograph: torch.Tensor, generator: np.random.Generator
) -> list[torch.Tensor]:
    """Return two crops of different sizes at about the same place, or their mirrors."""
    size = np.array(photograph.shape[1:])
    center = generator.uniform(_SIDE / 2, size - _SIDE / 2)
    crops = []
    for _ in range(2):
        side = int(generator.integers(*_CROP_SIDES))
        corner = center - side / 2 + generator.uniform(-_SHIFT, _SHIFT, 2) * side
        top, left = corner.clip(0, size - side).astype(int).tolist()
        crop = resized_crop(photograph, top, left, side, side, [_SIDE, _SIDE])
        crops.append(crop.flip(2) if generator.random() < 0.5 else crop)

    return crops


def _change_colors(pixels: torch.Tensor) -> torch.Tensor:
    """Change saturation, contrast and brightness of each image; some become gray.

    Args:
        pixels: a uint8 tensor of shape (N, 3, H, W)

    Returns:
        a float32 tensor of that shape, with values from 0 to 255
    """

    def factor() -> torch.Tensor:
        return torch.empty(len(pixels), 1, 1, 1).uniform_(1 - _COLOR, 1 + _COLOR)

    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    colored = pixels.float()
    gray = (colored * weights).sum(dim=1, keepdim=True)
    is_colored = torch.rand(len(pixels), 1, 1, 1) >= _GRAY
    colored = gray + (colored - gray) * factor() * is_colored
    mean = colored.mean(dim=(1, 2, 3), keepdim=True)
    return ((mean + (colored - mean) * factor()) * factor()).clamp(0, 255)


def _contrast(vectors: torch.Tensor) -> torch.Tensor:
    """Return SimCLR's loss (NT-Xent).

    Args:
        vectors: a tensor of shape (2N, D): the first crops, then the second ones
    """
    unit = functional.normalize(vectors, dim=1)
    similarity = unit @ unit.T / _TEMPERATURE
    similarity = similarity.masked_fill(torch.eye(len(unit), dtype=torch.bool), -torch.inf)
    return functional.cross_entropy(
        similarity, torch.arange(len(unit)).roll(len(unit) // 2)
    )


def _evaluate(kinds: dict[str, _Embed]) -> None:
    """Print how well the vectors of views find their photograph and their original."""
    with tempfile.TemporaryDirectory() as folder:
        views = write_photographs(Path(folder))
        images = [Image.open(view.path).convert("RGB") for view in views]

    photographs = np.array([view.photograph for view in views])
    is_test = np.array([view.split == "test" for view in views])
    generator = np.random.default_rng(0)
    altered = [
        _alter(image, generator)
        for image, test in zip(images, is_test, strict=True)
        if test
    ]
    print(f"{is_test.sum()} views of right thirds, nearest neighbor by cosine:")
    for name, embed in kinds.items():
        vectors, queries = _unit(embed(images)), _unit(embed(altered))
        train, test = vectors[~is_test], vectors[is_test]
        same, same_altered = (
            np.mean(
                photographs[~is_test][(q @ train.T).argmax(axis=1)] == photographs[is_test]
            )
            for q in (test, queries)
        )
        nearest = (queries @ vectors.T).argmax(axis=1)
        found = np.mean(nearest == np.flatnonzero(is_test))
        near = np.mean(
            [
                _is_near(views[one], views[other])
                for one, other in zip(nearest, np.flatnonzero(is_test), strict=True)
            ]
        )
        print(
            f"{name}: same photograph {same:.1%}, of altered views {same_altered:.1%}; "
            f"original of altered views {found:.1%}, or a view near it {near:.1%}"
        )


def _is_near(one: View, other: View) -> bool:
    """Return whether a view's corner is less than half a side from another's."""
    left, top, right, _ = other.box
    distance = max(abs(one.box[0] - left), abs(one.box[1] - top))
    return one.photograph == other.photograph and distance < (right - left) / 2


def _alter(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Crop an image, change its colors, and mirror every second one."""
    side = int(image.width * generator.uniform(0.8, 0.9))
    left, top = generator.integers(0, image.width - side, 2).tolist()
    box = (left, top, left + side, top + side)
    altered = image.resize(image.size, Image.Resampling.BICUBIC, box)
    altered = ImageEnhance.Brightness(altered).enhance(generator.uniform(0.7, 1.3))
    altered = ImageEnhance.Color(altered).enhance(generator.uniform(0.3, 1))
    altered = ImageEnhance.Contrast(altered).enhance(generator.uniform(0.7, 1.3))
    return ImageOps.mirror(altered) if generator.random() < 0.5 else altered


def _embed_with(model: HieraModel) -> _Embed:
    preprocessing = for_image_size((_SIDE, _SIDE))
    normalization = Normalization(preprocessing, torch.device("cpu"))

    def embed(images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
        pixels = torch.stack([preprocessing(image) for image in images])
        with torch.inference_mode():
            batches = [
                model(normalization(batch)).last_hidden_state.mean(dim=1)
                for batch in pixels.split(100)
            ]

        vectors: npt.NDArray[np.float32] = torch.cat(batches).numpy()
        return vectors

    return embed


def _histograms(images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
    """Return the square roots of color histograms of 8x8x8 cells."""
    levels = np.stack([np.asarray(image) for image in images]) // 32
    cells = (levels.astype(int) @ [64, 8, 1]).reshape(len(images), -1)
    counts = [np.bincount(row, minlength=512) for row in cells]
    return np.sqrt(counts).astype(np.float32)


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


if __name__ == "__main__":
    main()
