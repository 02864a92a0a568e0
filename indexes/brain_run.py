"""The brain runs of similarity indexes, and what their configs record."""

from __future__ import annotations

import uuid
from typing import Any

from ..embedding.provenance import Provenance
from .backends import SKLEARN
from .credentials import save_config
from .options import Contents

RECORD = "hiera"
"""The attribute of a run's config that says what its vectors are."""


def find_config(dataset: Any, brain_key: str) -> Any:
    """Return the config of a brain run, or None if there is no run of that key."""
    if brain_key not in dataset.list_brain_runs():
        dataset.reload()  # another process may have made it
        if brain_key not in dataset.list_brain_runs():
            return None

    return dataset.get_brain_info(brain_key).config


def make_record(method: str, contents: Contents) -> dict[str, Any]:
    """Make what the config of a run records about its vectors."""
    record: dict[str, Any] = {"dataset_id": contents.dataset_id, "run": str(uuid.uuid4())}
    if method != SKLEARN:  # whose field has the provenance
        record["provenance"] = contents.provenance

    return record


def config_record(config: Any) -> dict[str, Any]:
    """Return what the config of a run records; empty if nothing."""
    return getattr(config, RECORD, None) or {}


def table_provenance(config: Any) -> Provenance:
    """Return the recorded provenance of the rows of a table; empty if there is none."""
    return dict(config_record(config).get("provenance") or {})


def record_provenance(
    dataset: Any, brain_key: str, config: Any, provenance: Provenance
) -> None:
    """Record the provenance of the rows of a table in the config of its run."""
    setattr(config, RECORD, {**config_record(config), "provenance": provenance})
    save_config(dataset, brain_key, config)
