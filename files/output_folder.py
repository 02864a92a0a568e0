"""Name the files of an output, and the folders of rows that are not in them yet."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from .arrow import reading

_RECORD = "_record.json"
_FILES = "part-*.parquet"


@dataclass(frozen=True)
class OutputFolder:
    """The folder of the output.

    Its files are ``part-00000.parquet`` and so on. What Parquet readers have to ignore
    begins with an underscore, as they expect.
    """

    path: Path

    @property
    def record(self) -> Path:
        """The path of the record of what made the output."""
        return self.path / _RECORD

    @property
    def unfinished(self) -> Path:
        """The folder of rows that are not in an output file yet."""
        return self.path / "_unfinished"

    @property
    def retried(self) -> Path:
        """The folder of rows that are to replace those with an error."""
        return self.path / "_retried"

    @property
    def is_resumable(self) -> bool:
        """Whether there are rows, and others may be written."""
        chunks = self.unfinished.glob("part-*/*.parquet")
        return os.access(self.path, os.W_OK) and any([*self.path.glob(_FILES), *chunks])

    def file(self, number: int) -> Path:
        """The path of an output file, which exists only if it is complete."""
        return self.path / f"part-{number:05d}.parquet"

    def chunks(self, number: int) -> Path:
        """The folder of the rows of an output file that are not in it yet."""
        folder = self.retried if self.file(number).exists() else self.unfinished
        return folder / f"part-{number:05d}"

    def find_files(self) -> list[Path]:
        """Find the output files that are complete, in their order."""
        return sorted(self.path.glob(_FILES))

    def discard(self, *, is_new: bool) -> None:
        """Remove the folders of a run that did not begin; the output, if it is new."""
        with contextlib.suppress(OSError):  # another run's are not empty
            self.unfinished.rmdir()
            if is_new:
                self.path.rmdir()

    def clean(self) -> None:
        """Remove the folders of unfinished rows, once the output is complete."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):  # another run's is not empty
            self.retried.rmdir()


def find_output_folders(folder: Path) -> set[Path]:
    """Find the outputs below a folder, which itself may be one."""
    return {record.parent for record in folder.rglob(_RECORD)} - {folder}


def reading_output(path: Path) -> contextlib.AbstractContextManager[None]:
    """Name the file in errors of reading an output file, or a chunk of one."""
    return reading(path, "Delete this file of the output: embed_files writes it again")
