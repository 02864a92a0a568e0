"""Sort by similarity to an uploaded image: the input form and the search."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

import fiftyone.brain as fob
import fiftyone.core.media as fom
from fiftyone.operators import types

from ..embedding.arguments import to_integer
from ..images.decoding import read_image
from ..runs.fiftyone_internals import (
    flatten_dynamic_groups,
    label_path,
)
from ..runs.views import hides_fields, is_generated, is_patches
from .allowed_models import read_allowed
from .distance_field import distance_path, empty_field
from .kept_index import KeptIndex
from .query_model import describe, find_index_model, use_index_model
from .widgets import check, error_form

_TITLE = "Sort by similarity to an image"
_DEFAULT_K = 25
_DATASET, _VIEW = _TARGETS = ["DATASET", "CURRENT_VIEW"]  # FiftyOne's view targets
_kept = KeptIndex()
_NO_INDEX = (
    "This dataset has no similarity index of Hiera embeddings: compute one with "
    "'Compute Hiera embeddings'"
)


def build_form(ctx: Any) -> types.Property:
    """Build the form and mark the invalid inputs.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`

    Returns:
        the form, or an error if there is no index to search
    """
    try:
        labels = _find_indexes(ctx)
    except ValueError as error:
        return error_form(str(error), _TITLE)

    inputs = types.Object()
    choices = types.Dropdown()
    for key, label in labels.items():
        choices.add_choice(key, label=label)

    index = inputs.enum(
        "brain_key", list(labels), default=next(iter(labels)), label="Index", view=choices
    )
    check(index, lambda: _chosen_index(ctx, labels))
    target = inputs.enum("view_target", _TARGETS, default=_DATASET, view=_show_targets(ctx))
    if not index.invalid:
        check(target, lambda: _searched(ctx, _chosen_index(ctx, labels)))

    inputs.define_property(
        "query_image",
        types.UploadedFile(),
        required=True,
        label="Image",
        view=types.FileView(label="Image"),
    )
    number = inputs.int(
        "k",
        default=_DEFAULT_K,
        label="Number of results",
        description=(
            None if index.invalid or target.invalid else _count_searched(ctx, labels)
        ),
    )
    check(number, lambda: _chosen_k(ctx))
    field = inputs.str(
        "dist_field",
        label="Distance field",
        description=(
            "Float field to store the distances of the results in, to sort and filter by; "
            "empty for none. Its existing values are replaced"
        ),
    )
    if not index.invalid and not target.invalid:
        check(field, lambda: _chosen_path(ctx, _chosen_index(ctx, labels)))

    return types.Property(inputs, view=types.View(label=_TITLE))


def sort_view(ctx: Any) -> Any:
    """Sort samples or patches by similarity to the uploaded image.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`; its ``view_target``
            is "DATASET", the default, or "CURRENT_VIEW"

    Returns:
        a :class:`fiftyone.core.view.DatasetView` of the k most similar, the most similar
        first

    Raises:
        ValueError: if there is no index, if the image cannot be read, if the model of the
            index cannot be loaded or is not allowed, if a parameter is not valid, or if
            nothing that is searched is in the index
    """
    key = _chosen_index(ctx, _find_indexes(ctx))
    k = _chosen_k(ctx)
    path = _chosen_path(ctx, key)
    image = _read(ctx.params["query_image"])
    with use_index_model(ctx.dataset, key, read_allowed(ctx)) as model:
        embedding = model.embed(image)

    patches_field = _patches_field(ctx, key)
    samples = _searched(ctx, key)
    if patches_field is not None and not is_patches(samples):
        samples = samples.to_patches(patches_field)

    dist_field = ctx.params.get("dist_field") or None
    if path is not None:
        empty_field(ctx.dataset, path)
        samples.reload()  # patches are copies of the labels
        if patches_field is not None:
            dist_field = f"{patches_field}.{dist_field}"

    with _kept.use(ctx.dataset, key) as index:
        found = _find_similar(index, samples, embedding, k, dist_field)
        if not len(found):
            raise ValueError(_explain_nothing_found(ctx, index, samples, embedding))

    return found


def _searched(ctx: Any, brain_key: str) -> Any:
    """Return the samples to search, or a view of patches: all, if no view is chosen.

    Raises:
        ValueError: if the chosen view does not show what the index is of
    """
    # FiftyOne moves this parameter out of the others
    target = {**ctx.params, **ctx.request_params}.get("view_target") or _DATASET
    if target not in _TARGETS:
        raise ValueError(f"Invalid view_target {target!r}. Valid are {_TARGETS}")

    is_whole = target == _DATASET
    samples = ctx.dataset.view() if is_whole else flatten_dynamic_groups(ctx.view)
    patches_field = _patches_field(ctx, brain_key)
    if is_generated(samples) and not _shows_patches(samples, patches_field):
        raise ValueError(
            f"The index {brain_key!r} is of {_describe_kind(patches_field)}, which the "
            "current view does not show: search the dataset, or show others"
        )

    if samples.media_type == fom.GROUP and ctx.group_slice:
        samples.group_slice = ctx.group_slice

    return samples


def _show_targets(ctx: Any) -> types.View:
    """Return the choice of what is searched; hidden if the view is all of the dataset."""
    if ctx.view == ctx.dataset.view():
        return types.HiddenView(read_only=False)

    choices = types.RadioGroup(label="Search in")
    choices.add_choice(_DATASET, label="Dataset", description="Search the whole dataset")
    choices.add_choice(_VIEW, label="Current view", description="Search the current view")
    return choices


def _shows_patches(samples: Any, patches_field: str | None) -> bool:
    """Return whether a generated view has the labels of a field one by one."""
    if patches_field is None or not samples.has_field(patches_field):
        return False

    return label_path(samples, patches_field)[1] == patches_field


def _describe_kind(patches_field: str | None) -> str:
    return "images" if patches_field is None else f"patches of {patches_field!r}"


def _count_searched(ctx: Any, labels: dict[str, str]) -> str:
    """Return how many images or patches are searched, in words."""
    key = _chosen_index(ctx, labels)
    patches_field = _patches_field(ctx, key)
    samples = _searched(ctx, key)
    if patches_field is None or is_patches(samples):
        number = len(samples)
    else:
        number = samples.count(label_path(samples, patches_field)[1])

    return f"Searches {number:,} {_describe_kind(patches_field)}"


def _patches_field(ctx: Any, brain_key: str) -> str | None:
    field: str | None = ctx.dataset.get_brain_info(brain_key).config.patches_field
    return field


def _find_similar(
    index: Any, samples: Any, embedding: Any, k: int, dist_field: str | None = None
) -> Any:
    """Return a view of the samples that are in an index, sorted by similarity."""
    with index.use_view(samples, allow_missing=True, warn_missing=False):
        if not index.index_size:
            return samples.limit(0)

        return index.sort_by_similarity(embedding, k=k, dist_field=dist_field)


def _explain_nothing_found(ctx: Any, index: Any, samples: Any, embedding: Any) -> str:
    message = f"Nothing that is searched is in the index {index.key!r}"
    if ctx.dataset.media_type != fom.GROUP:
        return message

    slices = []
    for name in ctx.dataset.group_slices:
        others = ctx.dataset.select_group_slices(name)
        if index.config.patches_field is not None:
            others = others.to_patches(index.config.patches_field)

        if len(_find_similar(index, others, embedding, 1)):
            slices.append(name)

    return f"{message}. It is of the slices {slices}: choose one of them in the App"


def _find_indexes(ctx: Any) -> dict[str, str]:
    """Return the labels of the dataset's indexes of Hiera embeddings by brain key.

    Raises:
        ValueError: if there is none whose model is allowed
    """
    if ctx.dataset is None:
        raise ValueError(_NO_INDEX)

    allowed = read_allowed(ctx)
    labels = {}
    reason = _NO_INDEX
    for key in ctx.dataset.list_brain_runs(type=fob.Similarity):
        model = find_index_model(ctx.dataset, key)
        if model is None:
            continue

        try:
            model.check(allowed)
        except ValueError as error:
            reason = str(error)
        else:
            labels[key] = f"{key}: {describe(model)}"

    if not labels:
        raise ValueError(reason)

    return labels


def _chosen_index(ctx: Any, labels: dict[str, str]) -> str:
    """Return the brain key of the index to search."""
    key = ctx.params.get("brain_key") or next(iter(labels))
    if key not in labels:
        if key in ctx.dataset.list_brain_runs(type=fob.Similarity):
            model = find_index_model(ctx.dataset, key)
            if model is None:
                raise ValueError(
                    f"Invalid brain_key {key!r}: nothing is recorded about the model of "
                    f"its vectors, or it is no Hiera model. Valid are {list(labels)}"
                )

            model.check(read_allowed(ctx))

        raise ValueError(f"Invalid brain_key {key!r}. Valid are {list(labels)}")

    return str(key)


def _chosen_k(ctx: Any) -> int:
    """Return the number of results."""
    k = ctx.params.get("k")
    return _DEFAULT_K if k is None else to_integer("k", k, least=1)


def _chosen_path(ctx: Any, brain_key: str) -> str | None:
    """Return the path of the field for distances, if one is wanted."""
    name = ctx.params.get("dist_field")
    if not name:
        return None

    path = distance_path(ctx.dataset, name, _patches_field(ctx, brain_key))
    if hides_fields(_searched(ctx, brain_key)):
        raise ValueError(
            f"Invalid dist_field {name!r}: the view that is searched hides fields, by "
            "select_fields() or exclude_fields(). Search the dataset, or another view"
        )

    return path


def _read(upload: object) -> Any:
    if not isinstance(upload, dict):
        raise ValueError(
            f"Invalid query_image {upload!r}: expected a dict with the file's bytes in "
            "base64 as 'content', and its 'name'"
        )

    if not upload.get("content"):
        raise ValueError("The image was not uploaded: select it again")

    try:
        content = base64.b64decode(upload["content"], validate=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"The image's content is not base64: {error}") from error

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image")
        path.write_bytes(content)
        try:
            return read_image(path)
        except ValueError as error:
            name = upload.get("name") or "the image"
            raise ValueError(str(error).replace(repr(str(path)), repr(name))) from error
