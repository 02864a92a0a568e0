"""Figures in documents: tables, and where they belong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path


def insert(text: str, name: str, path: Path) -> None:
    """Replace what a document has between two comments of a name."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, _, rest = path.read_text("utf-8").partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text(f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}", "utf-8")


def table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"

    yield ""
