"""Mask parts of images and reconstruct them by a masked autoencoder.

Masked Autoencoders Are Scalable Vision Learners, He et al., CVPR 2022,
https://arxiv.org/abs/2111.06377; for Hiera, https://arxiv.org/abs/2306.00989

The network is transformers' ``HieraForPreTraining``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from ..errors import OptionError
from .backbone import resize_positions
from .encoder import Encoder

_SEED = 51
_POSITIONS = "hiera.embeddings.position_embeddings"
_DECODER_POSITIONS = "decoder.decoder_position_embeddings"


class Autoencoder:
    """Reconstructs masked parts of images.

    The masks are the same for all images. Together they mask each mask unit (32 px) at
    least once, and no unit more than once more often than another.

    Args:
        encoder: the encoder of a ``HieraForPreTraining``, which is loaded in float32 as
            a whole, for images of the same size
        num_masks: the number of masks

    Raises:
        ValueError: if the masks are too few to mask every unit
    """

    def __init__(self, encoder: Encoder, num_masks: int) -> None:
        config = encoder.config
        self._is_normalized = config.normalize_pixel_loss
        self._normalize = encoder.normalize
        self._grid = config.grid_size(config.num_stages)
        height, width = _divide(config.grid_size(1), config.masked_unit_size)
        down, across = _divide(self._grid, (height, width))
        masks = make_masks(height * width, config.mask_ratio, num_masks)
        self.masks = masks.to(encoder.device)

        # The image has (height, width) mask units, each of (down, across) patches
        self._layout = (height, down, width, across)
        spread = self.masks.view(-1, height, 1, width, 1).expand(-1, *self._layout)
        self._is_masked = spread.flatten(1).float()  # (masks, P)
        self._counts = self._is_masked.sum(dim=0)
        self._network = _load_network(encoder)
        self._side = self._network.decoder.pred_stride

    @torch.inference_mode()
    def errors(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute reconstruction errors.

        Args:
            pixels: a uint8 tensor of shape (N, 3, H, W)

        Returns:
            a float32 tensor of shape (N, h, w): the mean squared error of each mask unit's
            pixels, over the masks that cover it. If the network was trained on normalized
            patches, as Meta's were, 0 is a perfect reconstruction and 1 that of a uniform
            patch
        """
        inputs = self._normalize(pixels)
        targets = self._to_patches(inputs)
        if self._is_normalized:
            mean, std = _statistics(targets)
            targets = (targets - mean) / std

        total = torch.zeros(targets.shape[:2], device=targets.device)
        for reconstructed, is_masked in self._reconstruct(inputs):
            total += (reconstructed - targets).square().mean(dim=-1) * is_masked

        errors: torch.Tensor = (total / self._counts).unflatten(1, self._layout)
        return errors.mean(dim=(2, 4))

    @torch.inference_mode()
    def reconstruct(self, pixels: torch.Tensor) -> torch.Tensor:
        """Reconstruct images, each part from the parts that its masks leave visible.

        Args:
            pixels: a uint8 tensor of shape (N, 3, H, W)

        Returns:
            a uint8 tensor of shape (N, 3, H, W). If the network was trained on normalized
            patches, it cannot know their mean and contrast: each patch (16 px) has those
            of the image itself

        Raises:
            ValueError: if the network gave NaN or infinity
        """
        inputs = self._normalize(pixels)
        originals = self._to_patches(inputs)
        total = torch.zeros_like(originals)
        for reconstructed, is_masked in self._reconstruct(inputs):
            total += reconstructed * is_masked.unsqueeze(-1)

        patches = total / self._counts.unsqueeze(-1)
        if self._is_normalized:
            mean, std = _statistics(originals)
            patches = patches * std + mean

        if not patches.isfinite().all():
            raise ValueError("The model returned NaN or infinity")

        return self._normalize.undo(self._from_patches(patches))

    def _reconstruct(
        self, inputs: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the reconstructed patches (N, P, D) and the masked ones, for each mask."""
        for mask, is_masked in zip(self.masks, self._is_masked, strict=True):
            # transformers masks where the noise is largest
            noise = mask.float().expand(len(inputs), -1)
            yield self._network(inputs, noise=noise).logits, is_masked

    def _to_patches(self, images: torch.Tensor) -> torch.Tensor:
        """Divide images (N, 3, H, W) into patches (N, P, 3 * side * side), row by row."""
        patches = functional.unfold(images, self._side, stride=self._side)
        return patches.transpose(1, 2).contiguous()

    def _from_patches(self, patches: torch.Tensor) -> torch.Tensor:
        """Join patches to images, the inverse of :meth:`_to_patches`."""
        down, across = self._grid
        size = (down * self._side, across * self._side)
        return functional.fold(patches.transpose(1, 2), size, self._side, stride=self._side)


def make_masks(num_units: int, mask_ratio: float, num_masks: int) -> torch.Tensor:
    """Make reproducible masks that together cover all mask units.

    Args:
        num_units: the number of mask units of an image
        mask_ratio: the share of units that each mask covers
        num_masks: the number of masks

    Returns:
        a bool tensor of shape (num_masks, num_units), True where a unit is masked

    Raises:
        ValueError: if the masks are too few to cover every unit
    """
    num_masked = num_units - int(num_units * (1 - mask_ratio))
    least = math.ceil(num_units / num_masked)
    if num_masked == num_units:
        raise ValueError(
            f"An image of {num_units} mask units is too small to mask "
            f"{mask_ratio:.0%} of it: choose a larger image_size"
        )

    if num_masks < least:
        raise OptionError(
            "num_masks",
            f"Invalid num_masks: {num_masks}. Each masks {num_masked} of {num_units} mask "
            f"units, so at least {least} are needed to mask each once",
        )

    order = torch.randperm(num_units, generator=torch.Generator().manual_seed(_SEED))
    masks = torch.zeros(num_masks, num_units, dtype=torch.bool)
    for index in range(num_masks):
        first = round(index * num_units / num_masks)
        masks[index, order.roll(-first)[:num_masked]] = True

    return masks


def _load_network(encoder: Encoder) -> Any:
    from transformers import HieraForPreTraining

    saved, config = encoder.saved_config, encoder.config
    tensors = encoder.weights.tensors()
    for name, stage in ((_POSITIONS, 1), (_DECODER_POSITIONS, config.num_stages)):
        old, new = saved.grid_size(stage), config.grid_size(stage)
        tensors[name] = resize_positions(tensors[name], old, new)

    with torch.device("meta"):
        network = HieraForPreTraining(config.to_transformers())

    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval().requires_grad_(False).float().to(encoder.device)


def _divide(sides: tuple[int, int], by: tuple[int, int]) -> tuple[int, int]:
    return sides[0] // by[0], sides[1] // by[1]


def _statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and standard deviation of each patch, as in training."""
    mean = patches.mean(dim=-1, keepdim=True)
    return mean, (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
