"""Files that are written aside and moved into place when they are complete."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_aside(path: Path, folder: Path) -> Iterator[Path]:
    """Write a file so that it is at its path only when it is complete.

    Args:
        path: the path; what is there is replaced
        folder: the folder to write in, on the same file system; created if it does not
            exist

    Yields:
        the path to write to, whose name begins with a dot
    """
    _make(folder)
    aside = folder / f".{path.name}-{uuid.uuid4().hex}"
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())

        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _make(folder: Path) -> None:
    """Make a folder that other processes may remove at any moment."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # raised, too, if it was removed a moment later
            if folder.is_file():
                raise
        else:
            return
