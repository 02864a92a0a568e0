"""Group files to blocks, and turn what comes back to results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..embedding.jobs import Failed, Job, Part, Result, check_row
from .reading import Piece


class Block:
    """Files that a task reads, and the parts of them that have no result yet.

    Args:
        jobs: the files
        is_alone (False): whether it is a single file, as reading it with others failed
        losses (0): how many pieces were lost in a row

    Attributes:
        jobs: the files, whose parts have numbers for IDs
        pending: the number of pieces that are being embedded, and one for its task until
            that has ended
        has_killed: whether its task died, each time that Ray tried
    """

    def __init__(
        self, jobs: Iterable[Job], is_alone: bool = False, losses: int = 0
    ) -> None:
        self._parts: dict[int, tuple[Job, Part]] = {}
        self.jobs = [self._number(job) for job in jobs]
        self.is_alone = is_alone
        self.losses = losses
        self.pending = 1
        self.has_killed = False

    def settle(self, piece: Piece, dtype: str) -> list[Result]:
        """Strike off the parts of a piece.

        Args:
            piece: the piece, with embeddings
            dtype: the dtype that they were computed in

        Returns:
            the results of those that had none before
        """
        results: list[Result] = []
        rows = iter(piece.rows)
        for answer in piece.answers:
            row = None if answer.error else next(rows)
            found = [self._parts.pop(n) for n in answer.numbers if n in self._parts]
            if row is not None:
                results += [
                    check_row(job, part, row, dtype, answer.warnings) for job, part in found
                ]
            elif found:
                parts = [part for _, part in found]
                results.append(Failed(found[0][0], parts, ValueError(answer.error)))

        return results

    def missing(self) -> list[Job]:
        """Return the files and parts without a result."""
        parts: dict[int, tuple[Job, list[Part]]] = {}
        for job, part in self._parts.values():
            parts.setdefault(id(job), (job, []))[1].append(part)

        return [replace(job, parts=missing) for job, missing in parts.values()]

    def _number(self, job: Job) -> Job:
        """Return a file whose parts have numbers for IDs."""
        numbered = []
        for part in job.parts:
            number = len(self._parts)
            self._parts[number] = job, part
            numbered.append(replace(part, id=str(number)))

        return replace(job, parts=numbered)


def in_blocks(jobs: Iterable[Job], block_size: int) -> Iterator[list[Job]]:
    """Group files to blocks of at least so many parts.

    No file is in two blocks, and so each is read once.
    """
    block: list[Job] = []
    size = 0
    for job in jobs:
        block.append(job)
        size += len(job.parts)
        if size >= block_size:
            yield block
            block, size = [], 0

    if block:
        yield block
