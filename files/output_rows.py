"""Convert rows of the output to the form in which they are stored, and write them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..hiera.atomic import written_aside
from .arrow import pa, pq

VECTORS = {"float32": np.float32, "float16": np.float16}
"""The dtypes that vectors are stored in, by name."""

# Floats compress badly
_COMPRESSION = {
    **dict.fromkeys(("id", "uri", "error"), "zstd"),
    "vector.list.element": "none",
}


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
class RowFormat:
    """Form of the stored rows.

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

    def to_table(self, rows: Sequence[Row]) -> Any:
        """Build a :class:`pyarrow.Table` of rows."""
        vectors = np.zeros((len(rows), self.dimension), VECTORS[self.vectors])
        for index, row in enumerate(rows):
            if row.vector is not None:
                vectors[index] = row.vector

        columns = [
            pa.array([row.id for row in rows], pa.string()).cast(self.id_type),
            pa.array([row.uri for row in rows], pa.string()),
            pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1)),
                type=self.schema.field("vector").type,
                mask=pa.array([row.vector is None for row in rows], pa.bool_()),
            ),
            pa.array([row.error for row in rows], pa.string()),
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)

    @contextlib.contextmanager
    def writing(self, path: Path, folder: Path) -> Iterator[Any]:
        """Write a file in a folder, and move it to its path when it is on the disk.

        Yields:
            a :class:`pyarrow.parquet.ParquetWriter`
        """
        with written_aside(path, folder) as aside:
            with pq.ParquetWriter(
                aside,
                self.schema,
                compression=_COMPRESSION,
                use_dictionary=["error"],
                write_statistics=["id", "error"],
            ) as writer:
                yield writer

            with aside.open("rb") as file:
                os.fsync(file.fileno())
