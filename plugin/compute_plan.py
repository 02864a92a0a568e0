"""The run that the parameters of compute_hiera_embeddings describe."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fiftyone as fo
import fiftyone.core.media as fom

from ..checkpoints import Checkpoint, get_checkpoint
from ..config import Settings, parse_settings
from ..embedding.provenance import (
    Provenance,
    differing,
    expected_provenance,
)
from ..indexes.backends import get_backend, list_backends
from ..indexes.brain_index import BrainIndex
from ..indexes.options import Contents, IndexOptions
from ..runs.field_claim import FieldClaim
from ..runs.fiftyone_internals import (
    all_slices,
    dataset_id,
    dataset_of,
    flatten_dynamic_groups,
    label_path,
)
from ..runs.options import RunOptions
from ..runs.parts import match_embeddings
from ..runs.patches_fields import check_patches_field
from ..runs.schema import read_provenance
from ..runs.target import Target
from .compute_params import EmbeddingParams
from .maps import MapSource, is_same_map


@dataclass(frozen=True)
class EmbeddingPlan:
    """What a run will do, with all defaults resolved.

    Args:
        params: the parameters as given
        samples: the samples to embed
        checkpoint: the zoo entry of the model
        settings: the options of the model
        defaults: the value of each of the names below if it is not given
        embeddings_field: the field to store the embeddings in
        similarity_brain_key: the brain key of the similarity index
        similarity_backend: its backend
        visualization_brain_key: the brain key of the visualization
        visualization_method: the dimensionality reduction method
        map_source: what the visualization is computed from
    """

    params: EmbeddingParams
    samples: Any
    checkpoint: Checkpoint
    settings: Settings
    defaults: dict[str, str]
    embeddings_field: str
    similarity_brain_key: str
    similarity_backend: str
    visualization_brain_key: str
    visualization_method: str
    map_source: MapSource

    @property
    def target(self) -> Target:
        """The samples to embed and the field to write to.

        Raises:
            ValueError: if the samples or a field are not valid
        """
        field = None if self.params.index_only else self.embeddings_field
        return Target(self.samples, field, self.params.patches_field)

    @property
    def options(self) -> RunOptions:
        """The options of the run, but for the index.

        Raises:
            ValueError: if an option is not valid
        """
        return RunOptions(
            batch_size=self.params.batch_size,
            num_workers=self.params.num_workers,
            overwrite=self.params.overwrite,
            skip_failures=True,
            shard=None,
            failure_tag=self.params.failure_tag,
        )

    @property
    def index(self) -> IndexOptions | None:
        """The options of the similarity index; None if none is wanted.

        Raises:
            ValueError: if one is not valid
        """
        if not self.params.similarity_index:
            return None

        return _index_options(
            self.params, self.similarity_brain_key, self.similarity_backend
        )

    @property
    def unit(self) -> str:
        """What one embedding is computed from, in the plural."""
        if self.params.patches_field is not None:
            return "patches"

        return "frames" if self.samples.media_type == fom.VIDEO else "images"

    def check_field(self) -> None:
        """Check that the run may write to its field, before the model is loaded.

        Raises:
            ValueError: if the name is not valid, or if the field holds embeddings
                computed with different settings that would not be overwritten
        """
        if not self.params.index_only:
            expected = expected_provenance(self.checkpoint, self.settings)
            FieldClaim(self.target, expected).check(overwrite=self.params.overwrite)

    def check_index(self) -> None:
        """Check that the run may feed its index, without a connection to it.

        Raises:
            ValueError: if it may not
        """
        if self.index is not None:
            BrainIndex(
                dataset_of(self.samples),
                self.index,
                _contents(
                    self.params,
                    self.samples,
                    self.embeddings_field,
                    self.checkpoint,
                    self.settings,
                ),
                may_rebuild=self.params.overwrite,
            ).check()


def target_samples(ctx: Any) -> Any:
    """Return the samples that the user chose to embed.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`

    Returns:
        a :class:`fiftyone.core.collections.SampleCollection`; for grouped datasets,
        the samples of the active slice; for dynamic groups, the samples in them
    """
    is_chosen = "view_target" in {**ctx.params, **ctx.request_params}
    if ctx.selected and not is_chosen:  # from Python; the App's form has this default
        samples = flatten_dynamic_groups(ctx.view).select(ctx.selected)
    else:
        samples = flatten_dynamic_groups(ctx.target_view())

    if samples.media_type == fom.GROUP and samples.group_slice is not None:
        return samples.select_group_slices(samples.group_slice)

    return samples


def get_settings(params: EmbeddingParams) -> tuple[Checkpoint, Settings]:
    """Return the zoo entry of the model and the options to load it with.

    Raises:
        ValueError: if the model or the pooling is not valid
    """
    checkpoint = get_checkpoint(params.model_name)
    options = {} if params.pooling is None else {"pooling": params.pooling}
    return checkpoint, parse_settings(checkpoint, options)


def field_prefix(samples: Any, patches_field: str | None) -> str:
    """Return the path that the embeddings field is in, with its trailing dot, or "".

    Args:
        samples: a :class:`fiftyone.core.collections.SampleCollection`
        patches_field: one of :func:`fiftyone_hiera.runs.target.find_patches_fields`, for
            videos perhaps with ``"frames."``, or None
    """
    prefix = "frames." if samples.media_type == fom.VIDEO else ""
    if patches_field is None:
        return prefix

    _, path = label_path(samples, prefix + patches_field.removeprefix(prefix))
    return f"{path}."


def make_plan(params: EmbeddingParams, samples: Any) -> EmbeddingPlan:
    """Resolve the defaults of the parameters.

    Args:
        params: the parameters
        samples: the samples to embed

    Raises:
        ValueError: if the model, the pooling or the patches field is not valid
    """
    check_patches_field(samples, params.patches_field)
    checkpoint, settings = get_settings(params)
    taken = dataset_of(samples).list_brain_runs()
    defaults = {
        "embeddings_field": _default_field(
            samples, params.patches_field, expected_provenance(checkpoint, settings)
        ),
        "visualization_method": "umap" if has_umap() else "pca",
    }
    field = params.embeddings_field or defaults["embeddings_field"]
    contents = _contents(params, samples, field, checkpoint, settings)
    defaults["similarity_brain_key"] = _first_free(
        "hiera_similarity",
        lambda key: key in taken and not _can_feed(params, samples, key, contents),
    )
    defaults["similarity_backend"] = _backend_of(
        samples, params.similarity_brain_key or defaults["similarity_brain_key"]
    )
    source = MapSource(
        field,
        params.patches_field,
        params.visualization_method or defaults["visualization_method"],
        params.overwrite,
    )
    defaults["visualization_brain_key"] = _first_free(
        "hiera_map", lambda key: key in taken and not is_same_map(samples, key, source)
    )
    resolved = {name: getattr(params, name) or defaults[name] for name in defaults}
    return EmbeddingPlan(
        params=params,
        samples=samples,
        checkpoint=checkpoint,
        settings=settings,
        defaults=defaults,
        map_source=source,
        **resolved,
    )


def _index_options(
    params: EmbeddingParams, brain_key: str, backend: str | None
) -> IndexOptions:
    settings: dict[str, str] = {}
    if params.similarity_metric is not None:
        settings["metric"] = params.similarity_metric

    if params.similarity_table is not None:
        name = get_backend(backend).table_setting
        if name is None:
            raise ValueError(f"Backend {backend!r} has no similarity_table")

        settings[name] = params.similarity_table

    return IndexOptions(brain_key, backend, settings)


def _contents(
    params: EmbeddingParams,
    samples: Any,
    embeddings_field: str,
    checkpoint: Checkpoint,
    settings: Settings,
) -> Contents:
    return Contents(
        dataset_id=str(dataset_id(dataset_of(samples))),
        embeddings_field=None if params.index_only else embeddings_field,
        patches_field=params.patches_field,
        dim=checkpoint.embedding_dim,
        provenance=expected_provenance(checkpoint, settings),
    )


def _can_feed(
    params: EmbeddingParams, samples: Any, brain_key: str, contents: Contents
) -> bool:
    """Return whether an index that exists is one that the run would bring up to date."""
    try:
        options = _index_options(params, brain_key, params.similarity_backend)
        index = BrainIndex(
            dataset_of(samples), options, contents, may_rebuild=params.overwrite
        )
        index.check()
    except (ValueError, ImportError):
        return False

    return True


def _backend_of(samples: Any, brain_key: str) -> str:
    """Return the backend of an index that exists, or FiftyOne's default."""
    dataset = dataset_of(samples)
    if brain_key in dataset.list_brain_runs(type="similarity"):
        return str(dataset.get_brain_info(brain_key).config.method)

    return list_backends()[0]


def has_umap() -> bool:
    """Return whether umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def _default_field(samples: Any, patches_field: str | None, expected: Provenance) -> str:
    """Return the first field that is new, empty or was computed with the same settings."""
    dataset = dataset_of(samples)
    prefix = field_prefix(samples, patches_field)

    def is_taken(name: str) -> bool:
        path = prefix + name
        field = dataset.get_field(path)
        if field is None:
            return False

        if not isinstance(field, fo.VectorField):
            return True

        if not differing(read_provenance(dataset, path), expected):
            return False

        target = Target(samples, name, patches_field)
        return bool(match_embeddings(target, all_slices(dataset), True).limit(1))

    return _first_free("hiera", is_taken)


def _first_free(name: str, is_taken: Callable[[str], bool]) -> str:
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(itertools.filterfalse(is_taken, names))
