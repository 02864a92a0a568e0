"""The parameters of compute_hiera_embeddings, completed and checked on a dataset."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import fiftyone as fo
import fiftyone.core.media as fom

from ..checkpoints import CHECKPOINTS, Checkpoint, get_checkpoint
from ..config import Settings, parse_settings
from ..runs.options import RunOptions
from ..runs.provenance import FieldClaim, expected_provenance
from ..runs.runner import check_field
from ..runs.target import PATCH_TYPES, Target
from .compute_params import EmbeddingParams

METHODS = {"umap": "UMAP", "tsne": "t-SNE", "pca": "PCA"}
"""FiftyOne's methods of drawing a map, the preferred first."""

_DEFAULT_FIELD = "hiera"


def target_samples(ctx: Any) -> Any:
    """Return the samples that the user chose.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`

    Returns:
        a :class:`fiftyone.core.collections.SampleCollection`; of a grouped dataset,
        the samples of the slice that the App shows
    """
    is_chosen = "view_target" in {**ctx.params, **ctx.request_params}
    if ctx.selected and not is_chosen:  # from Python; the App's form has this default
        samples = ctx.view.select(ctx.selected)
    else:
        samples = ctx.target_view()

    if samples.media_type == fom.GROUP:
        return samples.select_group_slices(samples.group_slice)

    return samples


def find_obstacle(ctx: Any) -> str | None:
    """Return why nothing here can be embedded, if that is so.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`
    """
    if ctx.dataset is None:
        return "Open a dataset first"

    if ctx.view._is_generated:
        return (
            "This view shows copies of patches, frames or clips. Leave it first; to embed "
            "patches, choose their field in this form"
        )

    media_type = target_samples(ctx).media_type
    if media_type is None:
        return "This dataset has no samples yet"

    if media_type not in (fom.IMAGE, fom.VIDEO):
        return (
            f"Media of type {media_type!r} cannot be embedded, only images and videos. Of "
            "a grouped dataset, show a slice that has these"
        )

    return None


@dataclass(frozen=True)
class EmbeddingPlan:
    """What a run will do: the parameters, with defaults where nothing was given.

    Args:
        samples: what is embedded
        checkpoint: the entry of the zoo
        settings: the options of its model
        embeddings_field: the field to store the vectors in
        patches_field: the field of labels whose patches are embedded, if any
        similarity_brain_key: the key of the similarity index
        visualization_brain_key: the key of the map
        visualization_method: how the map is drawn
    """

    samples: Any
    checkpoint: Checkpoint
    settings: Settings
    embeddings_field: str
    patches_field: str | None
    similarity_brain_key: str
    visualization_brain_key: str
    visualization_method: str

    @property
    def target(self) -> Target:
        """What is embedded, and where the vectors go.

        Raises:
            ValueError: if the samples or the fields are not such
        """
        return Target(self.samples, self.embeddings_field, self.patches_field)

    @property
    def unit(self) -> str:
        """What one vector is made of, in the plural."""
        if self.patches_field is not None:
            return "patches"

        return "frames" if self.samples.media_type == fom.VIDEO else "images"

    def check_field(self, *, overwrite: bool) -> None:
        """Check that the run may write to its field, before anything is loaded.

        Args:
            overwrite: whether vectors that there are may be replaced

        Raises:
            ValueError: if the name is not valid, or if the field holds vectors that
                were made otherwise
        """
        target = self.target
        check_field(target, self._foresee_claim(target.path), overwrite=overwrite)

    def is_field_free(self) -> bool:
        """Return whether the field is new, or made by the very same settings."""
        prefix = vectors_prefix(self.samples, self.patches_field)
        path = prefix + self.embeddings_field
        field = self.samples._dataset.get_field(path)
        if field is None:
            return True

        return isinstance(field, fo.VectorField) and self._foresee_claim(path).is_ours

    def _foresee_claim(self, path: str) -> FieldClaim:
        record = expected_provenance(self.checkpoint, self.settings)
        return FieldClaim(self.samples._dataset, path, record)


def find_patches_fields(samples: Any) -> list[str]:
    """Return the fields of labels whose patches can be embedded.

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


def vectors_prefix(samples: Any, patches_field: str | None) -> str:
    """Return what comes before the name of the field that the vectors go to.

    Args:
        samples: a :class:`fiftyone.core.collections.SampleCollection`
        patches_field: one of :func:`find_patches_fields`, or None
    """
    prefix = "frames." if samples.media_type == fom.VIDEO else ""
    if patches_field is None:
        return prefix

    _, path = samples._dataset._get_label_field_path(prefix + patches_field)
    return f"{path}."


def check_patches_field(samples: Any, patches_field: str | None) -> None:
    """Check that patches can be embedded.

    Raises:
        ValueError: if there are none of that name
    """
    valid = find_patches_fields(samples)
    if patches_field is not None and patches_field not in valid:
        raise ValueError(f"Invalid patches_field {patches_field!r}. Valid are {valid}")


def get_settings(params: EmbeddingParams) -> tuple[Checkpoint, Settings]:
    """Return the entry of the zoo and the options that were asked for.

    Raises:
        ValueError: if the name or the pooling is not valid
    """
    checkpoint = get_checkpoint(params.model_name or next(iter(CHECKPOINTS)))
    options = {} if params.pooling is None else {"pooling": params.pooling}
    return checkpoint, parse_settings(checkpoint, options)


def make_plan(params: EmbeddingParams, samples: Any) -> EmbeddingPlan:
    """Put defaults where nothing was given.

    Args:
        params: the parameters
        samples: what is to be embedded

    Raises:
        ValueError: if the model, the pooling or the patches are not valid
    """
    check_patches_field(samples, params.patches_field)
    checkpoint, settings = get_settings(params)
    plan = EmbeddingPlan(
        samples=samples,
        checkpoint=checkpoint,
        settings=settings,
        embeddings_field=params.embeddings_field or _DEFAULT_FIELD,
        patches_field=params.patches_field,
        similarity_brain_key="",
        visualization_brain_key="",
        visualization_method=params.visualization_method or default_method(),
    )
    if params.embeddings_field is None:
        plan = next(
            named
            for name in _names(_DEFAULT_FIELD)
            if (named := replace(plan, embeddings_field=name)).is_field_free()
        )

    taken = samples._dataset.list_brain_runs()
    similarity, visualization = (
        next(name for name in _names(f"hiera_{suffix}") if name not in taken)
        for suffix in ("similarity", "map")
    )
    return replace(
        plan,
        similarity_brain_key=params.similarity_brain_key or similarity,
        visualization_brain_key=params.visualization_brain_key or visualization,
    )


def make_options(params: EmbeddingParams) -> RunOptions:
    """Return the options of the run.

    Raises:
        ValueError: if one is not valid
    """
    return RunOptions(
        batch_size=params.batch_size,
        num_workers=params.num_workers,
        overwrite=params.overwrite,
        skip_failures=True,
        shard=None,
        failure_tag=params.failure_tag,
    )


def check_brain_key(key: str, others: list[str]) -> None:
    """Check the name of a new brain run.

    Args:
        key: the brain key
        others: those that are taken

    Raises:
        ValueError: if it is not a name, or taken
    """
    if not key.isidentifier():
        raise ValueError(
            f"Invalid brain key {key!r}: use letters, digits and underscores, and begin "
            "with a letter"
        )

    if key in others:
        raise ValueError(
            f"The brain key {key!r} is taken. Choose another, or delete that run"
        )


def check_method(method: str) -> None:
    """Check that a method of drawing a map is known and installed.

    Raises:
        ValueError: if it is not; the message says what to install
    """
    if method not in METHODS:
        raise ValueError(f"Invalid method {method!r}. Valid are {list(METHODS)}")

    if method == "umap" and not _has_umap():
        raise ValueError("UMAP is not installed here: pip install umap-learn")


def default_method() -> str:
    """Return the first method that is installed."""
    return "umap" if _has_umap() else "pca"


def _has_umap() -> bool:
    return importlib.util.find_spec("umap") is not None


def _names(name: str) -> Iterator[str]:
    yield name
    for number in itertools.count(2):
        yield f"{name}_{number}"
