"""The FiftyOne model: embeddings of images with a Hiera encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import fiftyone.core.collections as foc
import fiftyone.core.models as fom
import fiftyone.utils.torch as fout
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ..config import Settings
from ..hiera.encoder import Encoder
from ..hiera.oom import Halving, Pixels
from ..hiera.pooling import POOLINGS
from ..images.decoding import ImageLike
from ..images.monkeypatch import Override
from ..images.preprocessing import Preprocessing
from ..runs.options import RunOptions
from ..runs.provenance import Origin, provenance_of
from ..runs.report import EmbeddingReport
from ..runs.runner import Embedder, run
from ..runs.target import Target
from .datasets import ImageGetItem, PatchesDataset

Embeddings = npt.NDArray[np.float32]

_CHANNELS = (1, 3, 4)

# FiftyOne lets a model say how images are read, but not how those of patches are
_reading_patches = Override(fout, "TorchImagePatchesDataset", PatchesDataset)


class HieraEmbeddingModel(
    fom.SupportsGetItem, fom.EmbeddingsMixin, fom.TorchModelMixin, fom.Model
):
    """A Hiera encoder that embeds images.

    Args:
        encoder: the encoder
        preprocessing: the preprocessing of its checkpoint
        settings: the options, with a device
        origin: where its weights come from
    """

    def __init__(
        self,
        encoder: Encoder,
        preprocessing: Preprocessing,
        settings: Settings,
        origin: Origin,
    ) -> None:
        self.settings = settings
        self._origin = origin
        self._encoder = encoder
        self._preprocessing = preprocessing
        self._pooling = POOLINGS[settings.pooling]
        self._vectors = Halving(self._forward)

        # FiftyOne asks it for what some models set for the time of a run
        self.config: Any = settings
        self._preprocess = True
        self._embeddings: Embeddings | None = None

        # FiftyOne reads this one when it is asked to pin memory
        self._using_gpu = encoder.device.type == "cuda"

    def __enter__(self) -> HieraEmbeddingModel:
        """Prepare for FiftyOne's own methods, which embed inside this context."""
        _reading_patches.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        """Undo what :meth:`__enter__` did."""
        _reading_patches.__exit__(*args)

    @property
    def media_type(self) -> str:
        """The media type processed by the model."""
        return "image"

    @property
    def has_embeddings(self) -> bool:
        """Whether this model can generate embeddings."""
        return True

    @property
    def embedding_dim(self) -> int:
        """The length of an embedding."""
        return self._encoder.stages[self.settings.stage - 1].embedding_dim

    @property
    def embedder(self) -> Embedder:
        """What a run of this package needs of the model."""
        return Embedder(self._preprocessing, self._embed, self._record)

    @property
    def ragged_batches(self) -> bool:
        """Whether :attr:`transforms` may return tensors of different sizes."""
        return False

    @property
    def transforms(self) -> Preprocessing:
        """The preprocessing: from an image to a uint8 tensor (3, H, W)."""
        return self._preprocessing

    @property
    def preprocess(self) -> bool:
        """Whether to apply :attr:`transforms`, or assume that this was done (False)."""
        return self._preprocess

    @preprocess.setter
    def preprocess(self, value: bool) -> None:
        self._preprocess = value

    def build_get_item(
        self, field_mapping: Mapping[str, str] | None = None
    ) -> fout.GetItem:
        """Build the object by which data loaders read the model's images.

        Args:
            field_mapping (None): a dict that maps ``"filepath"`` to another
                field of the dataset

        Returns:
            a :class:`fiftyone.utils.torch.GetItem`
        """
        return ImageGetItem(self._preprocessing, field_mapping=field_mapping)

    def embed(self, arg: ImageLike) -> Embeddings:
        """Generate an embedding for an image.

        Args:
            arg: see :meth:`embed_all`

        Returns:
            a float32 array of shape (D,)
        """
        embedding: Embeddings = self.embed_all([arg])[0]
        return embedding

    def embed_all(self, args: Iterable[ImageLike]) -> Embeddings:
        """Generate embeddings for a batch of images, in one forward pass.

        Args:
            args: PIL images, arrays of shape (H, W) or (H, W, C), or uint8
                tensors of shape (C, H, W). If :attr:`preprocess` is False,
                tensors that :attr:`transforms` returned, also as one tensor
                of shape (N, 3, H, W)

        Returns:
            a float32 array of shape (N, D)

        Raises:
            ValueError: if an image or a tensor is not of such a form, or if
                the model gave NaN or infinity for one
            MemoryError: if there is not enough memory even for one image
        """
        pixels = self._batch(args)
        if not len(pixels):
            self._embeddings = np.empty((0, self.embedding_dim), np.float32)
            return self._embeddings

        vectors = self._embed(pixels)
        self._check_finite(vectors)
        self._embeddings = vectors
        return vectors

    def feature_maps(
        self, images: Iterable[ImageLike], stages: Sequence[int] = (1, 2, 3, 4)
    ) -> dict[str, Embeddings]:
        """Compute what the stages of the network see of a batch of images.

        Args:
            images: as for :meth:`embed_all`
            stages ((1, 2, 3, 4)): the stages, from 1

        Returns:
            a dict of float32 arrays of shape (N, D, h, w) by the names of the
            stages: at 224 px, "stage1" has a grid of 56x56, "stage4" of 7x7

        Raises:
            ValueError, MemoryError: as :meth:`embed_all`; and if there is no such
                stage
        """
        if isinstance(stages, (int, str)) or not stages:
            raise ValueError(
                f"Invalid stages: {stages!r}. Valid is a list of one stage or more"
            )

        wanted = tuple(sorted({*stages}))
        self._encoder.prepare(*wanted)
        pixels = self._batch(images)

        def compute(pixels: Pixels) -> list[Embeddings]:
            maps = self._encoder.maps(stack(pixels), *wanted)
            return [values.cpu().numpy() for values in maps]

        # Of no image at all, the shapes of one
        some = pixels if len(pixels) else torch.zeros(1, *pixels.shape[1:]).byte()
        maps = [values[: len(pixels)] for values in Halving(compute)(some)]
        for values in maps:
            self._check_finite(values)

        return {f"stage{stage}": found for stage, found in zip(wanted, maps, strict=True)}

    def get_embeddings(self) -> Embeddings:
        """Return the embeddings generated by the last forward pass.

        Returns:
            a float32 array of shape (N, D)

        Raises:
            ValueError: if there was no forward pass yet
        """
        if self._embeddings is None:
            raise ValueError(
                "No embeddings yet: call embed(), embed_all() or predict_all() first"
            )

        return self._embeddings

    def embed_samples(
        self,
        samples: foc.SampleCollection,
        embeddings_field: str,
        *,
        patches_field: str | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        overwrite: bool = False,
        skip_failures: bool = True,
        shard: tuple[int, int] | None = None,
        failure_tag: str | None = None,
        progress: bool | Callable[[Any], None] | None = None,
    ) -> EmbeddingReport:
        """Embed the samples that have no vector yet, and lose none.

        A file that cannot be read costs its own vector and no other. A run that
        was cut, for whatever reason, goes on where it stopped when it is called
        again. What made the vectors is recorded in the field's ``info``.

        Args:
            samples: a :class:`fiftyone.core.dataset.Dataset` or a
                :class:`fiftyone.core.view.DatasetView` of images or videos; of
                videos, the frames are embedded
            embeddings_field: the field to store the vectors in, created if it
                does not exist; with ``patches_field``, the labels' attribute
            patches_field (None): a field of detections or polylines whose
                patches are embedded, instead of the whole images or frames
            batch_size (None): the number of images in a forward pass. By
                default, ``fiftyone.config.default_batch_size``, or 32
            num_workers (None): the number of threads that read images; 0
                reads them in this one. By default, one per core
            overwrite (False): whether to embed what has a vector already. It
                keeps that one if this fails, unless the field's vectors were
                made otherwise: then all are removed before the first new one
                is stored
            skip_failures (True): whether to go on after a failure, or to stop
                at the first
            shard (None): a tuple ``(k, n)``, the part of the samples to embed:
                the k-th of n disjoint parts, 0 <= k < n
            failure_tag (None): a tag for the samples that failed. It is taken
                off those that succeed
            progress (None): whether to render a progress bar (True/False), use
                the default value ``fiftyone.config.show_progress_bars`` (None),
                or a progress callback function to invoke instead

        Returns:
            an :class:`fiftyone_hiera.runs.report.EmbeddingReport` with the attributes
            ``embedded``, ``skipped``, ``failed`` (each with ``id``,
            ``sample_id``, ``path`` and ``reason``), ``seconds`` and
            ``images_per_second``

        Raises:
            ValueError: if an argument is not valid, or if the field holds
                vectors that were made otherwise
            EmbeddingError: a RuntimeError, if the run had to stop or if
                everything failed; its attribute ``report`` says how far it got
        """
        options = RunOptions(
            batch_size, num_workers, overwrite, skip_failures, shard, failure_tag
        )
        target = Target(samples, embeddings_field, patches_field)
        return run(target, self.embedder, options, progress)

    def predict(self, arg: ImageLike) -> None:
        """Refuse: this model generates embeddings, not labels.

        Raises:
            NotImplementedError: always; the message says what to call
        """
        raise NotImplementedError(
            "This model generates embeddings, not labels. Instead of apply_model() and "
            "predict(), call dataset.compute_embeddings(model, embeddings_field=...), "
            "dataset.compute_patch_embeddings(model, patches_field, ...) or "
            "model.embed_all(images). For heatmaps, load it with output='heatmap'; for "
            "labels, load a checkpoint with 'in1k' in its name"
        )

    @cached_property
    def _record(self) -> dict[str, Any]:
        return provenance_of(self._origin, self._preprocessing, self.settings)

    def _batch(self, args: Iterable[ImageLike]) -> torch.Tensor:
        shape = (3, *self._preprocessing.crop_size)
        if _is_one_image(args):
            raise ValueError("This takes a list of images: for one, give [image]")

        if self._preprocess:
            tensors = [self._preprocessing(image) for image in args]
            return torch.stack(tensors) if tensors else torch.empty(0, *shape)

        if isinstance(args, torch.Tensor):
            return _check_pixels(args, shape)

        pixels = [_check_pixels(tensor, shape).view(shape) for tensor in args]
        return torch.stack(pixels) if pixels else torch.empty(0, *shape)

    def _embed(self, pixels: Pixels) -> Embeddings:
        (vectors,) = self._vectors(pixels)
        return vectors

    @torch.inference_mode()
    def _forward(self, pixels: Pixels) -> tuple[Embeddings]:
        (tokens,) = self._encoder(stack(pixels), self.settings.stage)
        return (self._pool(tokens),)

    def _pool(self, tokens: torch.Tensor) -> Embeddings:
        vectors = self._pooling(tokens, self._encoder.norm)
        if self.settings.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=1)

        embeddings: Embeddings = vectors.cpu().numpy()
        return embeddings

    def _check_finite(self, rows: npt.NDArray[np.float32]) -> None:
        inside = tuple(range(1, rows.ndim))
        broken = np.flatnonzero(~np.isfinite(rows).all(axis=inside)).tolist()
        if broken:
            raise ValueError(
                f"The model gave NaN or infinity for the images {broken} of a batch of "
                f"{len(rows)}, counted from 0, in dtype {self.settings.dtype!r}"
            )


def stack(pixels: Pixels) -> torch.Tensor:
    """Return the pixels of N images as one tensor (N, 3, H, W)."""
    return pixels if isinstance(pixels, torch.Tensor) else torch.stack([*pixels])


def _is_one_image(args: object) -> bool:
    """Return whether a batch is one image, whose rows would be taken for images."""
    if isinstance(args, np.ndarray):
        return args.ndim == 2 or (args.ndim == 3 and args.shape[2] in _CHANNELS)

    if isinstance(args, torch.Tensor):
        return args.ndim == 3 and args.shape[0] in _CHANNELS

    return isinstance(args, Image.Image)


def _check_pixels(pixels: object, shape: tuple[int, ...]) -> torch.Tensor:
    if (
        isinstance(pixels, torch.Tensor)
        and pixels.dtype == torch.uint8
        and tuple(pixels.shape[-3:]) == shape
    ):
        return pixels

    found = (
        f"{pixels.dtype} of shape {tuple(pixels.shape)}"
        if isinstance(pixels, torch.Tensor)
        else type(pixels).__name__
    )
    raise ValueError(
        "With preprocess=False the model takes what its transforms return, a torch.uint8 "
        f"tensor of shape {shape}, or N of them stacked; found {found}"
    )
