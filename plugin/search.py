"""Sort by similarity to an uploaded image: the input form and the search."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

import fiftyone.brain as fob
from fiftyone.operators import types

from ..images.decoding import read_image
from .query_model import describe, find_index_model, load_index_model
from .widgets import error_form

_TITLE = "Sort by similarity to an image"
_DEFAULT_K = 25


def build_form(ctx: Any) -> types.Property:
    """Build the form.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`

    Returns:
        the form, or an error if there is no index to search
    """
    labels = _find_indexes(ctx.dataset) if ctx.dataset is not None else {}
    if not labels:
        return error_form(
            "This dataset has no similarity index of Hiera embeddings: compute one with "
            "'Compute Hiera embeddings'",
            _TITLE,
        )

    inputs = types.Object()
    choices = types.Dropdown()
    for key, label in labels.items():
        choices.add_choice(key, label=label)

    inputs.enum(
        "brain_key", list(labels), default=next(iter(labels)), label="Index", view=choices
    )
    inputs.define_property(
        "query_image",
        types.UploadedFile(),
        required=True,
        label="Image",
        view=types.FileView(label="Image"),
    )
    inputs.int("k", default=_DEFAULT_K, min=1, label="Number of results")
    return types.Property(inputs, view=types.View(label=_TITLE))


def sort_view(ctx: Any) -> Any:
    """Sort the view by similarity to the uploaded image.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`

    Returns:
        a :class:`fiftyone.core.view.DatasetView`, the most similar first

    Raises:
        ValueError: if the image cannot be read, or if the model of the index cannot be
            loaded
    """
    key = ctx.params.get("brain_key") or next(iter(_find_indexes(ctx.dataset)))
    image = _read(ctx.params["query_image"])
    embedding = load_index_model(ctx.dataset, key).embed(image)

    view = ctx.view
    index = ctx.dataset.load_brain_results(key)
    patches_field = index.config.patches_field
    if patches_field is not None and not view._is_patches:
        view = view.to_patches(patches_field)

    with index.use_view(view, allow_missing=True, warn_missing=False):
        if not index.index_size:
            raise ValueError(f"No sample of the current view is in the index {key!r}")

    return view.sort_by_similarity(
        embedding, k=ctx.params.get("k") or _DEFAULT_K, brain_key=key
    )


def _find_indexes(dataset: Any) -> dict[str, str]:
    """Return the labels of the dataset's indexes of Hiera embeddings by brain key."""
    labels = {}
    for key in dataset.list_brain_runs(type=fob.Similarity):
        model = find_index_model(dataset, key)
        if model is not None:
            labels[key] = f"{key}: {describe(model)}"

    return labels


def _read(upload: dict[str, Any]) -> Any:
    if not upload.get("content"):
        raise ValueError("The image was not uploaded: select it again")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image")
        path.write_bytes(base64.b64decode(upload["content"]))
        try:
            return read_image(path)
        except ValueError as error:
            name = upload.get("name") or "the image"
            raise ValueError(str(error).replace(repr(str(path)), repr(name))) from error
