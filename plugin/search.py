"""Sort by similarity to an uploaded image: build the form, and search."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import fiftyone.core.media as fom
from fiftyone.core.odm.utils import validate_field_name
from fiftyone.operators import types

from ..embedding.arguments import to_integer
from ..errors import OptionError
from ..images.decoding import describe_source, read_image
from ..runs.fiftyone_internals import (
    all_slices,
    flatten_dynamic_groups,
    label_path,
    load_dataset,
)
from ..runs.schema import add_field, describe_type
from ..runs.views import hides_fields, is_generated, is_patches
from .allowed_models import AllowedModels, read_allowed
from .kept_index import KeptIndex
from .query_model import IndexModel, KeptModel, describe, find_index_model
from .widgets import ask_choice, check, error_form

_TITLE = "Sort by similarity to an image"
_DEFAULT_K = 25
_DATASET, _VIEW = _TARGETS = ["DATASET", "CURRENT_VIEW"]  # FiftyOne's view targets
_DISTANCES = "Distances from the last search by similarity"
_kept_index = KeptIndex()
_kept_model = KeptModel()


@dataclass(frozen=True)
class Search:
    """A search as the App, or a caller, asks for it.

    Each property raises a ValueError if the parameters that it is read from are not valid.

    Args:
        dataset: the dataset, or None if none is open
        view: the view that the App shows
        group_slice: the slice that the App shows, or None
        allowed: the models that may be used
        params: the parameters ``brain_key``, ``view_target``, ``query_image``, ``k`` and
            ``dist_field``, as far as they are given
    """

    dataset: Any
    view: Any
    group_slice: str | None
    allowed: AllowedModels
    params: Mapping[str, Any]

    @cached_property
    def models(self) -> dict[str, IndexModel]:
        """The models of the dataset's indexes of Hiera embeddings, by brain key."""
        models: dict[str, IndexModel] = {}
        reason = (
            "This dataset has no similarity index of Hiera embeddings: compute one with "
            "'Compute Hiera embeddings'"
        )
        keys = []
        if self.dataset is not None:
            keys = self.dataset.list_brain_runs(type=fob.Similarity)

        for key in keys:
            model = find_index_model(self.dataset, key)
            try:
                if model is not None:
                    model.check(self.allowed)
                    models[key] = model
            except ValueError as error:
                reason = str(error)

        if not models:
            raise ValueError(reason)

        return models

    @cached_property
    def brain_key(self) -> str:
        """The brain key of the index to search."""
        key = self.params.get("brain_key") or next(iter(self.models))
        if key in self.models:
            return str(key)

        reason = ""
        if key in self.dataset.list_brain_runs(type=fob.Similarity):
            model = find_index_model(self.dataset, key)
            if model is not None:
                model.check(self.allowed)

            reason = (
                ": nothing is recorded about the model of its vectors, or it is no Hiera "
                "model"
            )

        raise OptionError(
            "brain_key", f"Invalid brain_key {key!r}{reason}. Valid are {list(self.models)}"
        )

    @cached_property
    def patches_field(self) -> str | None:
        """The field of the patches that the index is of; None for whole images."""
        field: str | None = self.dataset.get_brain_info(self.brain_key).config.patches_field
        return field

    @cached_property
    def samples(self) -> Any:
        """The samples to search, or a view of patches: all, if no view is chosen."""
        target = self.params.get("view_target") or _DATASET
        if target not in _TARGETS:
            raise OptionError(
                "view_target", f"Invalid view_target {target!r}. Valid are {_TARGETS}"
            )

        is_whole = target == _DATASET
        samples = self.dataset.view() if is_whole else flatten_dynamic_groups(self.view)
        field = self.patches_field
        if is_generated(samples) and not (
            field is not None
            and samples.has_field(field)
            and label_path(samples, field)[1] == field
        ):
            raise ValueError(
                f"The index {self.brain_key!r} is of {self.unit}, which the current view "
                "does not show: search the dataset, or show others"
            )

        if samples.media_type == fom.GROUP and self.group_slice:
            samples.group_slice = self.group_slice

        return samples

    @cached_property
    def k(self) -> int:
        """The number of results."""
        k = self.params.get("k")
        return _DEFAULT_K if k is None else to_integer("k", k, least=1)

    @cached_property
    def distances_path(self) -> str | None:
        """The path of the field to store the distances in, if one is wanted."""
        name = self.params.get("dist_field")
        if not name:
            return None

        if not isinstance(name, str) or "." in name:
            raise _invalid_field(name, "expected a name without '.', also for patches")

        validate_field_name(name)
        path = name
        if self.patches_field is not None:
            path = f"{label_path(self.dataset, self.patches_field)[1]}.{name}"

        reason = _refuse_field(self.dataset, path)
        if reason is not None:
            raise _invalid_field(name, f"the field {path!r} {reason}")

        if hides_fields(self.samples):
            raise _invalid_field(
                name,
                "the view that is searched hides fields, by select_fields() or "
                "exclude_fields(). Search the dataset, or another view",
            )

        return path

    @property
    def unit(self) -> str:
        """What is searched, in words."""
        field = self.patches_field
        return "images" if field is None else f"patches of {field!r}"


def read_search(ctx: Any) -> Search:
    """Read the search that is asked for from an operator's context."""
    load_dataset(ctx)
    # FiftyOne moves this parameter out of the others
    target = {**ctx.params, **ctx.request_params}.get("view_target")
    params = {**ctx.params, "view_target": target}
    return Search(ctx.dataset, ctx.view, ctx.group_slice, read_allowed(ctx), params)


def build_form(search: Search) -> types.Property:
    """Build the form and mark the invalid inputs; an error if nothing can be searched."""
    try:
        models = search.models
    except ValueError as error:
        return error_form(str(error), _TITLE)

    inputs = types.Object()
    labels = {key: f"{key}: {describe(model)}" for key, model in models.items()}
    index = ask_choice(
        inputs, "brain_key", labels, default=next(iter(labels)), label="Index"
    )
    check(index, lambda: search.brain_key)
    target = inputs.enum(
        "view_target", _TARGETS, default=_DATASET, view=_show_targets(search)
    )
    if not index.invalid:
        check(target, lambda: search.samples)

    is_clear = not index.invalid and not target.invalid
    inputs.uploaded_file(
        "query_image", required=True, label="Image", view=types.FileView(label="Image")
    )
    number = inputs.int(
        "k",
        default=_DEFAULT_K,
        label="Number of results",
        description=_count_searched(search) if is_clear else None,
    )
    check(number, lambda: search.k)
    field = inputs.str(
        "dist_field",
        label="Distance field",
        description=(
            "Float field to store the distances of the results in, to sort and filter by; "
            "empty for none. Its existing values are replaced"
        ),
    )
    if is_clear:
        check(field, lambda: search.distances_path)

    return types.Property(inputs, view=types.View(label=_TITLE))


def sort_view(search: Search) -> Any:
    """Sort samples or patches by similarity to the uploaded image.

    Returns:
        a :class:`fiftyone.core.view.DatasetView` of the k most similar, the most similar
        first

    Raises:
        ValueError: if there is no index, if the image cannot be read, if the model of the
            index cannot be loaded or is not allowed, if a parameter is not valid, or if
            nothing that is searched is in the index
    """
    dataset, key, patches_field = search.dataset, search.brain_key, search.patches_field
    k, path = search.k, search.distances_path
    image = _decode(search.params["query_image"])
    with _kept_model.use(key, search.models[key]) as model:
        embedding = model.embed(image)

    samples = search.samples
    if patches_field is not None and not is_patches(samples):
        samples = samples.to_patches(patches_field)

    dist_field = search.params.get("dist_field") or None
    if path is not None:
        _empty_field(dataset, path)
        samples.reload()  # patches are copies of the labels
        if patches_field is not None:
            dist_field = f"{patches_field}.{dist_field}"

    with _kept_index.use(dataset, key) as index:
        found = _find_similar(index, samples, embedding, k, dist_field)
        if not len(found):
            raise ValueError(_explain_nothing_found(dataset, index, embedding))

    return found


def _show_targets(search: Search) -> types.View:
    """Return the choice of what is searched; hidden if the view is all of the dataset."""
    if search.view == search.dataset.view():
        return types.HiddenView(read_only=False)

    choices = types.RadioGroup(label="Search in")
    choices.add_choice(_DATASET, label="Dataset", description="Search the whole dataset")
    choices.add_choice(_VIEW, label="Current view", description="Search the current view")
    return choices


def _count_searched(search: Search) -> str:
    """Count the images or patches that are searched, in words."""
    samples, patches_field = search.samples, search.patches_field
    if patches_field is None or is_patches(samples):
        number = len(samples)
    else:
        number = samples.count(label_path(samples, patches_field)[1])

    return f"Searches {number:,} {search.unit}"


def _invalid_field(name: object, reason: str) -> OptionError:
    return OptionError("dist_field", f"Invalid dist_field {name!r}: {reason}")


def _refuse_field(dataset: Any, path: str) -> str | None:
    """Return why a field cannot hold distances; None if it can, or does not exist."""
    field = dataset.get_field(path)
    if field is None:
        return None

    if not isinstance(field, fo.FloatField):
        return f"is of type {describe_type(field)}, not FloatField"

    if field.read_only:
        return "is read-only"

    if field.description != _DISTANCES and dataset.count(path):
        return "holds other values, which would be removed. Choose another name"

    return None


def _empty_field(dataset: Any, path: str) -> None:
    """Add a field for distances, or remove the distances to an earlier query."""
    if dataset.get_field(path) is None:
        add_field(dataset, path, fo.FloatField, _DISTANCES)
    else:
        # Only where there are some: a cleared sample counts as modified
        found = all_slices(dataset).mongo([{"$match": {path: {"$type": "number"}}}])
        found.clear_sample_field(path)


def _decode(upload: object) -> Any:
    """Decode an uploaded image."""
    if not isinstance(upload, dict):
        raise OptionError(
            "query_image",
            f"Invalid query_image {upload!r}: expected a dict with the file's bytes in "
            "base64 as 'content', and its 'name'",
        )

    if not upload.get("content"):
        raise ValueError("The image was not uploaded: select it again")

    try:
        content = base64.b64decode(upload["content"], validate=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"The image's content is not base64: {error}") from error

    try:
        return read_image(content)
    except ValueError as error:
        named = f"image {upload.get('name') or 'the image'!r}"
        raise ValueError(str(error).replace(describe_source(content), named)) from error


def _find_similar(
    index: Any, samples: Any, embedding: Any, k: int, dist_field: str | None = None
) -> Any:
    """Return a view of the samples that are in an index, sorted by similarity."""
    with index.use_view(samples, allow_missing=True, warn_missing=False):
        if not index.index_size:
            return samples.limit(0)

        return index.sort_by_similarity(embedding, k=k, dist_field=dist_field)


def _explain_nothing_found(dataset: Any, index: Any, embedding: Any) -> str:
    message = f"Nothing that is searched is in the index {index.key!r}"
    if dataset.media_type != fom.GROUP:
        return message

    slices = []
    for name in dataset.group_slices:
        others = dataset.select_group_slices(name)
        if index.config.patches_field is not None:
            others = others.to_patches(index.config.patches_field)

        if len(_find_similar(index, others, embedding, 1)):
            slices.append(name)

    return f"{message}. It is of the slices {slices}: choose one of them in the App"
