"""Manifests of files, and calls that embed them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import fiftyone_hiera

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write_manifest(path: Path, uris: Sequence[str | None], ids: Any = None) -> Path:
    """Write a manifest of these URIs; by default, IDs are their numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = range(len(uris)) if ids is None else ids
    table = pa.table(
        {"id": [*ids], "uri": pa.array(uris, pa.string()), "x": [0] * len(uris)}
    )
    pq.write_table(table, path)
    return path


def embed_manifest(manifest: Path, out: Path, **options: Any) -> Any:
    """Embed the files of a manifest in float32, 60 in each part."""
    exact = {"dtype": "float32", "engine": "torch"}
    given = {**exact, "part_size": 60, "progress": False, **options}
    return fiftyone_hiera.embed_files(manifest, out, model="hiera-nano-digits", **given)
