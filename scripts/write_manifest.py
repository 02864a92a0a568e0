"""Write manifest.json from the table in checkpoints.py.

    python scripts/write_manifest.py

The checkpoint table is the only place where a checkpoint is described; a test
fails where the manifest differs from what this script writes.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from fiftyone_hiera.checkpoints import CHECKPOINTS, Checkpoint

_ROOT = Path(__file__).parents[1]
_DATE_ADDED = "2026-11-21 12:00:00"


def build_manifest() -> dict[str, Any]:
    """Return the manifest that describes every checkpoint of the table."""
    return {
        "name": "fiftyone_hiera",
        "models": [_entry(checkpoint) for checkpoint in CHECKPOINTS.values()],
    }


def _entry(checkpoint: Checkpoint) -> dict[str, Any]:
    name, url = checkpoint.training_data
    return {
        "base_name": checkpoint.name,
        "base_filename": checkpoint.filename,
        "version": None,
        "author": checkpoint.author,
        "url": checkpoint.source if checkpoint.source.startswith("https:") else None,
        "source": checkpoint.source,
        "license": checkpoint.license,
        "description": _description(checkpoint),
        "size_bytes": checkpoint.size_bytes,
        "requirements": {
            "packages": _packages(),
            "cpu": {"support": True},
            "gpu": {"support": True},
        },
        "tags": [
            *checkpoint.architecture.tags,
            *("embeddings", "torch", "transformers", "hiera"),
        ],
        "training_data": [{"name": name, "url": url}],
        "date_added": _DATE_ADDED,
    }


def _description(checkpoint: Checkpoint) -> str:
    return (
        f"Hiera {checkpoint.architecture.produces}: {checkpoint.embedding_dim} dimensions, "
        f"{checkpoint.parameters / 1e6:.1f} M parameters, {checkpoint.image_size} px, "
        f"pooling {' or '.join(checkpoint.poolings)}; {checkpoint.trained}"
    )


def _packages() -> list[str]:
    """Return what the package depends on, less FiftyOne, which is the host."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [name for name in project["dependencies"] if not name.startswith("fiftyone")]


if __name__ == "__main__":
    text = json.dumps(build_manifest(), indent=2) + "\n"
    (_ROOT / "manifest.json").write_text(text, "utf-8")
