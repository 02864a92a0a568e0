"""Record what made an output, and refuse to mix in anything else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..embedding.provenance import Provenance, differing
from ..hiera.atomic import written_aside
from .output_folder import OutputFolder

_COMPARED = ("vectors", "dimension", "part_size", "rows", "manifest")


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

    def check_same(self, folder: OutputFolder) -> bool:
        """Check that an output can be continued.

        Returns:
            whether it has a record

        Raises:
            ValueError: if something else made it; the message says what differs
        """
        made = read_output_record(folder)
        if made is None:
            return False

        names = differing(made.provenance, self.provenance)
        names += [name for name in _COMPARED if getattr(made, name) != getattr(self, name)]
        if names:
            there, here = ({**vars(it), **it.provenance} for it in (made, self))
            differences = [
                f"{name}: {there.get(name)} there, {here[name]} here" for name in names
            ]
            raise ValueError(
                f"The output {str(folder.path)!r} was made with other settings or of "
                "another manifest. Use another folder, or what made it:\n  "
                + "\n  ".join(differences)
            )

        return True

    def claim(self, folder: OutputFolder) -> None:
        """Write the record beside the output, unless one is there.

        Raises:
            ValueError: if another process wrote another record meanwhile
        """
        with written_aside(folder.record, replace=False) as aside:
            aside.write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")

        self.check_same(folder)


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
