"""Find and check the fields of labels whose patches can be embedded."""

from __future__ import annotations

import fiftyone.core.collections as foc
import fiftyone.core.labels as fol
import fiftyone.core.media as fom

from ..errors import invalid
from .schema import check_field_name, describe_type

_TYPES = (fol.Detection, fol.Detections, fol.Polyline, fol.Polylines)


def find_patches_fields(samples: foc.SampleCollection) -> list[str]:
    """Return the label fields whose patches can be embedded, without ``"frames."``."""
    is_video = samples.media_type == fom.VIDEO
    get_schema = samples.get_frame_field_schema if is_video else samples.get_field_schema
    return [*get_schema(embedded_doc_type=_TYPES)]


def check_patches_field(
    samples: foc.SampleCollection, patches_field: str | None
) -> str | None:
    """Check that the patches of a field can be embedded; None is always valid.

    Returns:
        the path of the field, with ``"frames."`` for videos

    Raises:
        ValueError: if the field is not one of :func:`find_patches_fields`
    """
    if patches_field is None:
        return None

    check_field_name("patches_field", patches_field)
    prefix = "frames." if samples.media_type == fom.VIDEO else ""
    name = patches_field.removeprefix(prefix)
    valid = find_patches_fields(samples)
    path = prefix + name
    if name in valid:
        return path

    field = samples.get_field(path)
    found = "does not exist" if field is None else f"is of type {describe_type(field)}"
    types = ", ".join(label.__name__ for label in _TYPES)
    reason = f"the field {found}. Valid are the fields of type {types}: "
    raise invalid("patches_field", patches_field, reason + str(valid or "there are none"))
