"""How data loader workers read the model's images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fiftyone.utils.torch as fout
import torch

from .hiera.portable import Portable
from .hiera.preprocessing import Preprocessing


class ImageGetItem(Portable, fout.GetItem):
    """Reads image files into the encoder's input.

    Args:
        preprocessing: the preprocessing
        field_mapping (None): a dict that maps ``"filepath"`` to another field
            of the dataset
    """

    def __init__(
        self, preprocessing: Preprocessing, field_mapping: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(field_mapping=field_mapping)
        self._preprocessing = preprocessing

    @property
    def required_keys(self) -> list[str]:
        """The keys that :meth:`__call__` reads."""
        return ["filepath"]

    def __call__(self, d: Mapping[str, Any]) -> torch.Tensor:
        """Read and prepare one image.

        Args:
            d: a dict whose ``"filepath"`` is the path of the image

        Returns:
            a uint8 tensor of shape (3, H, W)

        Raises:
            ValueError: if the file cannot be read; the message names it
        """
        return self._preprocessing(self._preprocessing.read(d["filepath"]))
