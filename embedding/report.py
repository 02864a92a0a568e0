"""Bases of the reports of runs, and of the errors of runs that had to stop."""

from __future__ import annotations


class RunReport:
    """Base class of reports, whose attributes are the counts of a run.

    Attributes:
        embedded: the number of embeddings computed and stored
        skipped: the number of embeddings that existed already
        seconds: the duration of the run
    """

    embedded: int
    skipped: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """The number of embeddings computed and stored per second."""
        return self.embedded / self.seconds if self.seconds else 0.0

    def _format_counts(self, failed: int, warned: int, width: int) -> list[str]:
        """Return a line for each count, with numbers aligned to the right."""
        return [
            f"embedded  {self.embedded:>{width},}",
            f"skipped   {self.skipped:>{width},}",
            f"failed    {failed:>{width},}",
            f"warned    {warned:>{width},}",
            f"seconds   {self.seconds:>{width + 2},.1f}",
            f"images/s  {self.images_per_second:>{width + 2},.1f}",
        ]


class RunError(RuntimeError):
    """A run that had to stop.

    What was stored is kept, and the same call resumes there.

    Args:
        message: the reason
        report: what the run had done by then
        option (None): the name of the option to change, if one helps
    """

    def __init__(self, message: str, report: RunReport, option: str | None = None) -> None:
        super().__init__(message, report, option)  # with all, so that it can be pickled
        self.message = message
        self.report = report
        self.option = option

    def __str__(self) -> str:
        return self.message
