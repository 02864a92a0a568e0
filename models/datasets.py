"""Read images and patches in FiftyOne's data loaders."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import fiftyone.utils.torch as fout
import numpy as np
import torch

from ..embedding.patches import extract_patch, to_box
from ..images.decoding import Source, describe_source, read_image
from ..images.pickling import Portable
from ..images.preprocessing import Preprocessing


class ImageGetItem(Portable, fout.GetItem):
    """Reads and preprocesses image files.

    Args:
        preprocessing: the preprocessing
        field_mapping (None): a dict that maps ``"filepath"`` to another field
            of the dataset
    """

    required_keys: ClassVar[list[str]] = ["filepath"]
    """The keys that :meth:`__call__` reads."""

    def __init__(
        self, preprocessing: Preprocessing, field_mapping: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(field_mapping=field_mapping)
        self._preprocessing = preprocessing

    def __call__(self, d: Mapping[str, Any]) -> Any:
        """Read the image at ``d["filepath"]`` to a uint8 tensor of shape (3, H, W).

        Raises:
            ValueError: if the file cannot be read; the message gives its path
        """
        return self._preprocessing(d["filepath"])


class SizedGetItem(ImageGetItem):
    """Reads and preprocesses image files, and keeps their original sizes."""

    def __call__(self, d: Mapping[str, Any]) -> dict[str, Any]:
        """Read the image at ``d["filepath"]``.

        Returns:
            a dict with ``"pixels"``, a uint8 tensor of shape (3, H, W), and the
            ``"width"`` and ``"height"`` of the image in pixels

        Raises:
            ValueError: if the file cannot be read; the message gives its path
        """
        image, (width, height) = self._preprocessing.to_sized_rgb(d["filepath"])
        return {"pixels": self._preprocessing(image), "width": width, "height": height}


class PatchesDataset(fout.TorchImagePatchesDataset, Portable):
    """Reads and preprocesses image patches, with strict decoding.

    FiftyOne decodes with OpenCV, which fills the missing part of truncated files
    with gray. The order of the bases lets FiftyOne's instances take this class.
    """

    def _extract_patches(self, image_path: Source, patches: Iterable[Any]) -> torch.Tensor:
        if not isinstance(image_path, (str, os.PathLike, bytes)):
            raise TypeError(
                "Patches are extracted from the path or the bytes of an image file, found "
                f"{type(image_path).__name__}: this release of FiftyOne is not supported"
            )

        image = np.asarray(read_image(image_path))
        try:
            extracted = [
                extract_patch(
                    image, to_box(box), alpha=self.alpha, force_square=self.force_square
                )
                for box in patches
            ]
        except ValueError as error:
            raise ValueError(
                f"Cannot embed the patches of {describe_source(image_path)}: {error}"
            ) from error

        return torch.stack([self.transform(patch) for patch in extracted])


def _adopt_patches() -> None:
    """Turn FiftyOne's datasets of patches into ours, if their transform is ours.

    FiftyOne takes a model's own GetItem for images, but has no such hook for patches.
    This changes nothing about the datasets of other models, whose class stays the same.
    """
    base = fout.TorchImagePatchesDataset
    initialize = base.__init__

    @functools.wraps(initialize)
    def initialize_and_adopt(self: Any, *args: Any, **kwargs: Any) -> None:
        initialize(self, *args, **kwargs)
        if type(self) is base and isinstance(self.transform, Preprocessing):
            self.__class__ = PatchesDataset

    base.__init__ = initialize_and_adopt


_adopt_patches()
