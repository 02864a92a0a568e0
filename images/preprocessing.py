"""Resize, crop and normalize images, with the same results as transformers.

The steps are those of transformers' ``BitImageProcessorPil`` with the settings of
Meta's Hiera repositories: resize the shortest edge to 256, bicubic; center crop of 224,
odd margins truncated; scale by 1/255; normalize by ImageNet's mean and standard
deviation. The crop stays uint8 until it is on the encoder's device, a quarter of the
bytes to transfer; ``hiera/encoder.py`` then computes the same float32 values.

The fast variant (option ``fast_decoding``) decodes large JPEGs at reduced size and
resizes with torch's SIMD kernels. Nothing else here imports torch: processes that only
read would spend 0.5 GB and seconds on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from .decoding import ImageLike, displayed_size, is_path, to_rgb
from .pickling import Portable

if TYPE_CHECKING:
    import torch

PixelArray = npt.NDArray[np.uint8]
"""An image as the encoder takes it, of shape (3, height, width)."""

# If an image would have more pixels once resized, only what is inside the crop is
# resized: all of a 30000x1 px image would take 8 GB
_MAX_RESIZED_PIXELS = 4096 * 4096

# The fast variant decodes JPEGs to at least this multiple of the size that they are
# resized to. With 1 instead of 2, pixels differ three to four times as much
_FAST_FACTOR = 2
_TORCH_MODES = {
    int(Image.Resampling.BILINEAR): "bilinear",
    int(Image.Resampling.BICUBIC): "bicubic",
}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing(Portable):
    """Resize and center crop images; carries the constants of their normalization.

    Args:
        resize_size: the (height, width) in pixels that an image is resized to cover,
            preserving its aspect ratio: (N, N) resizes its shortest edge to N
        crop_size: the (height, width) in pixels of the center crop
        resample (3): the PIL resampling filter; 3 is bicubic
        mean: the mean of each channel, for values in [0, 1]
        std: the standard deviation of each channel, for values in [0, 1]
        is_fast (False): whether to trade bit-exact results for speed
        is_squashed (False): whether to resize images to ``crop_size`` without preserving
            the aspect ratio, instead of cropping them
    """

    resize_size: tuple[int, int]
    crop_size: tuple[int, int]
    resample: int = int(Image.Resampling.BICUBIC)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    is_fast: bool = False
    is_squashed: bool = False

    def to_sized_rgb(self, image: ImageLike) -> tuple[Image.Image, tuple[int, int]]:
        """Convert an image to upright RGB.

        Args:
            image: any image that :func:`fiftyone_hiera.images.decoding.to_rgb` accepts

        Returns:
            a tuple of the image, if :attr:`is_fast` possibly of reduced size, and of its
            (width, height) in pixels at full size
        """
        rgb = to_rgb(image, self.shortest_edge)
        if self.is_fast and is_path(image):
            return rgb, displayed_size(image)

        return rgb, rgb.size

    def __call__(self, image: ImageLike) -> torch.Tensor:
        """Resize and crop an image to a uint8 tensor; see :meth:`to_pixels`."""
        import torch

        return torch.from_numpy(self.to_pixels(image))

    def to_pixels(self, image: ImageLike) -> PixelArray:
        """Resize and crop an image to the encoder's input.

        Args:
            image: any image that :func:`fiftyone_hiera.images.decoding.to_rgb` accepts

        Returns:
            a uint8 array of shape (3, height, width)
        """
        rgb = to_rgb(image, self.shortest_edge)
        resized = self._resized_size(rgb.size)
        crop = self._crop(resized)
        if resized[0] * resized[1] > _MAX_RESIZED_PIXELS:
            cropped = _resize_crop(rgb, resized, crop, self.resample)
        elif self.is_fast and self.resample in _TORCH_MODES:
            whole = _resize_fast(rgb, resized, _TORCH_MODES[self.resample])
            left, top, right, bottom = crop
            return whole[:, top:bottom, left:right].copy()
        else:
            cropped = rgb.resize(resized, self.resample).crop(crop)

        pixels = np.empty((3, *self.crop_size), np.uint8)
        pixels[...] = np.asarray(cropped).transpose(2, 0, 1)
        return pixels

    def crop_box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return the region of an image that is inside the crop.

        Args:
            size: the (width, height) in pixels of the image

        Returns:
            the (left, top, right, bottom) edges in pixels of the image
        """
        resized = self._resized_size(size)
        left, top, right, bottom = (
            edge * whole / scaled
            for edge, whole, scaled in zip(
                self._crop(resized), size * 2, resized * 2, strict=True
            )
        )
        return left, top, right, bottom

    def at(self, image_size: tuple[int, int]) -> Preprocessing:
        """Return this preprocessing for another input size (height, width) in pixels.

        The relative margin around the crop stays the same.
        """
        height, width = (
            side * resized // crop
            for side, resized, crop in zip(
                image_size, self.resize_size, self.crop_size, strict=True
            )
        )
        return replace(self, resize_size=(height, width), crop_size=image_size)

    def _resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) that an image is resized to."""
        if self.is_squashed:
            return self.crop_size[1], self.crop_size[0]

        width, height = size
        min_height, min_width = self.resize_size
        if width * min_height <= height * min_width:
            return min_width, int(min_width * height / width)

        return int(min_height * width / height), min_height

    def _crop(self, resized: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the (left, top, right, bottom) edges of the center crop."""
        height, width = self.crop_size
        left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
        return left, top, left + width, top + height

    @property
    def shortest_edge(self) -> int | None:
        """The shortest edge in pixels that JPEGs may be decoded to; None is their own."""
        if not self.is_fast:
            return None

        return _FAST_FACTOR * max(self.crop_size if self.is_squashed else self.resize_size)


def for_image_size(image_size: tuple[int, int]) -> Preprocessing:
    """Return Meta's preprocessing for an input size (height, width) in pixels.

    It resizes to 256/224 of that size.
    """
    return Preprocessing((256, 256), (224, 224)).at(image_size)


def _resize_fast(image: Image.Image, size: tuple[int, int], mode: str) -> PixelArray:
    """Resize an image to (width, height) with torch.

    Its filter weights have 16 bits, Pillow's 22: some values differ by one gray level.
    """
    import torch
    from torch.nn import functional

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    resized = functional.interpolate(pixels, size[::-1], mode=mode, antialias=True)[0]
    array: PixelArray = resized.numpy()
    return array


def _resize_crop(
    image: Image.Image,
    resized: tuple[int, int],
    crop: tuple[int, int, int, int],
    resample: int,
) -> Image.Image:
    """Resize only what is inside the crop, whose edges are those in the resized image.

    Equal to resizing the whole image and cropping it, up to the precision of Pillow's
    boxes (float32): some values differ by one gray level.
    """
    scales = [old / new for old, new in zip(image.size, resized, strict=True)] * 2
    box = [edge * scale for edge, scale in zip(crop, scales, strict=True)]

    # The filter's support extends beyond the box by at most 3 pixels of the coarser grid
    support = [int(4 * max(scale, 1)) + 1 for scale in scales[:2]]
    x, y = (max(0, int(box[axis]) - support[axis]) for axis in (0, 1))
    right, bottom = (
        min(image.size[axis], int(box[axis + 2]) + support[axis]) for axis in (0, 1)
    )
    return image.crop((x, y, right, bottom)).resize(
        (crop[2] - crop[0], crop[3] - crop[1]),
        resample,
        box=(box[0] - x, box[1] - y, box[2] - x, box[3] - y),
    )
