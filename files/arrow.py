"""pyarrow, or an error that says how to install it."""

from __future__ import annotations

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Embeddings in Parquet files need pyarrow, which is not installed: "
        "pip install 'pyarrow>=15'"
    ) from error

__all__ = ["pa", "pq"]
