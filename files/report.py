"""The report, the error and the progress bar of a run of ``embed_files``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import eta.core.utils as etau

from ..embedding.report import RunError, RunReport

logger = logging.getLogger(__name__)

_MOST_EXAMPLES = 10


@dataclass
class FilesReport(RunReport):
    """The report of a run, counted in files; the output has each failure's reason.

    Args:
        embedded: the number of embeddings computed and stored
        skipped: the number of embeddings that existed already
        failed: the number of files without an embedding, those of earlier runs included
        warned: the number of embeddings of files with a defect that costs no pixel
        seconds: the duration of the run
        examples: the first failures, as "<id>: <reason>"
    """

    embedded: int = 0
    skipped: int = 0
    failed: int = 0
    warned: int = 0
    seconds: float = 0.0
    examples: list[str] = field(default_factory=list)

    def add_failure(self, id: str, reason: str) -> None:
        """Count a failure of this run, and log it if it is among the first."""
        self.failed += 1
        if len(self.examples) < _MOST_EXAMPLES:
            self.examples.append(f"{id}: {reason}")
            logger.warning("No embedding for %s: %s", id, reason)

    def __str__(self) -> str:
        lines = self._format_counts(self.failed, self.warned, 11)
        lines += [f"- {example}" for example in self.examples]
        rest = self.failed - len(self.examples)
        if rest:
            some = (
                f"... and {rest:,} more" if self.examples else f"- {rest:,} failed earlier"
            )
            lines.append(f"{some}, all in the column 'error' of the output")

        return "\n".join(lines)


class FilesError(RunError):
    """A run of ``embed_files`` that had to stop, or in which all files failed."""

    report: FilesReport


class ProgressBar(etau.ProgressBar):
    """A progress bar of ETA, as FiftyOne's is, without FiftyOne.

    Args:
        total: the number of files; without any, no bar is shown
        progress: whether to show it, or what to call with the bar instead
    """

    def __init__(self, total: int, progress: bool | Callable[[Any], None] | None) -> None:
        self._callback = progress if callable(progress) else None
        is_shown = bool(progress) and self._callback is None and total > 0
        super().__init__(total=total, quiet=not is_shown, iters_str="files")

    def set_iteration(self, *args: Any, **kwargs: Any) -> None:
        """Move to an iteration, and call what was given."""
        super().set_iteration(*args, **kwargs)
        if self._callback is not None:
            self._callback(self)
