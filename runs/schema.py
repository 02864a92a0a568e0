"""Fields as the database knows them, whatever other processes did meanwhile."""

from __future__ import annotations

from typing import Any

import fiftyone.core.odm as foo


def find_stored_field(dataset: Any, path: str) -> dict[str, Any] | None:
    """Look up a field in the database itself.

    A dataset in memory does not know what other processes changed since it was
    loaded.

    Args:
        dataset: the dataset
        path: the path of the field

    Returns:
        the document that describes the field, or None if it does not exist

    Raises:
        ValueError: if the dataset was deleted
    """
    document = foo.get_db_conn().datasets.find_one(
        {"_id": dataset._doc.id}, ["sample_fields", "frame_fields"]
    )
    if document is None:
        raise ValueError(f"The dataset {dataset.name!r} was deleted")

    is_frame_field = path.startswith("frames.")
    document["fields"] = document.get("frame_fields" if is_frame_field else "sample_fields")
    for name in path.removeprefix("frames.").split("."):
        named = [field for field in document.get("fields") or [] if field["name"] == name]
        if not named:
            return None

        document = named[0]

    return dict(document)
