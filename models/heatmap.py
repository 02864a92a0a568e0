"""The FiftyOne models that draw heatmaps."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fiftyone.core.collections as foc
import fiftyone.core.labels as fol
import fiftyone.core.media as fom
import fiftyone.core.utils as fou
import numpy as np
import numpy.typing as npt
import torch

from ..hiera.oom import Halving, Pixels
from ..hiera.pca import Basis, fit_basis, load_basis, save_basis
from ..images.decoding import ImageLike, to_rgb
from ..images.preprocessing import Preprocessing
from .datasets import ImageGetItem, SizedGetItem
from .embedding import HieraEmbeddingModel, stack

logger = logging.getLogger(__name__)

# In standard deviations of the tokens that the basis was fitted to
_LIMITS = (-3.0, 3.0)

_FIT_BATCH = 16
_SEED = 51

Values = npt.NDArray[np.float32]


class HieraHeatmapModel(HieraEmbeddingModel):
    """A Hiera that draws heatmaps of images, and embeds them.

    Subclasses say what of.

    Args:
        limits: the least and the largest value that can be told apart in a map
        **kwargs: see :class:`fiftyone_hiera.models.embedding.HieraEmbeddingModel`
    """

    def __init__(self, limits: tuple[float, float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._limits = limits
        self._grids = Halving(self._forward_grids)

    def build_get_item(
        self, field_mapping: Mapping[str, str] | None = None
    ) -> ImageGetItem:
        """Build the object by which data loaders read the model's images."""
        return SizedGetItem(self._preprocessing, field_mapping=field_mapping)

    def predict(self, arg: ImageLike) -> fol.Heatmap:
        """Draw the heatmap of an image.

        Args:
            arg: see :meth:`predict_all`

        Returns:
            a :class:`fiftyone.core.labels.Heatmap`
        """
        return self.predict_all([arg])[0]

    def predict_all(self, args: Any) -> list[fol.Heatmap]:
        """Draw the heatmaps of a batch of images.

        Args:
            args: PIL images or arrays, as for :meth:`embed_all`; if :attr:`preprocess`
                is False, a batch of what :meth:`build_get_item` reads

        Returns:
            a list of :class:`fiftyone.core.labels.Heatmap` instances, of the sizes of
            the images

        Raises:
            ValueError, MemoryError: as :meth:`embed_all`
        """
        if self._preprocess:
            pictures = [to_rgb(image) for image in args]
            sizes = [picture.size for picture in pictures]
            pixels = self._batch(pictures)
        else:
            sizes = list(zip(args["width"].tolist(), args["height"].tolist(), strict=True))
            pixels = self._batch(args)

        if not len(pixels):
            return []

        (grids,) = self._grids(pixels)
        self._check_finite(grids)
        return [
            make_heatmap(
                grid, self._limits, self._preprocessing, size, **self._describe(grid)
            )
            for grid, size in zip(grids, sizes, strict=True)
        ]

    @abstractmethod
    def _heat(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the values (N, h, w) of images (N, 3, H, W)."""

    def _describe(self, grid: Values) -> dict[str, float]:
        """Return further attributes of an image's label."""
        return {}

    def _batch(self, args: Iterable[ImageLike]) -> torch.Tensor:
        return super()._batch(args["pixels"] if isinstance(args, Mapping) else args)

    @torch.inference_mode()
    def _forward_grids(self, pixels: Pixels) -> tuple[Values]:
        return (self._heat(stack(pixels)).cpu().numpy(),)


class HieraFeatureHeatmapModel(HieraHeatmapModel):
    """Draws where in an image the tokens of a stage are of one kind or of another.

    Args:
        basis: what kind that is, if it was fitted already
        **kwargs: see :class:`fiftyone_hiera.models.embedding.HieraEmbeddingModel`
    """

    def __init__(self, basis: Path | None, **kwargs: Any) -> None:
        super().__init__(limits=_LIMITS, **kwargs)
        self._basis = None if basis is None else self._check_basis(basis)

    def __enter__(self) -> HieraFeatureHeatmapModel:
        """Prepare for FiftyOne's own methods.

        Raises:
            ValueError: if the model has no basis yet
        """
        # FiftyOne would only log it, batch by batch
        self._require_basis()
        super().__enter__()
        return self

    def fit_heatmap(
        self,
        samples: foc.SampleCollection,
        path: str | None = None,
        max_samples: int = 256,
    ) -> None:
        """Find what heatmaps show: the direction in which tokens differ most.

        It is the first principal component of the tokens of these images, and the same
        for all images that heatmaps are drawn of from now on.

        Args:
            samples: a :class:`fiftyone.core.dataset.Dataset` or a
                :class:`fiftyone.core.view.DatasetView` of images
            path (None): a ``.safetensors`` file to keep it in, for the option
                ``heatmap_basis``
            max_samples (256): how many images to look at; if there are more, which
                is chosen at random, but the same ones each time

        Raises:
            ValueError: if the samples are no images, if none can be read, or if the
                path is a folder, or in none
        """
        if not isinstance(samples, foc.SampleCollection):
            raise ValueError(
                f"fit_heatmap() takes a dataset or a view, found {type(samples).__name__}"
            )

        if samples.media_type != fom.IMAGE:
            raise ValueError(
                f"A basis is fitted to images, not to media type {samples.media_type!r}: "
                "of a video dataset, give dataset.to_frames(sample_frames=True)"
            )

        if path is not None and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"Invalid path: {str(path)!r} is in no folder that there is")

        if path is not None and Path(path).is_dir():
            raise ValueError(f"Invalid path: {str(path)!r} is a folder; name a file")

        chosen = samples.take(max_samples, seed=_SEED).values("filepath")
        try:
            self._basis = fit_basis(self._tokens_of(sorted(chosen)), self._fitted_with)
        except ValueError as error:
            raise ValueError(f"No basis from {len(chosen)} images: {error}") from error

        if path is not None:
            save_basis(self._basis, Path(path))

    def _heat(self, pixels: torch.Tensor) -> torch.Tensor:
        (tokens,) = self._encoder(pixels, self.settings.stage)
        grid = self._encoder.stages[self.settings.stage - 1].grid
        heat: torch.Tensor = self._require_basis()(tokens).unflatten(1, grid)
        return heat

    def _require_basis(self) -> Basis:
        if self._basis is None:
            raise ValueError(
                "Heatmaps need a basis, one for all images: call "
                "model.fit_heatmap(dataset) first, or load the model with heatmap_basis, "
                "the path of one that was kept. (To embed with FiftyOne's own methods, "
                "load the model without output='heatmap')"
            )

        return self._basis

    def _check_basis(self, path: Path) -> Basis:
        basis = load_basis(path)
        differing = [
            f"{name} {basis.fitted_with.get(name, 'unknown')}, here it is {here}"
            for name, here in self._fitted_with.items()
            if basis.fitted_with.get(name) != here
        ]
        if differing:
            raise ValueError(
                f"Invalid heatmap_basis: {str(path)!r} was fitted with "
                + "; ".join(differing)
            )

        return basis

    @property
    def _fitted_with(self) -> dict[str, str]:
        height, width = self._preprocessing.crop_size
        return {
            "weights of sha256": self._record["sha256"],
            "stage": str(self.settings.stage),
            "image_size": f"{height}x{width}",
            "squash": str(self._preprocessing.is_squashed),
        }

    def _tokens_of(self, paths: Sequence[str]) -> Iterator[torch.Tensor]:
        with ThreadPoolExecutor(fou.recommend_thread_pool_workers()) as pool:
            for start in range(0, len(paths), _FIT_BATCH):
                read = pool.map(self._read, paths[start : start + _FIT_BATCH])
                pixels = [image for image in read if image is not None]
                if pixels:
                    yield self._encoder(torch.stack(pixels), self.settings.stage)[0]

    def _read(self, path: str) -> torch.Tensor | None:
        try:
            return self._preprocessing(self._preprocessing.read(path))
        except ValueError as error:
            logger.warning("Not used for the basis: %s", error)
            return None


def make_heatmap(
    values: Values,
    limits: tuple[float, float],
    preprocessing: Preprocessing,
    size: tuple[int, int],
    **attributes: Any,
) -> fol.Heatmap:
    """Draw a grid of values as a map of the size of its image.

    Each cell of the grid becomes a plain rectangle: what lies between the centers of
    two cells was not measured. The map is uint8 and says 1 to 255 for the values between
    the limits, the same in all images, and 0 for what was cropped away.

    Args:
        values: an array of shape (h, w)
        limits: the values that become 1 and 255; those beyond are cut
        preprocessing: how the image was prepared
        size: the (width, height) in pixels of the image
        **attributes: further attributes of the label

    Returns:
        a :class:`fiftyone.core.labels.Heatmap`
    """
    low, high = limits
    levels = 1 + np.rint(254 * np.clip((values - low) / (high - low), 0, 1))
    left, top, right, bottom = preprocessing.box(size)
    columns = _cells(size[0], left, right, values.shape[1])
    rows = _cells(size[1], top, bottom, values.shape[0])

    # A border of zeros, for the cell -1
    padded = np.pad(levels.astype(np.uint8), ((0, 1), (0, 1)))
    drawn = padded[rows][:, columns]
    return fol.Heatmap(map=drawn, **attributes)


def _cells(length: int, start: float, end: float, count: int) -> npt.NDArray[np.intp]:
    """Return in which of the cells between two edges the centers of pixels are, or -1."""
    places = (np.arange(length) + 0.5 - start) / (end - start) * count
    cells = np.floor(places).astype(np.intp)
    return np.where((places >= 0) & (cells < count), cells, -1)
