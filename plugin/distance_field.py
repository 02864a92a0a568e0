"""The field that a search stores its distances in."""

from __future__ import annotations

from typing import Any

import fiftyone as fo
from fiftyone.core.odm.utils import validate_field_name

from ..errors import OptionError
from ..runs.fiftyone_internals import all_slices, label_path
from ..runs.schema import add_field, describe_type

_DESCRIPTION = "Distances from the last search by similarity"


def distance_path(dataset: Any, name: object, patches_field: str | None) -> str:
    """Check the name of a field for distances.

    Args:
        dataset: the dataset
        name: the name of the field; for patches, of the labels' attribute
        patches_field: the field of the patches that are searched, or None

    Returns:
        the path of the field

    Raises:
        ValueError: if the name is not valid, or if there is such a field that is not one of
            distances
    """
    if not isinstance(name, str) or "." in name:
        raise OptionError(
            "dist_field",
            f"Invalid dist_field {name!r}: expected a name without '.', also for patches",
        )

    validate_field_name(name)
    path = name
    if patches_field is not None:
        path = f"{label_path(dataset, patches_field)[1]}.{name}"

    field = dataset.get_field(path)
    if field is None:
        return path

    if not isinstance(field, fo.FloatField):
        raise OptionError(
            "dist_field",
            f"Invalid dist_field {name!r}: the field {path!r} is of type "
            f"{describe_type(field)}, not FloatField",
        )

    if field.read_only:
        raise OptionError(
            "dist_field", f"Invalid dist_field {name!r}: the field {path!r} is read-only"
        )

    if field.description != _DESCRIPTION and dataset.count(path):
        raise OptionError(
            "dist_field",
            f"Invalid dist_field {name!r}: the field {path!r} holds other values, which "
            "would be removed. Choose another name",
        )

    return path


def empty_field(dataset: Any, path: str) -> None:
    """Add a field for distances, or remove the distances to an earlier query.

    Args:
        dataset: the dataset
        path: the path of the field
    """
    if dataset.get_field(path) is None:
        add_field(dataset, path, fo.FloatField, _DESCRIPTION)
    else:
        # Only where there are some: a cleared sample counts as modified
        found = all_slices(dataset).mongo([{"$match": {path: {"$type": "number"}}}])
        found.clear_sample_field(path)
