"""Record what made an output, and refuse to mix in anything else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..embedding.provenance import Provenance, differing
from ..hiera.atomic import written_aside
from .output_folder import OutputFolder


@dataclass(frozen=True)
class OutputRecord:
    """The record of what made an output.

    Args:
        provenance: the provenance of the embeddings
        vectors: the name of the dtype that they are stored in
        dimension: their length
        part_size: the number of rows in an output file
        rows: the number of rows of the manifest
        manifest: the digest of the manifest
    """

    provenance: Provenance
    vectors: str
    dimension: int
    part_size: int
    rows: int
    manifest: str

    def check_same(self, made: OutputRecord, folder: Path) -> None:
        """Check that an output can be continued.

        Args:
            made: the record of what made it
            folder: the path of its folder

        Raises:
            ValueError: if something else made it; the message says what differs
        """
        there, here = made.provenance, self.provenance
        differences = [
            f"{name}: {there.get(name)} there, {here[name]} here"
            for name in differing(there, here)
        ]
        differences += [
            f"{name}: {getattr(made, name)} there, {getattr(self, name)} here"
            for name in ("vectors", "dimension", "part_size", "rows", "manifest")
            if getattr(made, name) != getattr(self, name)
        ]
        if differences:
            raise ValueError(
                f"The output {str(folder)!r} was made with other settings or of another "
                "manifest. Use another folder, or what made it:\n  "
                + "\n  ".join(differences)
            )


def read_output_record(folder: OutputFolder) -> OutputRecord | None:
    """Read the record of an output, or return None if there is none.

    Raises:
        ValueError: if output files have no record, or if it is none of this release
    """
    try:
        values: Any = json.loads(folder.record.read_text("utf-8"))
        return OutputRecord(**values)
    except (FileNotFoundError, NotADirectoryError):
        if not folder.find_files():
            return None

        raise ValueError(
            f"{str(folder.path)!r} holds part-*.parquet files, and no "
            f"{folder.record.name} that says what made them: use another folder"
        ) from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(folder.record)!r} cannot be read: {error}") from error


def claim_output(folder: OutputFolder, record: OutputRecord) -> None:
    """Write a record beside the output, unless one is there.

    Args:
        folder: the folder of the output
        record: the record

    Raises:
        ValueError: if another process wrote another record meanwhile
    """
    with written_aside(folder.record, replace=False) as aside:
        aside.write_text(json.dumps(asdict(record), indent=2) + "\n", "utf-8")

    made = read_output_record(folder)
    if made is not None:
        record.check_same(made, folder.path)
