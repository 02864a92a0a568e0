"""Import pyarrow, or raise an error that says how to install it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Embeddings in Parquet files need pyarrow, which is not installed: "
        "pip install 'pyarrow>=26,<27'"
    ) from error

__all__ = ["pa", "pq", "reading"]


@contextlib.contextmanager
def reading(path: Path, advice: str) -> Iterator[None]:
    """Name the file in errors of reading a Parquet file.

    Args:
        path: the path of the file
        advice: what to do if it is damaged

    Raises:
        OSError: if it cannot be read
    """
    try:
        yield
    except FileNotFoundError:
        raise  # it names the file
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).strip()
        raise OSError(f"{str(path)!r} cannot be read: {reason}\n{advice}") from error
