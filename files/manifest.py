"""Read manifests, the Parquet files that list the images to embed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .arrow import pa, pq, reading
from .output_folder import find_output_folders

_COLUMNS = ("id", "uri")
_ADVICE = "Replace this file of the manifest by an intact copy"


@dataclass(frozen=True)
class _RowGroup:
    """Rows of one file that are read together."""

    path: Path
    index: int
    start: int
    stop: int


class Manifest:
    """Rows of a Parquet file, or of those in a folder in the order of their paths.

    Outputs of ``embed_files`` below the folder are no part of it, nor is what begins with
    a dot or an underscore.

    Only the files' footers are read at first. Rows are read by row groups, of which one
    is kept.

    Args:
        path: the path of a file with the columns ``id`` (strings or int64) and ``uri``
            (strings), or of a folder of such files

    Attributes:
        files: the paths of the files
        id_type: the type of the IDs, ``pa.string()`` or ``pa.int64()``
        rows: the number of rows
        digest: the sha256 of the files' names, sizes and footers. Copies of the files
            have the same

    Raises:
        ValueError: if a file is no such manifest
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = _find_files(path)
        self.rows = 0
        self._groups: list[_RowGroup] = []
        self._read_group = lru_cache(maxsize=1)(_read_group)
        digest = hashlib.sha256()
        id_types = {}
        for file in self.files:
            metadata = _read_metadata(file)
            id_types[_id_type(file, metadata.schema.to_arrow_schema())] = file
            name = file.relative_to(path) if file != path else ""
            digest.update(f"{name}\0{file.stat().st_size}\0".encode())
            digest.update(_read_footer(file, metadata.serialized_size))
            for index in range(metadata.num_row_groups):
                stop = self.rows + metadata.row_group(index).num_rows
                self._groups.append(_RowGroup(file, index, self.rows, stop))
                self.rows = stop

        if len(id_types) > 1:
            (first, one), (second, other) = list(id_types.items())[:2]
            raise ValueError(
                f"The column 'id' is {first} in {str(one)!r} and {second} in "
                f"{str(other)!r}: use one type in all files"
            )

        (self.id_type,) = id_types
        self.digest = digest.hexdigest()

    def read(self, start: int, stop: int) -> tuple[list[str], list[str]]:
        """Read the rows from one number up to another, as :func:`range` does.

        Returns:
            the IDs, as strings, and the URIs, empty where they are null

        Raises:
            OSError: if a file cannot be read
        """
        ids: list[str] = []
        uris: list[str] = []
        for group in self._groups:
            if group.stop <= start or group.start >= stop:
                continue

            first = max(start, group.start)
            with reading(group.path, _ADVICE):
                rows = self._read_group(group).slice(
                    first - group.start, min(stop, group.stop) - first
                )
                ids += map(str, rows["id"].to_pylist())
                uris += (uri or "" for uri in rows["uri"].to_pylist())

        return ids, uris

    def read_ids(self) -> Iterator[tuple[int, Any]]:
        """Read the IDs of all rows.

        Yields:
            the number of a row, and the IDs from that row on, a :class:`pyarrow.Array` of
            type :attr:`id_type`

        Raises:
            OSError: if a file cannot be read
        """
        for group in self._groups:
            start = group.start
            with reading(group.path, _ADVICE), pq.ParquetFile(group.path) as file:
                for rows in file.iter_batches(row_groups=[group.index], columns=["id"]):
                    yield start, rows.column(0).cast(self.id_type)
                    start += len(rows)


def _read_group(group: _RowGroup) -> Any:
    with pq.ParquetFile(group.path) as file:
        return file.read_row_group(group.index, columns=[*_COLUMNS])


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]

    if not path.is_dir():
        raise ValueError(
            f"The manifest {str(path)!r} does not exist: pass the path of a Parquet file, "
            "or of a folder of them"
        )

    found = sorted(
        file
        for file in path.rglob("*.parquet")
        if not any(name.startswith((".", "_")) for name in file.relative_to(path).parts)
        and not file.is_dir()
    )
    # Only now: an output has its record before it has other files
    outputs = find_output_folders(path)
    files = [file for file in found if outputs.isdisjoint(file.parents)]
    if not files:
        others = f" but those of the outputs {sorted(map(str, outputs))}" if found else ""
        raise ValueError(f"The manifest {str(path)!r} holds no .parquet files{others}")

    return files


def _read_metadata(file: Path) -> Any:
    try:
        return pq.read_metadata(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"The manifest {str(file)!r} cannot be read as Parquet: {error}"
        ) from error


def _read_footer(file: Path, size: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(-size - 8, 2)  # its length and the magic number follow
        return stream.read(size)


def _id_type(file: Path, schema: Any) -> Any:
    """Check the columns of a file, and return the type of its IDs."""
    for name in _COLUMNS:
        if name not in schema.names:
            raise ValueError(
                f"The manifest {str(file)!r} has no column {name!r}, only {schema.names}: "
                "it needs 'id' and 'uri'"
            )

    found = schema.field("id").type
    if _is_string(found):
        id_type = pa.string()
    elif found == pa.int64():
        id_type = pa.int64()
    else:
        raise ValueError(
            f"The column 'id' of {str(file)!r} is of type {found}: cast it to string or "
            "int64"
        )

    found = schema.field("uri").type
    if not _is_string(found):
        raise ValueError(
            f"The column 'uri' of {str(file)!r} is of type {found}: cast it to string"
        )

    return id_type


def _is_string(found: Any) -> bool:
    if pa.types.is_dictionary(found):
        found = found.value_type

    return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
