"""Files that are named by a URI and opened by fsspec."""

from __future__ import annotations

import os
from typing import BinaryIO, cast

import fsspec


def is_uri(path: str | os.PathLike[str]) -> bool:
    """Return whether fsspec opens a path, such as "s3://bucket/image.jpg"."""
    return "://" in os.fspath(path)


def open_uri(uri: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading, with the credentials that fsspec finds.

    Args:
        uri: the URI of the file

    Raises:
        OSError: if the file cannot be opened
        ImportError: if fsspec lacks a package for this kind of URI; the message names it
    """
    return cast(BinaryIO, fsspec.open(os.fspath(uri), "rb").open())
