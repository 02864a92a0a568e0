"""Similarity indexes in real databases, and what FiftyOne finds in them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import fiftyone.brain.internal.core.lancedb as brain_lancedb
import numpy as np
import pytest
from index_servers import configured

from fiftyone_hiera.indexes.backends import open_table
from fiftyone_hiera.indexes.table import VectorTable

KEY = "hiera_sim"

IS_NEW_BRAIN = hasattr(brain_lancedb.LanceDBSimilarityConfig, "resolve_uri")
"""Whether FiftyOne's brain is 0.26 or later."""


def database(
    name: str, request: pytest.FixtureRequest
) -> contextlib.AbstractContextManager[None]:
    """Have the database of a backend configured as from the environment.

    Args:
        name: the name of the backend
        request: that of the test
    """
    if name == "pgvector":
        server = request.getfixturevalue("postgres")
        limit = "options=-c%20lock_timeout%3D60s"  # which only ends a deadlock
        return configured(name, connection_string=f"{server.uri}&{limit}")

    pytest.importorskip({"milvus": "pymilvus"}.get(name, name))
    if name == "milvus":
        pytest.importorskip("milvus_lite")

    place = request.getfixturevalue("tmp_path") / f"{name}.db"
    return configured(name, uri=str(place))


@contextlib.contextmanager
def loaded(samples: Any, key: str = KEY) -> Iterator[Any]:
    """Load an index in a new session, by FiftyOne's class."""
    samples.clear_cache()
    index = samples.load_brain_results(key, cache=False)
    try:
        yield index
    finally:
        if index.config.method == "pgvector":
            # Its transaction would keep others from dropping the table
            index.close_connections()


def rows(samples: Any, key: str = KEY) -> dict[str, np.ndarray]:
    """Read the vectors of all samples or labels in a new session, by FiftyOne's class."""
    with loaded(samples, key) as index:
        patches_field = index.config.patches_field
        path = "id" if patches_field is None else f"{patches_field}.detections.id"
        return VectorTable(index).read(samples.values(path, unwind=True))


def count(samples: Any, key: str = KEY) -> int:
    """Count the rows of an index in a new session."""
    with loaded(samples, key) as index, contextlib.closing(open_table(index)) as table:
        return table.count()


def check(samples: Any, field: str | None = "hiera", key: str = KEY) -> None:
    """Check that FiftyOne finds every vector of a field in the index, and no other."""
    found = rows(samples, key)
    assert len(found) == count(samples, key) == len(samples)
    expected = dict(zip(*samples.values(["id", field]), strict=True)) if field else {}
    for id, vector in expected.items():
        np.testing.assert_allclose(found[id], vector, atol=1e-6)


def neighbors(samples: Any, query: Any, k: int = 5) -> list[str]:
    """Search by FiftyOne, for IDs."""
    ids: list[str] = samples.sort_by_similarity(query, k=k, brain_key=KEY).values("id")
    return ids


def exact_neighbors(samples: Any, number: int, k: int = 5) -> list[str]:
    """Find what is nearest to a sample, by the field."""
    ids, vectors = samples.values(["id", "hiera"])
    unit = np.stack(vectors) / np.linalg.norm(np.stack(vectors), axis=1, keepdims=True)
    return [ids[i] for i in np.argsort(-unit @ unit[number])[:k]]
