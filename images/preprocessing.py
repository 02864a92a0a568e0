"""From a picture to the encoder's input, exactly as transformers does it.

The steps and their order are those of transformers' ``BitImageProcessorPil``
with the settings of Meta's Hiera repositories: shortest edge to 256, bicubic;
centre crop of 224, odd margins truncated; 1/255; ImageNet mean and standard
deviation. The crop is kept as uint8 until it is on the encoder's device, a
quarter of the bytes to move; :class:`Normalization` gives the very same floats.

The fast way, for those who ask for it, decodes large JPEGs to a fraction of their
size, and resizes with torch's vector instructions.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from .decoding import ImageLike, read_image, to_rgb
from .pickling import Portable

# Of pictures that would be larger when resized, only what the crop shows is: the
# whole of one of 30000x1 px would take 8 GB
_LARGEST_RESIZED = 4096 * 4096

# The fast way decodes JPEGs to no less than this multiple of the size that they are
# resized to: at once of it, their pixels differ three to four times as much
_FAST_FACTOR = 2
_TORCH_MODES = {
    int(Image.Resampling.BILINEAR): "bilinear",
    int(Image.Resampling.BICUBIC): "bicubic",
}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing(Portable):
    """Resize, centre crop and the constants of normalisation.

    Args:
        least_size: the (height, width) in pixels that an image is resized to cover, in
            its own proportions: (N, N) makes its shorter side N long
        crop_size: the (height, width) in pixels of the centre crop
        resample (3): the PIL filter; 3 is bicubic
        mean: the mean of each channel, for values in [0, 1]
        std: the standard deviation of each channel, for values in [0, 1]
        is_fast (False): whether to be fast instead of exact to the last bit
        is_squashed (False): whether to resize to the very size of the crop instead,
            so that all of an image is seen, distorted
    """

    least_size: tuple[int, int]
    crop_size: tuple[int, int]
    resample: int = int(Image.Resampling.BICUBIC)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    is_fast: bool = False
    is_squashed: bool = False

    def read(self, path: str | os.PathLike[str]) -> Image.Image:
        """Read an image that will be prepared as a whole.

        Args:
            path: the path of the image

        Returns:
            an upright RGB image; if fast, perhaps of a fraction of its size

        Raises:
            ValueError: if the file cannot be read; the message names it
        """
        return read_image(path, self._least_edge)

    def __call__(self, image: ImageLike) -> torch.Tensor:
        """Cut the encoder's input out of an image.

        Args:
            image: any form that :func:`hiera.images.to_rgb` takes

        Returns:
            a uint8 tensor of shape (3, height, width)
        """
        picture = to_rgb(image)
        resized = self._resized(picture.size)
        crop = self._crop(resized)
        if resized[0] * resized[1] > _LARGEST_RESIZED:
            picture = _resize_inside(picture, resized, crop, self.resample)
        elif self.is_fast and self.resample in _TORCH_MODES:
            pixels = _resize_fast(picture, resized, _TORCH_MODES[self.resample])
            left, top, right, bottom = crop
            return pixels[:, top:bottom, left:right].contiguous()
        else:
            picture = picture.resize(resized, self.resample).crop(crop)

        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return which part of an image the encoder sees.

        Args:
            size: the (width, height) in pixels of the image

        Returns:
            the (left, top, right, bottom) edges in pixels of the image
        """
        resized = self._resized(size)
        left, top, right, bottom = (
            edge * whole / scaled
            for edge, whole, scaled in zip(
                self._crop(resized), size * 2, resized * 2, strict=True
            )
        )
        return left, top, right, bottom

    def at(self, image_size: tuple[int, int]) -> Preprocessing:
        """Return the same for another size of the encoder's input.

        Args:
            image_size: the (height, width) in pixels

        Returns:
            a :class:`Preprocessing` that leaves as wide a margin around the crop
        """
        height, width = (
            side * least // crop
            for side, least, crop in zip(
                image_size, self.least_size, self.crop_size, strict=True
            )
        )
        return replace(self, least_size=(height, width), crop_size=image_size)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) that an image is resized to."""
        if self.is_squashed:
            return self.crop_size[1], self.crop_size[0]

        width, height = size
        least_height, least_width = self.least_size
        if width * least_height <= height * least_width:
            return least_width, int(least_width * height / width)

        return int(least_height * width / height), least_height

    def _crop(self, resized: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the (left, top, right, bottom) edges of the centre crop."""
        height, width = self.crop_size
        left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
        return left, top, left + width, top + height

    @property
    def _least_edge(self) -> int | None:
        if not self.is_fast:
            return None

        return _FAST_FACTOR * max(self.crop_size if self.is_squashed else self.least_size)


def for_image_size(image_size: tuple[int, int]) -> Preprocessing:
    """Return the preprocessing of Meta's checkpoints at an input size.

    Args:
        image_size: the encoder's (height, width) in pixels

    Returns:
        a :class:`Preprocessing` that resizes to 256/224 of that size
    """
    height, width = image_size
    return Preprocessing((height * 256 // 224, width * 256 // 224), image_size)


def from_file(path: Path) -> Preprocessing:
    """Read the preprocessing of a checkpoint.

    Args:
        path: the path of a ``preprocessor_config.json``

    Returns:
        a :class:`Preprocessing`

    Raises:
        ValueError: if the file asks for a step that is not supported
    """
    config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    size, crop_size = config.get("size"), config.get("crop_size")

    expected = {
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
    }
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ValueError(
                f"{path}: {key} = {config[key]!r} is not supported, only {value!r}"
            )

    if not isinstance(size, dict) or set(size) != {"shortest_edge"}:
        raise ValueError(
            f"{path}: size = {size!r} is not supported, only {{'shortest_edge': N}}"
        )

    if not isinstance(crop_size, dict) or set(crop_size) != {"height", "width"}:
        raise ValueError(
            f"{path}: crop_size = {crop_size!r} is not supported, only "
            "{'height': N, 'width': N}"
        )

    edge = int(size["shortest_edge"])
    crop = (int(crop_size["height"]), int(crop_size["width"]))
    if max(crop) > edge:
        raise ValueError(
            f"{path}: crop_size = {crop_size!r} is larger than size = {size!r}"
        )

    return Preprocessing(
        least_size=(edge, edge),
        crop_size=crop,
        resample=int(config.get("resample", Image.Resampling.BICUBIC)),
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
    )


class Normalization:
    """From uint8 pixels to what the network sees.

    Args:
        preprocessing: supplies mean and standard deviation
        device: where the network is
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self._device = device
        self._mean, self._std = (
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )

        # All are tensors on the device: dividing by a Python scalar multiplies by a
        # rounded reciprocal on some devices
        self._full_scale = torch.full_like(self._mean, 255.0)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scale pixels to [0, 1], and normalise each channel.

        Args:
            pixels: a uint8 tensor of shape (N, 3, H, W) on any device

        Returns:
            a float32 tensor of that shape on the network's device
        """
        pixels = pixels.to(self._device, non_blocking=True)
        return pixels.float().div_(self._full_scale).sub_(self._mean).div_(self._std)

    def undo(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the pixels that a float32 tensor (N, 3, H, W) stands for, as uint8."""
        pixels = self._full_scale * (inputs * self._std + self._mean)
        return pixels.round().clamp(0, 255).to(torch.uint8)


def _resize_fast(picture: Image.Image, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Resize with filters of 16 bits, where Pillow's have 22: a grey level, here and there.

    Returns:
        a uint8 tensor of shape (3, H, W)
    """
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).unsqueeze(0)
    return functional.interpolate(pixels, size[::-1], mode=mode, antialias=True)[0]


def _resize_inside(
    picture: Image.Image,
    resized: tuple[int, int],
    crop: tuple[int, int, int, int],
    resample: int,
) -> Image.Image:
    """Resize, but only the part inside a crop.

    Equal to resizing all and cropping, up to the precision of the filter's
    position (Pillow's boxes are float32): one grey level in some pixels.
    """
    scales = [old / new for old, new in zip(picture.size, resized, strict=True)] * 2
    box = [edge * scale for edge, scale in zip(crop, scales, strict=True)]

    # The filter reaches beyond the box, by 3 pixels of the coarser grid at most
    reach = [int(4 * max(scale, 1)) + 1 for scale in scales[:2]]
    x, y = (max(0, int(box[axis]) - reach[axis]) for axis in (0, 1))
    right, bottom = (
        min(picture.size[axis], int(box[axis + 2]) + reach[axis]) for axis in (0, 1)
    )
    return picture.crop((x, y, right, bottom)).resize(
        (crop[2] - crop[0], crop[3] - crop[1]),
        resample,
        box=(box[0] - x, box[1] - y, box[2] - x, box[3] - y),
    )
