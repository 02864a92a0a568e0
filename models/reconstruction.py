"""The FiftyOne model of a masked autoencoder: how well images are guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from ..hiera.autoencoder import Autoencoder
from ..images.decoding import ImageLike
from .heatmap import HieraHeatmapModel, Values

# A guess that is a plain patch has an error of 1; those beyond 2 are rare
_LIMITS = (0.0, 2.0)


class HieraAutoencoderModel(HieraHeatmapModel):
    """A masked autoencoder that draws where it guesses images wrongly.

    Args:
        autoencoder: the network
        **kwargs: see :class:`fiftyone_hiera.models.embedding.HieraEmbeddingModel`
    """

    def __init__(self, autoencoder: Autoencoder, **kwargs: Any) -> None:
        super().__init__(limits=_LIMITS, **kwargs)
        self._autoencoder = autoencoder

    def reconstruct(self, image: ImageLike) -> Image.Image:
        """Guess all of an image, each part from what is around it.

        Args:
            image: any form that :meth:`embed_all` takes

        Returns:
            an RGB picture of the size of the encoder's input. The network guesses
            patches that are normalised: each one (16 px) has the average colour and the
            contrast of the image itself
        """
        pixels = self._preprocessing(image).unsqueeze(0)
        (guessed,) = self._autoencoder.reconstruct(pixels)
        return Image.fromarray(guessed.permute(1, 2, 0).cpu().numpy())

    def _heat(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._autoencoder.errors(pixels)

    def _describe(self, grid: Values) -> dict[str, float]:
        return {"error": float(np.mean(grid))}
