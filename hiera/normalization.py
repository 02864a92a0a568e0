"""Normalize pixels on the encoder's device."""

from __future__ import annotations

import torch

from ..images.preprocessing import Preprocessing


class Normalization:
    """Scale uint8 pixels to [0, 1] and normalize each channel.

    Args:
        preprocessing: the preprocessing, which has the mean and standard deviation
        device: the device of the network
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self._device = device
        self._mean, self._std = (
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )

        # A tensor: some devices divide by a Python scalar by multiplying with its rounded
        # reciprocal
        self._full_scale = torch.full_like(self._mean, 255.0)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalize a batch of images.

        Args:
            pixels: a uint8 tensor of shape (N, 3, H, W) on any device

        Returns:
            a float32 tensor of shape (N, 3, H, W) on the network's device
        """
        pixels = pixels.to(self._device, non_blocking=True)
        return pixels.float().div_(self._full_scale).sub_(self._mean).div_(self._std)

    def undo(self, inputs: torch.Tensor) -> torch.Tensor:
        """Convert a normalized batch back to uint8 pixels.

        Args:
            inputs: a float32 tensor of shape (N, 3, H, W)

        Returns:
            a uint8 tensor of shape (N, 3, H, W)
        """
        pixels = self._full_scale * (inputs * self._std + self._mean)
        return pixels.round().clamp(0, 255).to(torch.uint8)
