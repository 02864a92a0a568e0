"""Check that the IDs of a manifest are unique, in bounded memory."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pandas.util import hash_array

from .manifest import Manifest

# IDs whose hashes are sorted at once
_BUCKET_ROWS = 4_000_000

# Different IDs with the same hash are too rare to be so many
_MOST_SUSPECTS = 10_000

_Hashes = npt.NDArray[np.uint64]


def check_unique_ids(manifest: Manifest, folder: Path) -> None:
    """Check that each row of a manifest has an ID of its own.

    Hashes of 8 bytes an ID are distributed to files, and each file is sorted by itself.

    Args:
        manifest: the manifest
        folder: a folder for the files, which are removed

    Raises:
        ValueError: if one has none, or that of another row; the message says which
    """
    count = 1 + manifest.rows // _BUCKET_ROWS
    suspects: list[_Hashes] = []
    with tempfile.TemporaryDirectory(dir=folder, prefix="_ids-") as buckets:
        paths = [Path(buckets, str(index)) for index in range(count)]
        _distribute(manifest, paths)
        for path in paths:
            hashes, counts = np.unique(np.fromfile(path, np.uint64), return_counts=True)
            suspects.append(hashes[counts > 1][:_MOST_SUSPECTS])

    found = np.concatenate(suspects)[:_MOST_SUSPECTS]
    if len(found):
        _refuse_duplicates(manifest, found)


def _distribute(manifest: Manifest, paths: list[Path]) -> None:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for start, ids in manifest.read_ids():
            if ids.null_count:
                row = start + ids.is_null().to_numpy(zero_copy_only=False).argmax()
                raise ValueError(
                    f"The manifest {str(manifest.path)!r} has no ID in row {row}: each row "
                    "needs one"
                )

            hashes = _hash(ids)
            buckets = hashes % len(files)
            for index in np.unique(buckets):
                files[index].write(hashes[buckets == index].tobytes())


def _refuse_duplicates(manifest: Manifest, suspects: _Hashes) -> None:
    """Raise an error if one of the suspects is the hash of an ID that is there twice."""
    rows: dict[Any, int] = {}
    for start, ids in manifest.read_ids():
        for index in np.flatnonzero(np.isin(_hash(ids), suspects)).tolist():
            value = ids[index].as_py()
            first = rows.setdefault(value, start + index)
            if first != start + index:
                raise ValueError(
                    f"The manifest {str(manifest.path)!r} has the ID {value!r} in rows "
                    f"{first} and {start + index}: IDs must be unique"
                )


def _hash(ids: Any) -> _Hashes:
    hashes: _Hashes = hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)
    return hashes
