"""Sort by similarity to an uploaded image: the input form and the search."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

import fiftyone.brain as fob
from fiftyone.operators import types

from ..embedding.arguments import to_integer
from ..images.decoding import read_image
from ..runs.fiftyone_internals import is_patches
from .allowed_models import read_allowed
from .distance_field import distance_path, empty_field
from .query_model import describe, find_index_model, use_index_model
from .widgets import check, error_form

_TITLE = "Sort by similarity to an image"
_DEFAULT_K = 25
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
    inputs.define_property(
        "query_image",
        types.UploadedFile(),
        required=True,
        label="Image",
        view=types.FileView(label="Image"),
    )
    number = inputs.int("k", default=_DEFAULT_K, label="Number of results")
    check(number, lambda: _chosen_k(ctx))
    field = inputs.str(
        "dist_field",
        label="Distance field",
        description=(
            "Float field to store the distances of the results in, to sort and filter by; "
            "empty for none. Its existing values are replaced"
        ),
    )
    if not index.invalid:
        check(field, lambda: _chosen_path(ctx, _chosen_index(ctx, labels)))

    return types.Property(inputs, view=types.View(label=_TITLE))


def sort_view(ctx: Any) -> Any:
    """Sort the view by similarity to the uploaded image.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`

    Returns:
        a :class:`fiftyone.core.view.DatasetView`, the most similar first

    Raises:
        ValueError: if there is no index, if the image cannot be read, if the model of the
            index cannot be loaded or is not allowed, or if a parameter is not valid
    """
    key = _chosen_index(ctx, _find_indexes(ctx))
    k = _chosen_k(ctx)
    path = _chosen_path(ctx, key)
    image = _read(ctx.params["query_image"])
    with use_index_model(ctx.dataset, key, read_allowed(ctx)) as model:
        embedding = model.embed(image)

    view = ctx.view
    index = ctx.dataset.load_brain_results(key)
    patches_field = index.config.patches_field
    if patches_field is not None and not is_patches(view):
        view = view.to_patches(patches_field)

    with index.use_view(view, allow_missing=True, warn_missing=False):
        if not index.index_size:
            raise ValueError(f"No sample of the current view is in the index {key!r}")

    dist_field = ctx.params.get("dist_field") or None
    if path is not None:
        empty_field(ctx.dataset, path)
        view.reload()  # patches are copies of the labels
        if patches_field is not None:
            dist_field = f"{patches_field}.{dist_field}"

    return view.sort_by_similarity(embedding, k=k, brain_key=key, dist_field=dist_field)


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
            if model is not None:
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

    config = ctx.dataset.get_brain_info(brain_key).config
    return distance_path(ctx.dataset, name, config.patches_field)


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
