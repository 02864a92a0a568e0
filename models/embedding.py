"""The FiftyOne model that embeds images with a Hiera encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import fiftyone.core.collections as foc
import fiftyone.core.models as fom
import fiftyone.utils.torch as fout
import numpy as np
import numpy.typing as npt
import torch

from ..cluster.options import RayOptions, to_ray_options
from ..embedding.arguments import check_progress
from ..embedding.embedder import Embedder
from ..embedding.jobs import Embeddings
from ..errors import OptionError
from ..hiera.oom import Halving
from ..images.decoding import ImageLike
from ..images.preprocessing import Preprocessing
from ..indexes.options import to_index_options
from ..runs.options import RunOptions
from ..runs.report import EmbeddingReport
from ..runs.runner import embed_samples
from ..runs.spot_check import adopt
from ..runs.target import Target
from .batches import check_finite, check_is_list, check_pixels
from .callers import is_in_apply_model, refuse_videos_in_brain
from .datasets import ImageGetItem

_NO_LABELS = (
    "This model generates embeddings, not labels. Instead of apply_model() and predict(), "
    "call model.embed_samples(dataset, embeddings_field, patches_field=...) or "
    "model.embed_all(images). For heatmaps, load it with output='heatmap'; for labels, "
    "load a checkpoint with 'in1k' in its name"
)
_OF_OTHER_MODELS = {
    "fit_heatmap": ": load the model with output='heatmap'",
    "reconstruct": ": load a checkpoint with 'mae' in its name",
}


class HieraEmbeddingModel(
    fom.SupportsGetItem, fom.EmbeddingsMixin, fom.TorchModelMixin, fom.Model
):
    """FiftyOne model that embeds images with a Hiera encoder.

    Args:
        embedder: what computes the embeddings

    Attributes:
        embedding_dim: the length of an embedding
        settings: the options
    """

    media_type = "image"
    """The media type processed by the model."""

    ragged_batches = False
    """Whether :attr:`transforms` may return tensors of different sizes."""

    preprocess = True
    """Whether to apply :attr:`transforms`; if False, inputs must be transformed."""

    _get_item = ImageGetItem

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.embedding_dim = embedder.dim
        self.settings = embedder.settings
        self._encoder = embedder.encoder
        self._preprocessing = embedder.preprocessing

        # FiftyOne looks here for settings that it may override during a run
        self.config: Any = embedder.settings
        self._embeddings: Embeddings | None = None

        # FiftyOne reads this to decide whether to pin memory
        self._using_gpu = embedder.encoder.device.type == "cuda"

    if not TYPE_CHECKING:  # which would take all names as known

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}"
                f"{_OF_OTHER_MODELS.get(name, '')}"
            )

    def __repr__(self) -> str:
        settings = self.settings
        name = settings.checkpoint or self.embedder.entry
        shown = {
            "pooling": settings.pooling,
            "dtype": settings.dtype,
            "device": str(self._encoder.device),
            "engine": settings.engine,
            "embedding_dim": self.embedding_dim,
        }
        options = ", ".join(f"{option}={value!r}" for option, value in shown.items())
        return f"{type(self).__name__}({name!r}, {options})"

    def __enter__(self) -> HieraEmbeddingModel:
        """Check that the method of FiftyOne that enters this context can use the model.

        Raises:
            NotImplementedError: in ``apply_model()``, if this model generates no labels
        """
        # FiftyOne would log this for every batch instead of raising it
        has_labels = type(self).predict_all is not HieraEmbeddingModel.predict_all
        if not has_labels and is_in_apply_model():
            raise NotImplementedError(_NO_LABELS)

        return self

    @property
    def has_embeddings(self) -> bool:
        """Whether this model can generate embeddings.

        Raises:
            ValueError: if a method of FiftyOne's brain is to embed videos
        """
        # FiftyOne reads this before it adds a field and decodes
        refuse_videos_in_brain()
        return True

    @property
    def transforms(self) -> Preprocessing:
        """The preprocessing, from an image to a uint8 tensor of shape (3, H, W)."""
        return self._preprocessing

    def build_get_item(
        self, field_mapping: Mapping[str, str] | None = None
    ) -> fout.GetItem:
        """Build the object with which data loaders read the model's images.

        Args:
            field_mapping (None): a dict that maps ``"filepath"`` to another
                field of the dataset

        Returns:
            a :class:`fiftyone.utils.torch.GetItem`
        """
        return self._get_item(self._preprocessing, field_mapping=field_mapping)

    def embed(self, arg: ImageLike) -> Embeddings:
        """Generate an embedding for an image, a float32 array of shape (D,).

        Args:
            arg: see :meth:`embed_all`
        """
        embedding: Embeddings = self.embed_all([arg])[0]
        return embedding

    def embed_all(self, args: Iterable[ImageLike]) -> Embeddings:
        """Generate embeddings for a batch of images in one forward pass.

        Args:
            args: paths of image files, PIL images, arrays of shape (H, W) or
                (H, W, C), or uint8 tensors of shape (C, H, W). If
                :attr:`preprocess` is False, tensors that :attr:`transforms`
                returned, or one tensor of shape (N, 3, H, W)

        Returns:
            a float32 array of shape (N, D)

        Raises:
            ValueError: if a file cannot be read, if an image or a tensor has another
                form, or if the model returned NaN or infinity for it
            TypeError: if an image is of another type
            MemoryError: if there is not enough memory even for one image
        """
        pixels = self._to_pixels(args)
        embeddings = np.empty((0, self.embedding_dim), np.float32)
        if len(pixels):
            embeddings = self.embedder.embed(pixels)
            self._check_finite(embeddings)

        self._embeddings = embeddings
        return embeddings

    def feature_maps(
        self, images: Iterable[ImageLike], stages: Sequence[int] | None = None
    ) -> dict[str, Embeddings]:
        """Compute feature maps for a batch of images in one forward pass.

        Args:
            images: as for :meth:`embed_all`
            stages (None): the stages, counted from 1; by default, all. The network is
                built again if it does not compute them yet, and computes them from then on

        Returns:
            a dict from the names of the stages to float32 arrays of shape
            (N, D, h, w): at 224 px, h x w is 56x56 in "stage1" and 7x7 in "stage4"

        Raises:
            ValueError, MemoryError: as for :meth:`embed_all`, or if a stage does not
                exist
        """
        if stages is None:
            stages = range(1, self._encoder.config.num_stages + 1)

        if isinstance(stages, (int, str)) or not stages:
            raise OptionError(
                "stages", f"Invalid stages: {stages!r}. Expected a non-empty list of stages"
            )

        wanted = tuple(sorted({*stages}))
        self._encoder.prepare(*wanted)
        pixels = self._to_pixels(images)

        forward = Halving(lambda pixels: self._encoder.maps(pixels, *wanted))
        # An empty batch gets the shapes of a black image's maps
        some = pixels if len(pixels) else pixels.new_zeros(1, *pixels.shape[1:])
        maps = [values[: len(pixels)] for values in forward(some)]
        self._check_finite(*maps)
        return {f"stage{stage}": values for stage, values in zip(wanted, maps, strict=True)}

    def get_embeddings(self) -> Embeddings:
        """Return the embeddings generated by the last forward pass.

        Returns:
            a float32 array of shape (N, D)

        Raises:
            ValueError: if there has been no forward pass yet
        """
        if self._embeddings is None:
            raise ValueError(
                "No embeddings yet: call embed(), embed_all() or predict_all() first"
            )

        return self._embeddings

    def embed_samples(
        self,
        samples: foc.SampleCollection,
        embeddings_field: str | None = None,
        *,
        patches_field: str | None = None,
        brain_key: str | None = None,
        backend: str | None = None,
        backend_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        overwrite: bool = False,
        skip_failures: bool = True,
        shard: tuple[int, int] | None = None,
        failure_tag: str | None = None,
        verify: int = 3,
        progress: bool | Callable[[Any], None] | None = None,
        ray: bool | str | RayOptions | None = None,
    ) -> EmbeddingReport:
        """Embed the samples that have no embedding yet.

        If a file cannot be read, only its own embedding is missing. A run that was
        interrupted resumes when this method is called again. The provenance of the
        embeddings is recorded in the field's ``info``.

        Args:
            samples: a :class:`fiftyone.core.dataset.Dataset` or a
                :class:`fiftyone.core.view.DatasetView` of images or videos; for
                videos, the frames are embedded
            embeddings_field (None): the field to store the embeddings in, created if it
                does not exist; with ``patches_field``, an attribute of the labels. None
                stores them in the index alone, whose backend must be a database
            patches_field (None): a field of detections or polylines whose
                patches are embedded, instead of the whole images or frames
            brain_key (None): the brain key of a similarity index, which is made if it
                does not exist, fed while embedding, and brought up to date with the field
                at the end; with ``overwrite``, it is built anew
            backend (None): the similarity backend of the index, such as ``"pgvector"``.
                By default, that of the index if it exists, or
                ``fiftyone.brain.brain_config.default_similarity_backend``
            backend_kwargs (None): a dict of the backend's settings, such as ``metric`` or
                ``table_name``, with the names of FiftyOne's; the metric is "cosine" by
                default. Place and credentials are best left to the environment, as
                FiftyOne does not store them
            batch_size (None): the number of images per forward pass. By
                default, ``fiftyone.config.default_batch_size``, or 32
            num_workers (None): the number of threads that decode images; with 0,
                the calling thread does. By default, one per core. On Ray, the number
                in each task that reads files, 0 by default
            overwrite (False): whether to embed samples that have an embedding
                already. Those that fail keep the one they have, unless the field's
                embeddings were computed with different settings: then all are
                removed before the first new one is stored
            skip_failures (True): whether to continue after a failure, or stop at the first
            shard (None): a tuple ``(k, n)``: embed only the k-th of n disjoint
                parts of the samples, 0 <= k < n
            failure_tag (None): a tag for the samples that fail. It is removed
                from those that succeed
            verify (3): the number of embeddings to check in a field that holds some: they
                are computed again from their files and compared. 0 is for none
            progress (None): whether to render a progress bar (True/False), use
                the default value ``fiftyone.config.show_progress_bars`` (None),
                or a progress callback function to invoke instead
            ray (None): where to read and embed: None is this process, True a local Ray
                cluster, or the one that this process is connected to; a string is the
                address of a cluster, a :class:`fiftyone_hiera.RayOptions` says more.
                The nodes must see the files by the same paths

        Returns:
            an :class:`fiftyone_hiera.runs.report.EmbeddingReport` with the attributes
            ``embedded``, ``skipped``, ``failed`` (each with ``id``, ``sample_id``, ``path``
            and ``reason``), ``seconds``, ``images_per_second`` and ``index``

        Raises:
            ValueError: if an argument is not valid, if the field is read-only, if the
                field or the index holds embeddings computed with different settings, or if
                the index cannot be opened
            EmbeddingError: a RuntimeError, if the run had to stop or if all
                inputs failed; its attribute ``report`` has what was done
            ImportError: if ``ray`` is given and Ray is not installed, or if the package of
                the backend is not
        """
        options = RunOptions(
            batch_size,
            num_workers,
            overwrite,
            skip_failures,
            shard,
            failure_tag,
            verify,
            to_ray_options(ray),
            to_index_options(brain_key, backend, backend_kwargs),
        )
        check_progress(progress)
        target = Target(samples, embeddings_field, patches_field)
        return embed_samples(target, self.embedder, options, progress)

    def adopt_embeddings(
        self,
        samples: foc.SampleCollection,
        embeddings_field: str,
        *,
        patches_field: str | None = None,
        verify: int = 10,
    ) -> None:
        """Record that this model computed the embeddings in a field.

        For embeddings that came into the field by other ways than
        :meth:`embed_samples`, for instance by ``compute_embeddings`` or by an import.
        Some of them are computed again from their files and compared; only you know
        about the others. Afterwards, :meth:`embed_samples` continues the field. What
        was recorded about it before is replaced.

        Args:
            samples: a :class:`fiftyone.core.dataset.Dataset` or a
                :class:`fiftyone.core.view.DatasetView` of images or videos; the
                provenance is that of the field in the whole dataset
            embeddings_field: the field that holds the embeddings; with
                ``patches_field``, an attribute of the labels
            patches_field (None): the field of detections or polylines whose
                patches were embedded
            verify (10): the number of embeddings to compare, 1 or more

        Raises:
            ValueError: if an argument is not valid, if the field is read-only or holds
                no embeddings, or if one of those compared is not this model's
        """
        adopt(Target(samples, embeddings_field, patches_field), self.embedder, verify)

    def predict(self, arg: ImageLike) -> Any:
        """Generate the label of an image.

        Args:
            arg: an image or its path, as for :meth:`embed_all`

        Returns:
            an item of what :meth:`predict_all` returns
        """
        return self.predict_all([arg])[0]

    def predict_all(self, args: Iterable[ImageLike]) -> list[Any]:
        """Raise an error: this model generates embeddings, not labels.

        Raises:
            NotImplementedError: always; the message names the methods to call
        """
        raise NotImplementedError(_NO_LABELS)

    def _to_pixels(self, args: Iterable[ImageLike]) -> torch.Tensor:
        """Return the encoder's input (N, 3, H, W) for arguments of :meth:`embed_all`."""
        check_is_list(args)
        shape = (3, *self._preprocessing.crop_size)
        if self.preprocess:
            pixels = [self._preprocessing(image) for image in args]
        elif isinstance(args, torch.Tensor):
            return check_pixels(args, shape)
        else:
            pixels = [check_pixels(tensor, shape).view(shape) for tensor in args]

        return torch.stack(pixels) if pixels else torch.empty(0, *shape, dtype=torch.uint8)

    def _check_finite(self, *outputs: npt.NDArray[np.float32]) -> None:
        for rows in outputs:
            check_finite(rows, self.settings.dtype)
