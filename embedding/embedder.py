"""Compute the embeddings of a checkpoint: pixels to tokens to pooled vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import Settings
from ..hiera.encoder import Encoder
from ..hiera.oom import Halving, Pixels
from ..hiera.pooling import POOLINGS
from ..images.preprocessing import Preprocessing
from .jobs import Embeddings
from .provenance import Provenance


@dataclass(eq=False)
class Embedder:
    """Computes the embeddings of a checkpoint with some settings.

    Args:
        encoder: the encoder
        preprocessing: the preprocessing, from an image to a uint8 tensor (3, H, W)
        settings: the options, with a device
        provenance: the provenance of the embeddings
        entry: the name of the entry of the zoo
        weights_path: the path of its weights, if it was given
    """

    encoder: Encoder
    preprocessing: Preprocessing
    settings: Settings
    provenance: Provenance
    entry: str
    weights_path: Path | None

    def __post_init__(self) -> None:
        self._embed_batch = Halving(self._forward)

    @property
    def dim(self) -> int:
        """The number of dimensions of an embedding."""
        return self.encoder.config.stage_dim(self.settings.stage)

    def embed(self, pixels: Pixels) -> Embeddings:
        """Compute embeddings, in smaller batches if memory runs out.

        Args:
            pixels: the pixels of N >= 1 images

        Returns:
            an array of shape (N, D), in which a row may hold NaN or infinity

        Raises:
            MemoryError: if there is not enough memory even for one image
        """
        (embeddings,) = self._embed_batch(pixels)
        return embeddings

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute the tokens that are pooled, a tensor of shape (N, T, D)."""
        (tokens,) = self.encoder(pixels, self.settings.stage)
        return tokens

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool tokens to embeddings (N, D), and normalize if the settings say so."""
        pooled = POOLINGS[self.settings.pooling](tokens, self.encoder.norm)
        if not self.settings.normalize:
            return pooled

        return torch.nn.functional.normalize(pooled, dim=1)

    def _forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.pool(self.tokens(pixels)),)
