"""Write files aside, and move them into place when they are complete."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_aside(
    path: Path, folder: Path | None = None, *, replace: bool = True
) -> Iterator[Path]:
    """Write a file so that it is at its path only when it is complete.

    Args:
        path: the path
        folder (None): the folder to write in, on the same file system; created if it
            does not exist. By default, that of the path
        replace (True): whether to replace a file that is at the path, or to keep it

    Yields:
        the path to write to, whose name begins with a dot
    """
    folder = folder or path.parent
    _make(folder)
    aside = folder / f".{path.name}-{uuid.uuid4().hex}"
    try:
        yield aside
        if replace:
            os.replace(aside, path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
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
