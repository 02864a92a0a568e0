"""Name the zoo model of a similarity index in its config, for FiftyOne's own search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fiftyone.brain as fob
import fiftyone.zoo as foz

from ..checkpoints import CHECKPOINTS
from ..config import parse_settings
from ..embedding.provenance import (
    PREPROCESSING_OPTIONS,
    Provenance,
    differing,
    expected_provenance,
)
from ..indexes.backends import SKLEARN
from ..indexes.brain_run import record_provenance, table_provenance
from ..indexes.credentials import save_config
from .fiftyone_internals import label_path, show_brain_runs
from .schema import read_provenance
from .target import Target


def embeddings_path(dataset: Any, config: Any) -> str | None:
    """Return the path of the embeddings that an index is of; None if it alone has them."""
    name: str | None = config.embeddings_field
    labels: str | None = config.patches_field
    if name is None or labels is None:
        return name

    if dataset.has_field(labels):  # it may have been deleted
        labels = label_path(dataset, labels)[1]

    return f"{labels}.{name}"


def read_index_provenance(dataset: Any, config: Any) -> Provenance:
    """Return the provenance of the vectors of an index; empty if none is recorded.

    What the config of the index records takes precedence over its field.
    """
    path = embeddings_path(dataset, config)
    recorded = table_provenance(config)
    if recorded or path is None:
        return recorded

    return read_provenance(dataset, path)


def update_index_models(dataset: Any) -> None:
    """Set the model of each index to the zoo model that computes its vectors, or to None.

    FiftyOne's own search by an uploaded image loads this model by its name alone. Without
    one, it refuses the search instead of comparing embeddings of different settings.
    Indexes without a provenance stay as they are.
    """
    for key, config in _find_indexes(dataset):
        # A table may hold other vectors than its field by now
        is_known = config.method == SKLEARN or table_provenance(config)
        provenance = read_index_provenance(dataset, config) if is_known else {}
        if not provenance:
            continue

        name = _find_entry(provenance)
        if (config.model, config.model_kwargs) != (name, None):
            config.model, config.model_kwargs = name, None
            save_config(dataset, key, config)


def keep_provenance_of_tables(target: Target, provenance: Provenance) -> None:
    """Record in indexes what their tables hold, before their field gets other vectors."""
    for key, config in find_tables(target):
        if not table_provenance(config):
            record_provenance(target.dataset, key, config, provenance)


def find_tables(target: Target) -> Iterator[tuple[str, Any]]:
    """Find brain keys and configs of the indexes whose tables hold a field's embeddings."""
    for key, config in _find_indexes(target.dataset):
        place = (config.embeddings_field, config.patches_field)
        if place == (target.name, target.patches_field) and config.method != SKLEARN:
            yield key, config


def _find_indexes(dataset: Any) -> Iterator[tuple[str, Any]]:
    """Find the brain keys and configs of the indexes, also those of other processes."""
    show_brain_runs(dataset)
    for key in dataset.list_brain_runs(type=fob.Similarity):
        yield key, dataset.get_brain_info(key).config


def _find_entry(provenance: Provenance) -> str | None:
    """Return the zoo model that computes embeddings by default, but for rounding."""
    if any(provenance.get(name) for name in PREPROCESSING_OPTIONS):
        return None

    rounding = {name: provenance[name] for name in ("dtype", "engine")}
    for entry in CHECKPOINTS.values():
        expected = expected_provenance(entry, parse_settings(entry, {}))
        if not differing(provenance, {**expected, **rounding}):
            return entry.name if entry.name in foz.list_zoo_models() else None

    return None
