"""Plan a run of compute_hiera_embeddings: resolve its defaults, and check it."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import fiftyone as fo

from ..checkpoints import Checkpoint, get_checkpoint
from ..config import Settings, parse_settings
from ..embedding.provenance import Provenance, differing, expected_provenance
from ..errors import OptionError
from ..indexes.backends import get_backend, list_backends
from ..indexes.brain_index import BrainIndex
from ..indexes.options import Contents, IndexOptions, check_brain_key
from ..runs.field_claim import FieldClaim
from ..runs.fiftyone_internals import all_slices, dataset_id
from ..runs.options import RunOptions
from ..runs.parts import match_embeddings
from ..runs.schema import read_provenance
from ..runs.target import Target
from .compute_params import EmbeddingParams
from .compute_request import ComputeRequest
from .maps import METHODS, MapSource, check_growth


@dataclass(frozen=True)
class EmbeddingPlan:
    """What a run will do. Each default is resolved once, when it is first read.

    A property or a check raises a ValueError if a parameter that it depends on is not
    valid, or an ImportError if a package is not installed.

    Args:
        params: the parameters as given
        source: the samples to embed, without the field to write to
        checkpoint: the zoo entry of the model
        settings: the options of the model
        find_secret: see :class:`ComputeRequest`
    """

    params: EmbeddingParams
    source: Target
    checkpoint: Checkpoint
    settings: Settings
    find_secret: Callable[[str], str | None]

    @property
    def unit(self) -> str:
        """What one embedding is computed from, in the plural."""
        if self.params.patches_field is not None:
            return "patches"

        return "frames" if self.source.frames_prefix else "images"

    @cached_property
    def default_field(self) -> str:
        """The first field that is new, empty or was computed with the same settings."""
        dataset, source = self.source.dataset, self.source

        def is_taken(name: str) -> bool:
            path = source.parts_prefix + name
            field = dataset.get_field(path)
            if not isinstance(field, fo.VectorField):
                return field is not None

            if not differing(read_provenance(dataset, path), self._provenance):
                return False

            target = Target(source.samples, name, source.patches_field)
            return bool(match_embeddings(target, all_slices(dataset), True).limit(1))

        return _first_free("hiera", is_taken)

    @property
    def field(self) -> str:
        """The name of the field to store the embeddings in, unless an index alone does."""
        return self.params.embeddings_field or self.default_field

    @cached_property
    def target(self) -> Target:
        """The samples to embed and the field to write to."""
        return Target(self.source.samples, self._stored_field, self.source.patches_field)

    @cached_property
    def options(self) -> RunOptions:
        """The options of the run, but for the index."""
        return RunOptions(
            batch_size=self.params.batch_size,
            num_workers=self.params.num_workers,
            overwrite=self.params.overwrite,
            skip_failures=True,
            shard=None,
            failure_tag=self.params.failure_tag,
        )

    @cached_property
    def default_index_key(self) -> str:
        """The first brain key that is new, or of an index that the run may feed."""

        def can_feed(key: str) -> bool:
            try:
                self.check_index(self._index_options(key, self.params.similarity_backend))
            except (ValueError, ImportError):
                return False

            return True

        return self._first_key("hiera_similarity", can_feed)

    @property
    def index_key(self) -> str:
        """The brain key of the similarity index."""
        return self.params.similarity_brain_key or self.default_index_key

    @cached_property
    def default_backend(self) -> str:
        """The backend of the similarity index if it exists, or FiftyOne's default."""
        dataset = self.source.dataset
        if self.index_key in dataset.list_brain_runs(type="similarity"):
            return str(dataset.get_brain_info(self.index_key).config.method)

        return list_backends()[0]

    @property
    def backend(self) -> str:
        """The backend of the similarity index."""
        return self.params.similarity_backend or self.default_backend

    @property
    def index(self) -> IndexOptions:
        """The options of the similarity index."""
        return self._index_options(self.index_key, self.backend)

    @property
    def default_method(self) -> str:
        """The method of the 2-D map if none is given."""
        return "umap" if importlib.util.find_spec("umap") else "pca"

    @property
    def method(self) -> str:
        """The method of the 2-D map."""
        return self.params.visualization_method or self.default_method

    @cached_property
    def default_map_key(self) -> str:
        """The first brain key that is new, or of a map of these very samples."""

        def is_same(key: str) -> bool:
            try:
                self._check_growth(key)
            except ValueError:
                return False

            mapped = self.source.dataset.load_brain_view(key)
            return bool(mapped.view() == self.source.samples.view())

        return self._first_key("hiera_map", is_same)

    @property
    def map_key(self) -> str:
        """The brain key of the 2-D map."""
        return self.params.visualization_brain_key or self.default_map_key

    def check_field(self) -> None:
        """Check that the run may write to its field, before the model is loaded."""
        claim = FieldClaim(self.target, self._provenance)
        claim.check(overwrite=self.params.overwrite)

    def check_index(self, options: IndexOptions) -> None:
        """Check that the run may feed an index, without a connection to it."""
        dataset = self.source.dataset
        contents = Contents(
            dataset_id=str(dataset_id(dataset)),
            embeddings_field=self._stored_field,
            patches_field=self.source.patches_field,
            dim=self.checkpoint.embedding_dim,
            provenance=self._provenance,
        )
        BrainIndex(dataset, options, contents, may_rebuild=self.params.overwrite).check()

    def check_map_key(self) -> None:
        """Check that the brain key of the map is free, or that of a map that can grow."""
        check_brain_key(self.map_key)
        if self.map_key in self.source.dataset.list_brain_runs():
            self._check_growth(self.map_key)

    def check_method(self) -> None:
        """Check that the method of the map exists and is installed."""
        if self.method not in METHODS:
            raise OptionError(
                "visualization_method",
                f"Invalid method {self.method!r}. Valid are {list(METHODS)}",
            )

        if self.method == "umap" and self.default_method != "umap":
            raise ValueError("Method 'umap' is not installed: pip install umap-learn")

    @property
    def _stored_field(self) -> str | None:
        return None if self.params.index_only else self.field

    @cached_property
    def _provenance(self) -> Provenance:
        return expected_provenance(self.checkpoint, self.settings)

    def _first_key(self, name: str, is_ours: Callable[[str], bool]) -> str:
        taken = self.source.dataset.list_brain_runs()
        return _first_free(name, lambda key: key in taken and not is_ours(key))

    def _index_options(self, brain_key: str, backend: str | None) -> IndexOptions:
        settings: dict[str, str] = {}
        if self.params.similarity_metric is not None:
            settings["metric"] = self.params.similarity_metric

        if self.params.similarity_table is not None:
            name = get_backend(backend).table_setting
            if name is None:
                raise ValueError(f"Backend {backend!r} has no similarity_table")

            settings[name] = self.params.similarity_table

        return IndexOptions(brain_key, backend, settings)

    def _check_growth(self, brain_key: str) -> None:
        source = MapSource(self.field, self.source.patches_field, self.method)
        overwrite = self.params.overwrite
        check_growth(self.source.dataset, brain_key, source, overwrite=overwrite)


def make_plan(request: ComputeRequest) -> EmbeddingPlan:
    """Plan a run.

    Raises:
        ValueError: if the model, the pooling or the patches field is not valid
    """
    params = request.params
    checkpoint, settings = get_settings(params)
    source = Target(request.samples, None, params.patches_field)
    return EmbeddingPlan(params, source, checkpoint, settings, request.find_secret)


def get_settings(params: EmbeddingParams) -> tuple[Checkpoint, Settings]:
    """Return the zoo entry of the model and the options to load it with.

    Raises:
        ValueError: if the model or the pooling is not valid
    """
    checkpoint = get_checkpoint(params.model_name)
    options = {} if params.pooling is None else {"pooling": params.pooling}
    return checkpoint, parse_settings(checkpoint, options)


def _first_free(name: str, is_taken: Callable[[str], bool]) -> str:
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(itertools.filterfalse(is_taken, names))
