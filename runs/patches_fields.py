"""Find and check the fields of labels whose patches can be embedded."""

from __future__ import annotations

import fiftyone.core.collections as foc
import fiftyone.core.fields as fof
import fiftyone.core.labels as fol
import fiftyone.core.media as fom

from ..errors import invalid
from .schema import check_field_name, describe_type

_TYPES = (fol.Detection, fol.Detections, fol.Polyline, fol.Polylines)


def find_patches_fields(samples: foc.SampleCollection) -> list[str]:
    """Return the label fields whose patches can be embedded.

    Args:
        samples: the samples

    Returns:
        their names, without ``"frames."`` for videos
    """
    schema = (
        samples.get_frame_field_schema()
        if samples.media_type == fom.VIDEO
        else samples.get_field_schema()
    )
    return [
        name
        for name, field in schema.items()
        if isinstance(field, fof.EmbeddedDocumentField)
        and issubclass(field.document_type, _TYPES)
    ]


def check_patches_field(samples: foc.SampleCollection, patches_field: str | None) -> None:
    """Check that the patches of a field can be embedded.

    Args:
        samples: the samples
        patches_field: the name of the field; None is always valid

    Raises:
        ValueError: if the field is not one of :func:`find_patches_fields`
    """
    if patches_field is None:
        return

    check_field_name("patches_field", patches_field)
    prefix = "frames." if samples.media_type == fom.VIDEO else ""
    name = patches_field.removeprefix(prefix)
    valid = find_patches_fields(samples)
    if name in valid:
        return

    field = samples.get_field(prefix + name)
    found = "does not exist" if field is None else f"is of type {describe_type(field)}"
    types = ", ".join(label.__name__ for label in _TYPES)
    reason = f"the field {found}. Valid are the fields of type {types}: "
    raise invalid("patches_field", patches_field, reason + str(valid or "there are none"))
