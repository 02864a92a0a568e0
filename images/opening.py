"""Open files by their paths or URIs, and explain why one is no image.

Contents that Pillow opens, but this package refuses, are in
:mod:`fiftyone_hiera.images.decoding`.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote

import fsspec

from ..errors import invalid

_FILE_URI = re.compile(r"file://(?:localhost(?=/))?(?=[/~])", re.IGNORECASE)
_URL = re.compile(r"(?:^|/)([a-z][a-z0-9+.-]+):/", re.IGNORECASE)
_TEXT = re.compile(rb"\s*[\x20-\x7e]{4}[^\0]*\Z")

# What files that are no images begin with; the first that matches tells
_CONTENTS = {
    rb"version https://git-lfs": (
        "it is a Git LFS pointer, not the image itself; run `git lfs pull`"
    ),
    rb".{4}ftyp(hei[cxms]|hev[cx]|mif1|msf1)": (
        "it is HEIC, which needs a Pillow plugin: `pip install pillow-heif`, then `import "
        "pillow_heif; pillow_heif.register_heif_opener()`"
    ),
    rb".{4}ftyp": "it is a video (MP4 or similar); add videos to a video dataset",
    rb"\x1aE\xdf\xa3|.{8}AVI ": (
        "it is a video (Matroska, WebM or AVI); add videos to a video dataset"
    ),
    rb".*<svg": "it is SVG, a vector format; render it to PNG or JPEG",
    rb"%PDF": "it is PDF, a vector format; render it to PNG or JPEG",
}


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading.

    Args:
        path: a path, or a URI, which fsspec opens with the credentials that it finds

    Raises:
        OSError: if the file does not exist or cannot be opened
        ValueError: if it is no regular file, or empty; see :func:`check_is_file`
        ImportError: if fsspec lacks a package for this kind of URI; the message names it
    """
    name = to_local(path)
    if is_uri(name):
        return cast(BinaryIO, fsspec.open(name, "rb").open())

    check_is_file(name)
    return open(name, "rb")


def to_local(path: str | os.PathLike[str]) -> str:
    """Expand "~", and convert a "file://" URI to the path that it names.

    The percent escapes of a URI are decoded, unless a file has them in its name.

    Args:
        path: a path or URI

    Returns:
        a path; URIs of other kinds and of other hosts as they are
    """
    name = os.fspath(path)
    scheme = _FILE_URI.match(name)
    if scheme is None:
        return os.path.expanduser(name)

    local = os.path.expanduser(name[scheme.end() :])
    return local if os.path.exists(local) else unquote(local)


def to_local_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Convert an argument that is the path of a local file or folder.

    Raises:
        ValueError: if it is a URI of another kind
    """
    path = to_local(value)
    if is_uri(path):
        raise invalid(name, path, "expected a path on a local or shared disk")

    return Path(path)


def is_uri(path: str | os.PathLike[str]) -> bool:
    """Return whether fsspec opens a path, such as "s3://bucket/image.jpg"."""
    return "://" in os.fspath(path)


def check_is_file(path: str | os.PathLike[str]) -> None:
    """Check that a path is a regular, non-empty file, without opening it.

    Opening a FIFO would block until there is a writer; opening a device may have
    side effects.

    Raises:
        OSError: if the path does not exist or is not accessible
        ValueError: if it is a URL, a folder, a FIFO, a device, a socket or empty
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        url = _URL.search(os.fsdecode(path))
        if url is not None:
            raise ValueError(
                f"it is a URL ({url[1]}); download the file and give its local path"
            ) from None

        if os.path.islink(path):
            raise ValueError("it is a link to a file that does not exist") from None

        raise

    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder")

    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is a FIFO, a device or a socket, not a file")

    if status.st_size == 0:
        raise ValueError("the file is empty (0 bytes)")


def describe_content(start: bytes) -> str:
    """Say why Pillow cannot identify a file, by its first bytes, about 1 kB."""
    for pattern, reason in _CONTENTS.items():
        if re.match(pattern, start, re.DOTALL):
            return reason

    if _TEXT.match(start):
        word = start.split(maxsplit=1)[0][:20].decode("ascii", "replace")
        return f"it is text, beginning with {word!r}"

    return "unrecognized image format: Pillow cannot identify it"
