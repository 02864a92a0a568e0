"""How data loader workers read the model's images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import fiftyone.utils.torch as fout
import numpy as np
import torch

from ..images.decoding import read_image, upright_size
from ..images.pickling import Portable
from ..images.preprocessing import Preprocessing
from ..runs.patches import Box, extract_patch


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

    def __call__(self, d: Mapping[str, Any]) -> Any:
        """Read and prepare one image.

        Args:
            d: a dict whose ``"filepath"`` is the path of the image

        Returns:
            a uint8 tensor of shape (3, H, W)

        Raises:
            ValueError: if the file cannot be read; the message names it
        """
        return self._preprocessing(self._preprocessing.read(d["filepath"]))


class SizedGetItem(ImageGetItem):
    """Reads image files into the encoder's input, and says how large they are."""

    def __call__(self, d: Mapping[str, Any]) -> dict[str, Any]:
        """Read and prepare one image.

        Args:
            d: a dict whose ``"filepath"`` is the path of the image

        Returns:
            a dict: ``"pixels"``, a uint8 tensor of shape (3, H, W), ``"width"`` and
            ``"height"``

        Raises:
            ValueError: if the file cannot be read; the message names it
        """
        path = d["filepath"]
        picture = self._preprocessing.read(path)
        # Decoded fast, it may be a fraction of its size
        size = upright_size(path) if self._preprocessing.is_fast else picture.size
        pixels = self._preprocessing(picture)
        return {"pixels": pixels, "width": size[0], "height": size[1]}


class PatchesDataset(Portable, fout.TorchImagePatchesDataset):
    """FiftyOne's dataset of patches, with images read by this project's rules.

    FiftyOne reads the images of patches with OpenCV, which fills what is
    missing of truncated files with grey.
    """

    def _extract_patches(self, image_path: str, patches: Iterable[Box]) -> torch.Tensor:
        picture = np.asarray(read_image(image_path))
        try:
            extracted = [
                extract_patch(
                    picture, box, alpha=self.alpha, force_square=self.force_square
                )
                for box in patches
            ]
        except ValueError as error:
            raise ValueError(
                f"Cannot embed the patches of {image_path!r}: {error}"
            ) from error

        return torch.stack([self.transform(patch) for patch in extracted])
