"""The record beside the output: what made it, so that nothing else is mixed in."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..embedding.provenance import Provenance, differing
from .layout import Layout


@dataclass(frozen=True)
class Record:
    """What made an output.

    Args:
        provenance: the provenance of the embeddings
        vectors: the name of the dtype that they are stored in
        dimension: their length
        part_size: the number of rows in a part
        rows: the number of rows of the manifest
        manifest: the digest of the manifest
    """

    provenance: Provenance
    vectors: str
    dimension: int
    part_size: int
    rows: int
    manifest: str

    def check_same(self, made: Record, folder: Path) -> None:
        """Check that an output can be continued.

        Args:
            made: what made it
            folder: its folder

        Raises:
            ValueError: if it is made otherwise; the message says how
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


def read_record(layout: Layout) -> Record | None:
    """Read the record of an output, or return None if there is none.

    Raises:
        ValueError: if parts have no record, or if it is none of this release
    """
    try:
        values: Any = json.loads(layout.record.read_text("utf-8"))
        return Record(**values)
    except (FileNotFoundError, NotADirectoryError):
        if not layout.find_parts():
            return None

        raise ValueError(
            f"{str(layout.folder)!r} holds part-*.parquet files, and no "
            f"{layout.record.name} that says what made them: use another folder"
        ) from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(layout.record)!r} cannot be read: {error}") from error


def claim(record: Record, layout: Layout) -> None:
    """Write a record beside the output, unless one is there.

    Args:
        record: the record
        layout: the folder of the output

    Raises:
        ValueError: if another process wrote another record meanwhile
    """
    layout.folder.mkdir(parents=True, exist_ok=True)
    aside = layout.record.with_name(f"_record-{uuid.uuid4().hex}")
    try:
        aside.write_text(json.dumps(asdict(record), indent=2) + "\n", "utf-8")
        os.link(aside, layout.record)  # does not replace one
    except FileExistsError:
        pass
    finally:
        aside.unlink(missing_ok=True)

    made = read_record(layout)
    if made is not None:
        record.check_same(made, layout.folder)
