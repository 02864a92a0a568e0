"""What an embedding run did."""

from __future__ import annotations

from dataclasses import dataclass, field

_SHOWN = 10


@dataclass(frozen=True)
class Failure:
    """One vector that was not made.

    Args:
        id: the ID of the sample, or of the frame or the label inside it
        sample_id: the ID of the sample
        path: the path of its file
        reason: why, in one line; it names the path where that is the cause
    """

    id: str
    sample_id: str
    path: str
    reason: str


@dataclass
class EmbeddingReport:
    """What an embedding run did, counted in vectors.

    Args:
        embedded: how many were made and stored
        skipped: how many there were already
        failed: those that could not be made, each with its reason
        seconds: how long the run took
    """

    embedded: int = 0
    skipped: int = 0
    failed: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """How many vectors were made and stored in a second."""
        return self.embedded / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        lines = [
            f"embedded  {self.embedded:>9,}",
            f"skipped   {self.skipped:>9,}",
            f"failed    {len(self.failed):>9,}",
            f"seconds   {self.seconds:>11,.1f}",
            f"images/s  {self.images_per_second:>11,.1f}",
            *(f"- {failure.id}: {failure.reason}" for failure in self.failed[:_SHOWN]),
        ]
        if len(self.failed) > _SHOWN:
            lines.append(f"... and {len(self.failed) - _SHOWN:,} more, all in .failed")

        return "\n".join(lines)


class EmbeddingError(RuntimeError):
    """An embedding run that stopped.

    What was stored is kept, and the same call goes on from there.

    Args:
        message: why it stopped
        report: what the run had done by then
    """

    def __init__(self, message: str, report: EmbeddingReport) -> None:
        super().__init__(message)
        self.report = report
