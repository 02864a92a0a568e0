"""The FiftyOne models that generate heatmaps."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fiftyone.core.collections as foc
import fiftyone.core.labels as fol
import fiftyone.core.media as fom
import fiftyone.core.utils as fou
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ..embedding.embedder import Embedder
from ..errors import OptionError
from ..hiera.autoencoder import Autoencoder
from ..hiera.oom import Halving
from ..hiera.pca import Basis, fit_basis, load_basis, save_basis
from ..images.decoding import ImageLike
from ..images.preprocessing import Preprocessing
from .batches import check_is_list
from .datasets import SizedGetItem
from .embedding import HieraEmbeddingModel

Values = npt.NDArray[np.float32]
"""The values of heatmaps, of shape (N, h, w), or of one, of shape (h, w)."""

logger = logging.getLogger(__name__)

_FIT_BATCH_SIZE = 16
_SEED = 51


class HieraHeatmapModel(HieraEmbeddingModel):
    """Base class of FiftyOne models that generate heatmaps of images, and embed them.

    Subclasses compute the values.
    """

    _limits: ClassVar[tuple[float, float]]
    """The values that become the darkest and the brightest level of a heatmap."""

    _get_item = SizedGetItem

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        self._compute_values = Halving(lambda pixels: (self._values(pixels),))

    def predict_all(self, args: Any) -> list[fol.Heatmap]:
        """Generate heatmaps of a batch of images in one forward pass.

        Args:
            args: images or their paths, as for :meth:`embed_all`; if :attr:`preprocess`
                is False, a collated batch of what :meth:`build_get_item` reads

        Returns:
            a list of :class:`fiftyone.core.labels.Heatmap` instances of the sizes of
            the images

        Raises:
            ValueError, MemoryError: as for :meth:`embed_all`
        """
        if self.preprocess:
            check_is_list(args)
            images = [self._preprocessing.to_sized_rgb(image) for image in args]
            sizes = [size for _, size in images]
            pixels = self._to_pixels([image for image, _ in images])
        else:
            if not isinstance(args, Mapping):
                raise ValueError(
                    "With preprocess=False, pass a batch of what model.build_get_item() "
                    f"reads, a dict of tensors; found {type(args).__name__}"
                )

            sizes = list(zip(args["width"].tolist(), args["height"].tolist(), strict=True))
            pixels = self._to_pixels(args)

        if not len(pixels):
            return []

        (grids,) = self._compute_values(pixels)
        self._check_finite(grids)
        return [self._to_label(*values) for values in zip(grids, sizes, strict=True)]

    @abstractmethod
    def _values(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute the values (N, h, w) of the heatmaps of images (N, 3, H, W)."""

    def _to_label(self, values: Values, size: tuple[int, int]) -> fol.Heatmap:
        return make_heatmap(values, self._limits, self._preprocessing, size)

    def _to_pixels(self, args: Iterable[ImageLike]) -> torch.Tensor:
        if isinstance(args, Mapping) and not self.preprocess:
            args = args["pixels"]  # collated by a data loader

        return super()._to_pixels(args)


class HieraFeatureHeatmapModel(HieraHeatmapModel):
    """FiftyOne model that generates heatmaps of a principal component of patch tokens.

    Args:
        embedder: what computes embeddings; its settings may name a basis that
            :meth:`fit_heatmap` wrote
    """

    # In standard deviations of the tokens that the basis was fitted to
    _limits = (-3.0, 3.0)

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        path = self.settings.heatmap_basis
        self._basis = None if path is None else self._load_basis(path)

    def __enter__(self) -> HieraFeatureHeatmapModel:
        """Check that there is a basis before FiftyOne's own methods start.

        Raises:
            ValueError: if the model has no basis yet
        """
        # FiftyOne would log this for every batch instead of raising it
        self._require_basis()
        super().__enter__()
        return self

    def fit_heatmap(
        self,
        samples: foc.SampleCollection,
        path: str | None = None,
        max_samples: int = 256,
    ) -> None:
        """Fit the basis of heatmaps: the first principal component of patch tokens.

        All heatmaps of this model use the same basis, so that they are comparable.

        Args:
            samples: a :class:`fiftyone.core.dataset.Dataset` or a
                :class:`fiftyone.core.view.DatasetView` of images
            path (None): a ``.safetensors`` file to write the basis to, for the option
                ``heatmap_basis``
            max_samples (256): the maximum number of images to fit the basis to. If
                there are more, they are sampled at random with a fixed seed

        Raises:
            ValueError: if the samples are not images, if none of them can be read, or
                if the path is a folder or its folder does not exist
            MemoryError: if there is not enough memory even for one image
        """
        if not isinstance(samples, foc.SampleCollection):
            raise ValueError(
                f"fit_heatmap() takes a dataset or a view, found {type(samples).__name__}"
            )

        if samples.media_type != fom.IMAGE:
            raise ValueError(
                f"A basis is fitted to images, not to media type {samples.media_type!r}. "
                "For a video dataset, pass dataset.to_frames(sample_frames=True)"
            )

        if path is not None and not Path(path).absolute().parent.is_dir():
            raise OptionError(
                "path", f"Invalid path: the folder of {str(path)!r} does not exist"
            )

        if path is not None and Path(path).is_dir():
            raise OptionError(
                "path", f"Invalid path: {str(path)!r} is a folder; give a file"
            )

        paths = samples.take(max_samples, seed=_SEED).values("filepath")
        try:
            self._basis = fit_basis(self._compute_tokens(sorted(paths)), self._fitted_with)
        except ValueError as error:
            raise ValueError(
                f"Cannot fit a basis to {len(paths)} images: {error}"
            ) from error

        if path is not None:
            save_basis(self._basis, Path(path))

    def _values(self, pixels: torch.Tensor) -> torch.Tensor:
        grid = self._encoder.config.grid_size(self.settings.stage)
        tokens = self.embedder.tokens(pixels)
        values: torch.Tensor = self._require_basis()(tokens).unflatten(1, grid)
        return values

    def _require_basis(self) -> Basis:
        if self._basis is None:
            raise ValueError(
                "Heatmaps need a basis: call model.fit_heatmap(dataset) first, or load the "
                "model with heatmap_basis, the path of a basis that was written before. To "
                "only embed with FiftyOne's own methods, load the model without "
                "output='heatmap'"
            )

        return self._basis

    def _load_basis(self, path: str) -> Basis:
        basis = load_basis(Path(path))
        fitted_with, here = basis.fitted_with, self._fitted_with
        differing = [name for name in here if fitted_with.get(name) != here[name]]
        if differing:
            raise OptionError(
                "heatmap_basis",
                f"Invalid heatmap_basis: {path!r} was fitted with "
                f"{_format(fitted_with, differing)}, but this model has "
                f"{_format(here, differing)}. Use the same checkpoint and options, "
                "or fit another basis with model.fit_heatmap(dataset)",
            )

        return basis

    @property
    def _fitted_with(self) -> dict[str, Any]:
        """The settings that the tokens depend on, with values that JSON has."""
        return {
            "sha256": self.embedder.provenance["sha256"],
            "stage": self.settings.stage,
            "image_size": [*self._preprocessing.crop_size],
            "squash": self._preprocessing.is_squashed,
        }

    def _compute_tokens(self, paths: Sequence[str]) -> Iterator[torch.Tensor]:
        forward = Halving(lambda pixels: (self.embedder.tokens(pixels),))
        with ThreadPoolExecutor(fou.recommend_thread_pool_workers()) as pool:
            for start in range(0, len(paths), _FIT_BATCH_SIZE):
                read = pool.map(self._read, paths[start : start + _FIT_BATCH_SIZE])
                pixels = [image for image in read if image is not None]
                if pixels:
                    (tokens,) = forward(pixels)
                    yield torch.from_numpy(tokens)

    def _read(self, path: str) -> torch.Tensor | None:
        try:
            return self._preprocessing(path)
        except ValueError as error:
            logger.warning("Not used for the basis: %s", error)
            return None


class HieraAutoencoderModel(HieraHeatmapModel):
    """FiftyOne model that generates heatmaps of the reconstruction error, and embeds.

    Args:
        embedder: what computes embeddings, of a masked autoencoder's encoder
    """

    # The reconstruction error of a uniform patch is 1; errors above 2 are rare
    _limits = (0.0, 2.0)

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        self._autoencoder = Autoencoder(embedder.encoder, self.settings.num_masks)

    def reconstruct(self, image: ImageLike) -> Image.Image:
        """Reconstruct an image, each mask unit from those around it.

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

    def _to_label(self, values: Values, size: tuple[int, int]) -> fol.Heatmap:
        label = super()._to_label(values, size)
        label["error"] = float(np.mean(values))
        return label


def make_heatmap(
    values: Values,
    limits: tuple[float, float],
    preprocessing: Preprocessing,
    size: tuple[int, int],
) -> fol.Heatmap:
    """Draw a grid of values as a heatmap of the size of its image.

    Each cell of the grid becomes a uniform rectangle; values are not interpolated.

    Args:
        values: an array of shape (h, w)
        limits: the values that map to 1 and 255; others are clipped
        preprocessing: the preprocessing of the image
        size: the (width, height) in pixels of the image

    Returns:
        a :class:`fiftyone.core.labels.Heatmap`, whose map is uint8: 1 to 255 inside
        the crop, and 0 outside
    """
    low, high = limits
    levels = 1 + np.rint(254 * np.clip((values - low) / (high - low), 0, 1))
    left, top, right, bottom = preprocessing.crop_box(size)
    columns = _cells(size[0], left, right, values.shape[1])
    rows = _cells(size[1], top, bottom, values.shape[0])

    # The index -1 selects this border of zeros
    padded = np.pad(levels.astype(np.uint8), ((0, 1), (0, 1)))
    return fol.Heatmap(map=padded[rows][:, columns])


def _cells(length: int, start: float, end: float, count: int) -> npt.NDArray[np.intp]:
    """Return the cell of each of ``length`` pixels along an axis, or -1 outside of all.

    The cells are ``count``, and lie from ``start`` to ``end``, in pixels.
    """
    positions = (np.arange(length) + 0.5 - start) / (end - start) * count
    cells = np.floor(positions).astype(np.intp)
    return np.where((positions >= 0) & (cells < count), cells, -1)


def _format(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={settings.get(name)}" for name in names)
