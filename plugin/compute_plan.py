"""The parameters of compute_hiera_embeddings and the run that they describe.

The names that callers give become an :class:`EmbeddingParams`; with the samples to embed,
it becomes an :class:`EmbeddingPlan`, in which all defaults are resolved.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import fiftyone as fo
import fiftyone.core.media as fom

from ..checkpoints import CHECKPOINTS, Checkpoint, get_checkpoint
from ..config import Settings, parse_settings
from ..runs.field_claim import FieldClaim
from ..runs.options import RunOptions
from ..runs.provenance import (
    Provenance,
    differing,
    expected_provenance,
    read_provenance,
)
from ..runs.target import PATCH_TYPES, Target

WHOLE = "_whole"
"""The value of ``patches_field`` that stands for whole images or frames.

Names of fields cannot start with an underscore.
"""

_OTHER_NAMES = {
    "embedding_type": "pooling",
    "embedding_types": "pooling",
    "field_name": "embeddings_field",
    "emb_field": "embeddings_field",
}
"""The parameter names of earlier Hiera plugins."""

_BOXES = {
    "similarity_brain_key": "similarity_index",
    "visualization_brain_key": "visualization",
    "visualization_method": "visualization",
}
"""The checkbox that each parameter of a brain run belongs to."""

_FIFTYONE_PARAMS = ("delegate", "view_target", "custom_view_target")
"""Parameters that FiftyOne reads, not the run."""


@dataclass(frozen=True)
class EmbeddingParams:
    """The parameters of compute_hiera_embeddings.

    Args:
        model_name (None): the name of a checkpoint; None is hiera-tiny
        pooling (None): see :class:`fiftyone_hiera.config.Settings`
        embeddings_field (None): the field to store the embeddings in; None is "hiera"
            or, if that holds other embeddings, "hiera_2", and so on
        patches_field (None): a field of detections or polylines whose patches are
            embedded, instead of the whole images or frames
        batch_size (None): the number of images per forward pass
        num_workers (None): the number of threads that read images
        overwrite (False): whether to recompute existing embeddings
        failure_tag (None): a tag for the samples that fail
        similarity_index (False): whether to compute a similarity index
        similarity_brain_key (None): its brain key; None is "hiera_similarity" or,
            if that is taken, "hiera_similarity_2", and so on
        visualization (False): whether to compute a 2-D visualization
        visualization_brain_key (None): its brain key; None is "hiera_map" or, if
            that is taken, "hiera_map_2", and so on
        visualization_method (None): "umap", "tsne" or "pca"; None is "umap" if it is
            installed, else "pca"
    """

    model_name: str | None = None
    pooling: str | None = None
    embeddings_field: str | None = None
    patches_field: str | None = None
    batch_size: int | None = None
    num_workers: int | None = None
    overwrite: bool = False
    failure_tag: str | None = None
    similarity_index: bool = False
    similarity_brain_key: str | None = None
    visualization: bool = False
    visualization_brain_key: str | None = None
    visualization_method: str | None = None


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
        visualization_brain_key: the brain key of the visualization
        visualization_method: the dimensionality reduction method
    """

    params: EmbeddingParams
    samples: Any
    checkpoint: Checkpoint
    settings: Settings
    defaults: dict[str, str]
    embeddings_field: str
    similarity_brain_key: str
    visualization_brain_key: str
    visualization_method: str

    @property
    def target(self) -> Target:
        """The samples to embed and the field to write to.

        Raises:
            ValueError: if the samples or a field are not valid
        """
        return Target(self.samples, self.embeddings_field, self.params.patches_field)

    @property
    def options(self) -> RunOptions:
        """The options of the run.

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
        expected = expected_provenance(self.checkpoint, self.settings)
        FieldClaim(self.target, expected).check(overwrite=self.params.overwrite)


def target_samples(ctx: Any) -> Any:
    """Return the samples that the user chose to embed.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`

    Returns:
        a :class:`fiftyone.core.collections.SampleCollection`; for grouped datasets,
        the samples of the active slice
    """
    is_chosen = "view_target" in {**ctx.params, **ctx.request_params}
    if ctx.selected and not is_chosen:  # from Python; the App's form has this default
        samples = ctx.view.select(ctx.selected)
    else:
        samples = ctx.target_view()

    if samples.media_type == fom.GROUP:
        return samples.select_group_slices(samples.group_slice)

    return samples


def rename_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Rename parameters of earlier Hiera plugins to those of :class:`EmbeddingParams`.

    Also checks the checkbox of a brain run if its brain key or method is given.

    Args:
        params: the parameters, which are not changed

    Returns:
        a dict

    Raises:
        ValueError: if a parameter has two different values
    """
    renamed: dict[str, Any] = {}
    for given, value in params.items():
        name = _OTHER_NAMES.get(given, given)
        if name in renamed and renamed[name] != value:
            names = [n for n in params if _OTHER_NAMES.get(n, n) == name]
            raise ValueError(
                f"{' and '.join(names)} are the same parameter, but {renamed[name]!r} and "
                f"{value!r} were given"
            )

        renamed[name] = value

    for name, box in _BOXES.items():
        if renamed.get(name):
            renamed.setdefault(box, True)

    return renamed


def check_names(params: Mapping[str, Any]) -> None:
    """Check that there are no unknown parameters.

    Args:
        params: the parameters, by the names of :class:`EmbeddingParams`

    Raises:
        ValueError: if there are; the message lists the valid ones
    """
    valid = [*(field.name for field in fields(EmbeddingParams)), *_FIFTYONE_PARAMS]
    unknown = sorted(params.keys() - {*valid})
    if unknown:
        raise ValueError(f"Unknown parameters {unknown}. Valid are {valid}")


def parse_params(params: Mapping[str, Any]) -> EmbeddingParams:
    """Parse the parameters; empty inputs of a form count as not given.

    Args:
        params: the parameters, by the names of :class:`EmbeddingParams`

    Returns:
        an :class:`EmbeddingParams`
    """
    names = [field.name for field in fields(EmbeddingParams)]
    empty = (None, "", WHOLE)
    given = {name: params[name] for name in names if params.get(name) not in empty}
    return EmbeddingParams(**given)


def get_settings(params: EmbeddingParams) -> tuple[Checkpoint, Settings]:
    """Return the zoo entry of the model and the options to load it with.

    Raises:
        ValueError: if the model or the pooling is not valid
    """
    checkpoint = get_checkpoint(params.model_name or next(iter(CHECKPOINTS)))
    options = {} if params.pooling is None else {"pooling": params.pooling}
    return checkpoint, parse_settings(checkpoint, options)


def find_patches_fields(samples: Any) -> list[str]:
    """Return the label fields whose patches can be embedded.

    Args:
        samples: a :class:`fiftyone.core.collections.SampleCollection`
    """
    schema = (
        samples._dataset.get_frame_field_schema()
        if samples.media_type == fom.VIDEO
        else samples._dataset.get_field_schema()
    )
    return [
        name
        for name, field in schema.items()
        if isinstance(field, fo.EmbeddedDocumentField)
        and issubclass(field.document_type, PATCH_TYPES)
    ]


def check_patches_field(samples: Any, patches_field: str | None) -> None:
    """Check that the patches of a field can be embedded.

    Args:
        samples: a :class:`fiftyone.core.collections.SampleCollection`
        patches_field: the name of the field; None is always valid

    Raises:
        ValueError: if the field is not one of :func:`find_patches_fields`
    """
    valid = find_patches_fields(samples)
    if patches_field is not None and patches_field not in valid:
        raise ValueError(f"Invalid patches_field {patches_field!r}. Valid are {valid}")


def field_prefix(samples: Any, patches_field: str | None) -> str:
    """Return the path that the embeddings field is in, with its trailing dot, or "".

    Args:
        samples: a :class:`fiftyone.core.collections.SampleCollection`
        patches_field: one of :func:`find_patches_fields`, or None
    """
    prefix = "frames." if samples.media_type == fom.VIDEO else ""
    if patches_field is None:
        return prefix

    _, path = samples._dataset._get_label_field_path(prefix + patches_field)
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
    taken = samples._dataset.list_brain_runs()
    defaults = {
        "embeddings_field": _default_field(
            samples._dataset,
            field_prefix(samples, params.patches_field),
            expected_provenance(checkpoint, settings),
        ),
        "similarity_brain_key": _first_free("hiera_similarity", taken.__contains__),
        "visualization_brain_key": _first_free("hiera_map", taken.__contains__),
        "visualization_method": "umap" if has_umap() else "pca",
    }
    resolved = {name: getattr(params, name) or defaults[name] for name in defaults}
    return EmbeddingPlan(
        params=params,
        samples=samples,
        checkpoint=checkpoint,
        settings=settings,
        defaults=defaults,
        **resolved,
    )


def has_umap() -> bool:
    """Return whether umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def _default_field(dataset: Any, prefix: str, expected: Provenance) -> str:
    """Return the first field that is new or was computed with the same settings."""

    def is_taken(name: str) -> bool:
        path = prefix + name
        field = dataset.get_field(path)
        if field is None:
            return False

        if not isinstance(field, fo.VectorField):
            return True

        return bool(differing(read_provenance(dataset, path), expected))

    return _first_free("hiera", is_taken)


def _first_free(name: str, is_taken: Callable[[str], bool]) -> str:
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(itertools.filterfalse(is_taken, names))
