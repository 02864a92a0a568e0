"""Read and change fields in the database, whatever other processes did meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import fiftyone.core.fields as fof
import fiftyone.core.odm as foo

from ..embedding.provenance import Provenance, provenance_in
from ..errors import invalid
from .fiftyone_internals import dataset_id, show_field, show_info


@dataclass(frozen=True)
class StoredField:
    """A field in the database.

    Args:
        place: where the dataset's document describes it, such as
            ``"sample_fields.12.fields.3"``
        names: the names at this place and at those it is in, by place
        info: the field's info; None if it has none
        is_read_only: whether the field, or one that it is in, is read-only
    """

    place: str
    names: dict[str, str]
    info: dict[str, Any] | None
    is_read_only: bool


def find_stored_field(dataset: Any, path: str) -> StoredField | None:
    """Look up a field in the database itself; None if it does not exist.

    A dataset in memory does not know what other processes changed since it was loaded.

    Raises:
        ValueError: if the dataset was deleted
    """
    document = foo.get_db_conn().datasets.find_one(
        {"_id": dataset_id(dataset)}, ["sample_fields", "frame_fields"]
    )
    if document is None:
        raise ValueError(f"The dataset {dataset.name!r} was deleted")

    place = "frame_fields" if path.startswith("frames.") else "sample_fields"
    fields = document.get(place)
    names: dict[str, str] = {}
    is_read_only = False
    for name in path.removeprefix("frames.").split("."):
        indexes = {field["name"]: index for index, field in enumerate(fields or [])}
        if name not in indexes:
            return None

        document = fields[indexes[name]]
        place = f"{place}.{indexes[name]}"
        names[f"{place}.name"] = name
        is_read_only |= bool(document.get("read_only"))
        place, fields = f"{place}.fields", document.get("fields")

    place = place.removesuffix(".fields")
    return StoredField(place, names, document.get("info"), is_read_only)


def add_field(
    dataset: Any, path: str, ftype: type[fof.Field], description: str | None = None
) -> None:
    """Add a field to a dataset, if it does not exist yet.

    It is one update of one document. FiftyOne's own methods write the list of all fields
    as they read it a moment before, and lose those that other processes add meanwhile.

    Raises:
        ValueError: if the field that it would be in was deleted or is read-only
    """
    name = path.rpartition(".")[2]
    document = foo.SampleFieldDocument(
        name=name,
        ftype=f"{ftype.__module__}.{ftype.__qualname__}",
        db_field=name,
        description=description,
        created_at=datetime.now(UTC),
    ).to_mongo()
    absent = {"$not": {"$elemMatch": {"name": name}}}
    while find_stored_field(dataset, path) is None:
        place, names = _find_siblings(dataset, path)
        foo.get_db_conn().datasets.update_one(
            {"_id": dataset_id(dataset), **names, place: absent},
            {"$push": {place: document}, "$currentDate": {"last_modified_at": True}},
        )

    show_field(dataset, path)


def describe_type(field: fof.Field) -> str:
    """Return the name of a field's type, such as "StringField" or "Detections"."""
    is_document = isinstance(field, fof.EmbeddedDocumentField)
    return str((field.document_type if is_document else type(field)).__name__)


def check_field_name(argument: str, value: object) -> None:
    """Check that an argument can be the name of a field: that it is a non-empty string."""
    if not isinstance(value, str) or not value:
        raise invalid(argument, value, "expected the name of a field")


def read_provenance(dataset: Any, path: str) -> Provenance:
    """Read the provenance of a field from the database; empty if none is recorded."""
    field = find_stored_field(dataset, path)
    return provenance_in(field.info if field is not None else None)


def replace_info(dataset: Any, path: str, field: StoredField, info: dict[str, Any]) -> bool:
    """Replace the info of a field if it is still what was read.

    It is one update of one document: if several processes try, one of them succeeds.

    Returns:
        whether the info was replaced; False if the field changed since it was read
    """
    key = f"{field.place}.info"
    # MongoDB finds a null in every list by "list.12.info": it looks for fields "12", too
    same = {"$not": {"$type": "object"}} if field.info is None else {"$eq": field.info}
    result = foo.get_db_conn().datasets.update_one(
        {"_id": dataset_id(dataset), **field.names, key: same},
        {"$set": {key: info}, "$currentDate": {"last_modified_at": True}},
    )
    if not result.matched_count:
        return False

    show_info(dataset, path, info)
    return True


def _find_siblings(dataset: Any, path: str) -> tuple[str, dict[str, str]]:
    """Return where the fields beside a new one are, and the names that they are in."""
    parent = path.rpartition(".")[0]
    if parent in ("", "frames"):
        return "frame_fields" if parent else "sample_fields", {}

    found = find_stored_field(dataset, parent)
    if found is None:
        raise ValueError(f"The field {parent!r} was deleted")

    if found.is_read_only:
        raise ValueError(f"The field {parent!r} is read-only")

    return f"{found.place}.fields", found.names
