"""Report what a run embedded and skipped, and what failed."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..embedding.report import RunError, RunReport

_SHOWN = 10


@dataclass(frozen=True)
class Notice:
    """An embedding that could not be computed, or whose file is defective.

    Args:
        id: the ID of the sample, or of the frame or label inside it
        sample_id: the ID of the sample
        path: the path of its file
        reason: the reason, in one line; it names the path if the file is the cause
    """

    id: str
    sample_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class IndexChange:
    """What a run did to a similarity index.

    Args:
        rows: the number of rows in the index
        added: the number of rows that it wrote
        removed: the number of rows whose samples or labels are not in the dataset any more
    """

    rows: int
    added: int
    removed: int


@dataclass
class EmbeddingReport(RunReport):
    """The report of a run, counted in embeddings.

    Args:
        embedded: the number of embeddings computed and stored
        skipped: the number of embeddings that existed already
        failed: the failures, each with its reason
        warned: embeddings of files with a defect that costs no pixel, each with a warning
        seconds: the duration of the run
        index: what the run did to the similarity index; None if none was asked for
    """

    embedded: int = 0
    skipped: int = 0
    failed: list[Notice] = field(default_factory=list)
    warned: list[Notice] = field(default_factory=list)
    seconds: float = 0.0
    index: IndexChange | None = None

    def __str__(self) -> str:
        lines = self._format_counts(len(self.failed), len(self.warned), 9)
        if self.index is not None:
            change = self.index
            done = f"{change.added:,} added, {change.removed:,} removed"
            lines.append(f"in index  {change.rows:>9,} ({done})")

        for name, notices in (("failed", self.failed), ("warned", self.warned)):
            lines += [f"- {notice.id}: {notice.reason}" for notice in notices[:_SHOWN]]
            if len(notices) > _SHOWN:
                lines.append(f"... and {len(notices) - _SHOWN:,} more, all in .{name}")

        return "\n".join(lines)


class EmbeddingError(RunError):
    """A run of ``embed_samples`` that had to stop, or in which all inputs failed."""

    report: EmbeddingReport
