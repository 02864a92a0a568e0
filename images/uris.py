"""Paths and URIs of files: what is local, and what fsspec opens."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote

import fsspec

from ..errors import OptionError

_LOCAL = re.compile(r"file://(?:localhost(?=/))?(?=[/~])", re.IGNORECASE)


def to_local(path: str | os.PathLike[str]) -> str:
    """Expand "~", and convert a "file://" URI to the path that it names.

    The percent escapes of a URI are decoded, unless a file has them in its name.

    Args:
        path: a path or URI

    Returns:
        a path; URIs of other kinds and of other hosts as they are
    """
    name = os.fspath(path)
    scheme = _LOCAL.match(name)
    if scheme is None:
        return os.path.expanduser(name)

    local = os.path.expanduser(name[scheme.end() :])
    return local if os.path.exists(local) else unquote(local)


def to_local_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Convert an argument that is the path of a local file or folder.

    Args:
        name: the name of the argument
        value: its value

    Raises:
        ValueError: if it is a URI of another kind
    """
    path = to_local(value)
    if is_uri(path):
        raise OptionError(
            name, f"Invalid {name} {path!r}: expected a path on a local or shared disk"
        )

    return Path(path)


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
