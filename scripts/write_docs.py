"""Write what documents repeat from the code: tables, and the URL of the repository.

    python scripts/write_docs.py

Options come from config.py, models and pins from checkpoints.py, the README's figures from
docs/figures, and the owner of the repository from the homepage in pyproject.toml. A
test fails where a document differs from what this script writes.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(_ROOT / "examples"))

from documents import insert, table  # noqa: E402
from fiftyone_hiera.checkpoints import CHECKPOINTS, Checkpoint  # noqa: E402
from fiftyone_hiera.config import OPTIONS, Option, Settings  # noqa: E402
from fiftyone_hiera.hiera.checkpoint_kinds import AUTOENCODER, CLASSIFIER  # noqa: E402
from fiftyone_hiera.hiera.hub import HubFile  # noqa: E402

_WITH_LINKS = (
    *("*.md", "*.yml", "*.cff", "pyproject.toml", "docs/*.md", "examples/*.ipynb"),
    ".github/**/*.*",
)


# What the README calls the jobs of docs/figures
_JOBS = {
    "FiftyOne's transformers integration": "FiftyOne's transformers integration",
    "ours, compute_embeddings, auto": "`compute_embeddings`",
    "ours, embed_samples, auto": "`embed_samples`",
    "ours, embed_samples, auto, fast_decoding": "`embed_samples`, with `fast_decoding`",
}


def tables() -> Iterator[tuple[str, str, str]]:
    """Yield the page, the name and the Markdown of each table that is made from code."""
    # The entries with a suffix share the weights of others
    all_models = [one for one in CHECKPOINTS.values() if one.pooling is None]
    other_kinds = (CLASSIFIER, AUTOENCODER)
    others = [one for one in all_models if one.architecture in other_kinds]
    encoders = [one for one in all_models if one not in others]
    yield "docs/models.md", "embedding models", _models_table(encoders)
    yield "docs/models.md", "other models", _models_table(others)
    yield "docs/weights.md", "pins", _pins_table(all_models)
    yield "docs/options.md", "options", _options_table()
    yield "README.md", "speed", _speed_table()


def linked_documents() -> list[Path]:
    """Return the paths of the documents that may link to the repository."""
    return sorted({path for pattern in _WITH_LINKS for path in _ROOT.glob(pattern)})


def homepage() -> str:
    """Return the URL of the repository."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return str(project["urls"]["Homepage"])


def relink(text: str) -> str:
    """Return a document whose links to the repository have its owner."""
    slug = homepage().removeprefix("https://github.com/")
    name = re.escape(slug.partition("/")[2])
    return re.sub(rf"(?<=\bgithub)(\.com|\.io)?/[\w<>.-]+/{name}\b", rf"\1/{slug}", text)


def _models_table(checkpoints: Iterable[Checkpoint]) -> str:
    rows = [
        [
            f"`{one.name}`",
            str(one.embedding_dim),
            f"{one.parameters / 1e6:.1f} M",
            f"{one.size_bytes / 1e6:.0f} MB"
            if isinstance(one.file, HubFile)
            else "in this repository",
            one.license,
        ]
        for one in checkpoints
    ]
    return _markdown(["name", "dimension", "parameters", "download", "license"], rows)


def _pins_table(checkpoints: Iterable[Checkpoint]) -> str:
    rows = [
        [f"`{one.name}`", *(_shorten(pin) for pin in (one.file.revision, one.file.sha256))]
        for one in checkpoints
    ]
    return _markdown(["name", "revision", "sha256"], rows)


def _shorten(pin: str | None) -> str:
    return f"`{pin[:10]}`" if pin else ""


def _options_table() -> str:
    rows = [
        [f"`{name}`", f"`{_show(getattr(Settings, name))}`", _describe(option)]
        for name, option in OPTIONS.items()
    ]
    return _markdown(["option", "default", "what it does"], rows)


def _describe(option: Option) -> str:
    # Quoted words are values, and functions and paths are code
    return re.sub(r'"[\w:]+"|[\w.]+\([^)]*\)|<owner>\S+', r"`\g<0>`", str(option))


def _show(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _speed_table() -> str:
    figures = {}
    for path in sorted((_ROOT / "docs" / "figures").glob("*.json")):
        tables = json.loads(path.read_text("utf-8"))["tables"]
        title = next(title for title in tables if title.startswith("Speed of whole jobs"))
        figures[path.stem] = tables[title]

    rows = [
        [name, *(jobs.get(job, "") for jobs in figures.values())]
        for job, name in _JOBS.items()
    ]
    return _markdown(["whole job: images/s, relative to the first row", *figures], rows)


def _markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(table(head, rows)).strip()


if __name__ == "__main__":
    for page, name, text in tables():
        insert(text, name, _ROOT / page)

    for path in linked_documents():
        path.write_text(relink(path.read_text("utf-8")), "utf-8")
