"""Manifests of files, and calls that embed them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from other_process import OtherProcess

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


_EMBED = """
    from fiftyone_hiera.files import output_file

    output_file._CHUNK_ROWS = {chunk_rows}
    stayed = []

    def stay(bar):
        say(stored=bar.iteration)
        if bar.iteration >= {count} and not stayed:
            stayed.append(True)
            wait_for({go!r})

    report = fiftyone_hiera.embed_files(
        {manifest!r}, {out!r}, model="hiera-nano-digits", progress=stay, **exact,
        **{options}
    )
    assert "fiftyone" not in sys.modules
    say(embedded=report.embedded, skipped=report.skipped, failed=report.failed)
"""


def start_embedding(
    manifest: Path, out: Path, count: int, chunk_rows: int, **options: Any
) -> OtherProcess:
    """Start a process that embeds, and says how many rows of its output files exist.

    With so many, it stays there until it is killed, or until the file "go" exists.
    """
    code = _EMBED.format(
        chunk_rows=chunk_rows,
        count=count,
        go=str(out.parent / "go"),
        manifest=str(manifest),
        out=str(out),
        options=options,
    )
    return OtherProcess(code, out.parent, bare=True)
