"""The folder of the output: its parts, what is unfinished, and the form of its rows."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .arrow import pa, pq, reading

VECTORS = {"float32": np.float32, "float16": np.float16}
"""The dtypes that vectors are stored in, by name."""

_VECTOR_VALUES = "vector.list.element"
_RECORD = "_record.json"


@dataclass(frozen=True)
class Layout:
    """The folder of the output.

    Parts are ``part-00000.parquet`` and so on. What Parquet readers have to ignore begins
    with an underscore, as they expect.

    Args:
        folder: the folder
    """

    folder: Path

    @property
    def record(self) -> Path:
        """The path of the record of what made the output."""
        return self.folder / _RECORD

    @property
    def unfinished(self) -> Path:
        """The folder of what is not in a part yet."""
        return self.folder / "_unfinished"

    @property
    def retried(self) -> Path:
        """The folder of what is to replace rows with an error."""
        return self.folder / "_retried"

    @property
    def is_resumable(self) -> bool:
        """Whether there are rows, and others may be written."""
        rows = itertools.chain(
            self.folder.glob("part-*.parquet"), self.unfinished.glob("part-*/*.parquet")
        )
        return os.access(self.folder, os.W_OK) and any(rows)

    def part(self, number: int) -> Path:
        """The path of a part, which exists only if the part is complete."""
        return self.folder / f"part-{number:05d}.parquet"

    def chunks(self, number: int) -> Path:
        """The folder of the rows of a part that are not in its file yet."""
        folder = self.retried if self.part(number).exists() else self.unfinished
        return folder / f"part-{number:05d}"

    def find_parts(self) -> list[Path]:
        """Find the parts that are complete, in their order."""
        return sorted(self.folder.glob("part-*.parquet"))

    def discard(self, *, is_new: bool) -> None:
        """Remove what a run made that did not begin.

        Args:
            is_new: whether it made the folder
        """
        with contextlib.suppress(OSError):  # another run's are not empty
            self.unfinished.rmdir()
            if is_new:
                self.folder.rmdir()

    def clean(self) -> None:
        """Remove what is unfinished, once nothing is."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):  # another run's is not empty
            self.retried.rmdir()


def find_outputs(folder: Path) -> set[Path]:
    """Find the outputs below a folder, which itself may be one."""
    return {record.parent for record in folder.rglob(_RECORD)} - {folder}


def reading_part(path: Path) -> contextlib.AbstractContextManager[None]:
    """Let errors in reading a part, or a chunk of one, name its file."""
    return reading(path, "Delete this file of the output: embed_files writes it again")


def count_errors(path: Path) -> int:
    """Count the rows of a part that have no vector, by what its footer says.

    Raises:
        OSError: if it cannot be read
    """
    with reading_part(path):
        metadata = pq.read_metadata(path)

    column = metadata.schema.names.index("error")
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return sum(
        group.num_rows - group.column(column).statistics.null_count for group in groups
    )


@dataclass(frozen=True)
class Row:
    """One row of the output.

    Args:
        id: the ID
        uri: the path or URI of the image
        vector: an array of shape (D,) of the stored dtype; None for a failure
        error: the reason of a failure, else None
    """

    id: str
    uri: str
    vector: np.typing.NDArray[Any] | None
    error: str | None


@dataclass(frozen=True)
class Format:
    """The form of the rows.

    Args:
        id_type: the type of the IDs, ``pa.string()`` or ``pa.int64()``
        vectors: the name of the dtype of the vectors
        dimension: their length
    """

    id_type: Any
    vectors: str
    dimension: int

    @property
    def schema(self) -> Any:
        """The schema of the files."""
        element = pa.from_numpy_dtype(VECTORS[self.vectors])
        return pa.schema(
            [
                pa.field("id", self.id_type, nullable=False),
                pa.field("uri", pa.string(), nullable=False),
                pa.field("vector", pa.list_(element, self.dimension)),
                pa.field("error", pa.string()),
            ]
        )

    def to_table(self, rows: list[Row]) -> Any:
        """Build a :class:`pyarrow.Table` of rows."""
        vectors = np.zeros((len(rows), self.dimension), VECTORS[self.vectors])
        for index, row in enumerate(rows):
            if row.vector is not None:
                vectors[index] = row.vector

        is_number = self.id_type == pa.int64()
        columns = [
            pa.array([int(row.id) if is_number else row.id for row in rows], self.id_type),
            pa.array([row.uri for row in rows], pa.string()),
            pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1)),
                type=self.schema.field("vector").type,
                mask=pa.array([row.vector is None for row in rows], pa.bool_()),
            ),
            pa.array([row.error for row in rows], pa.string()),
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def open(self, path: Path) -> Any:
        """Open a :class:`pyarrow.parquet.ParquetWriter`."""
        # Floats compress badly
        compression = dict.fromkeys(("id", "uri", "error"), "zstd")
        return pq.ParquetWriter(
            path,
            self.schema,
            compression={**compression, _VECTOR_VALUES: "none"},
            use_dictionary=["error"],
            write_statistics=["id", "error"],
        )
