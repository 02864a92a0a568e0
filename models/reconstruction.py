"""The FiftyOne model that reconstructs images with a masked autoencoder."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..embedding.embedder import Embedder
from ..hiera.autoencoder import Autoencoder
from ..images.decoding import ImageLike
from .drawing import Values
from .heatmap import HieraHeatmapModel


class HieraAutoencoderModel(HieraHeatmapModel):
    """FiftyOne model that generates heatmaps of the reconstruction error, and embeds.

    Args:
        autoencoder: the masked autoencoder
        embedder: what computes embeddings
    """

    # The reconstruction error of a uniform patch is 1; errors above 2 are rare
    _limits = (0.0, 2.0)

    def __init__(self, autoencoder: Autoencoder, embedder: Embedder) -> None:
        super().__init__(embedder)
        self._autoencoder = autoencoder

    def reconstruct(self, image: ImageLike) -> Image.Image:
        """Reconstruct an image, each part from the parts around it.

        The network predicts normalized patches, without their color and contrast:
        each patch of 16 px gets the mean and standard deviation of the image's own.

        Args:
            image: an image of any form that :meth:`embed_all` accepts

        Returns:
            an RGB image of the encoder's input size
        """
        pixels = self._preprocessing(image).unsqueeze(0)
        (reconstruction,) = self._autoencoder.reconstruct(pixels)
        return Image.fromarray(reconstruction.permute(1, 2, 0).cpu().numpy())

    def _values(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._autoencoder.errors(pixels)

    def _attributes(self, values: Values) -> dict[str, float]:
        return {"error": float(np.mean(values))}
