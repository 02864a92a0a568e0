"""Sorting by similarity to an image of the user's: the form, and the doing."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

import fiftyone.brain as fob
from fiftyone.operators import types

from ..images.decoding import read_image
from .similarity_index import describe, find_index_model, load_index_model
from .widgets import show_obstacle

_TITLE = "Sort by similarity to an image"
_DEFAULT_K = 25


def build_form(ctx: Any) -> types.Property:
    """Build the form.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`

    Returns:
        the form, or a message if there is no index to search
    """
    keys = _find_indexes(ctx.dataset) if ctx.dataset is not None else {}
    if not keys:
        return show_obstacle(
            "This dataset has no similarity index of Hiera embeddings: make one with "
            "'Compute Hiera embeddings'",
            _TITLE,
        )

    inputs = types.Object()
    choices = types.Dropdown()
    for key, label in keys.items():
        choices.add_choice(key, label=label)

    inputs.enum(
        "brain_key", list(keys), default=next(iter(keys)), label="Index", view=choices
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
    """Sort the view by similarity to the image.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`

    Returns:
        a :class:`fiftyone.core.view.DatasetView`, the most similar first

    Raises:
        ValueError: if the image cannot be read, or if the model that made the index
            cannot be had
    """
    key = ctx.params.get("brain_key") or next(iter(_find_indexes(ctx.dataset)))
    image = _read(ctx.params["query_image"])
    vector = load_index_model(ctx.dataset, key).embed(image)

    view = ctx.view
    index = ctx.dataset.load_brain_results(key)
    patches_field = index.config.patches_field
    if patches_field is not None and not view._is_patches:
        view = view.to_patches(patches_field)

    with index.use_view(view, allow_missing=True, warn_missing=False):
        if not index.index_size:
            raise ValueError(f"Nothing that the App shows now is in the index {key!r}")

    return view.sort_by_similarity(
        vector, k=ctx.params.get("k") or _DEFAULT_K, brain_key=key
    )


def _find_indexes(dataset: Any) -> dict[str, str]:
    keys = {}
    for key in dataset.list_brain_runs(type=fob.Similarity):
        model = find_index_model(dataset, key)
        if model is not None:
            keys[key] = f"{key}: {describe(model)}"

    return keys


def _read(upload: dict[str, Any]) -> Any:
    if not upload.get("content"):
        raise ValueError("The image did not arrive: choose it again")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image")
        path.write_bytes(base64.b64decode(upload["content"]))
        try:
            return read_image(path)
        except ValueError as error:
            name = upload.get("name") or "the image"
            raise ValueError(str(error).replace(repr(str(path)), repr(name))) from error
