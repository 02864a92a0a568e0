"""The report of a run of ``embed_files``."""

from __future__ import annotations

from dataclasses import dataclass, field

_MOST_EXAMPLES = 10


@dataclass
class FilesReport:
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

    @property
    def images_per_second(self) -> float:
        """The number of embeddings computed and stored per second."""
        return self.embedded / self.seconds if self.seconds else 0.0

    @property
    def wants_examples(self) -> bool:
        """Whether another failure is to be among :attr:`examples`."""
        return len(self.examples) < _MOST_EXAMPLES

    def __str__(self) -> str:
        lines = [
            f"embedded  {self.embedded:>11,}",
            f"skipped   {self.skipped:>11,}",
            f"failed    {self.failed:>11,}",
            f"warned    {self.warned:>11,}",
            f"seconds   {self.seconds:>13,.1f}",
            f"images/s  {self.images_per_second:>13,.1f}",
            *(f"- {example}" for example in self.examples),
        ]
        rest = self.failed - len(self.examples)
        if rest:
            some = (
                f"... and {rest:,} more" if self.examples else f"- {rest:,} failed earlier"
            )
            lines.append(f"{some}, all in the column 'error' of the output")

        return "\n".join(lines)


class FilesError(RuntimeError):
    """A run that had to stop.

    Args:
        message: the reason, and whether what was written is kept
        report: what the run had done by then
        option (None): the name of the option to change, if one helps
    """

    def __init__(
        self, message: str, report: FilesReport, option: str | None = None
    ) -> None:
        super().__init__(message)
        self.report = report
        self.option = option
