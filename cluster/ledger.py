"""The ledger of one pass: which parts are on their way, and how many blocks may be."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..embedding.jobs import Job, Part


class Ledger:
    """Keeps the parts that were sent until their results are back.

    One thread sends, another one settles.

    Args:
        most_blocks: the number of blocks that may be on their way
    """

    def __init__(self, most_blocks: int) -> None:
        self._most_blocks = most_blocks
        self._changed = threading.Condition()
        self._is_closed = False
        self._sent = 0
        self._parts: dict[int, tuple[Job, Part, int]] = {}
        self._waiting: dict[int, int] = {}  # by block: its parts without a result

    def send(self, jobs: Sequence[Job]) -> list[Job] | None:
        """Enter a block, after waiting until there is room for it.

        Args:
            jobs: the files of the block

        Returns:
            the same files, whose parts have numbers for IDs; None if the ledger was
            closed
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or len(self._waiting) < self._most_blocks
            )
            if self._is_closed:
                return None

            block = self._sent
            numbered = [self._number(job, block) for job in jobs]
            self._waiting[block] = sum(len(job.parts) for job in jobs)
            return numbered

    def settle(self, numbers: Iterable[int]) -> list[tuple[Job, Part]]:
        """Strike parts off.

        Args:
            numbers: the numbers of parts that have a result

        Returns:
            those of them that had none before
        """
        settled: list[tuple[Job, Part]] = []
        with self._changed:
            for number in numbers:
                entry = self._parts.pop(number, None)
                if entry is None:
                    continue

                job, part, block = entry
                settled.append((job, part))
                if block in self._waiting:
                    self._waiting[block] -= 1
                    if self._waiting[block] == 0:
                        del self._waiting[block]

            self._changed.notify_all()

        return settled

    def make_room(self) -> None:
        """Count the blocks that are on their way no longer: they may be lost."""
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Let :meth:`send` return None from now on."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def missing(self) -> list[Job]:
        """Return the files and parts without a result."""
        parts: dict[int, tuple[Job, list[Part]]] = {}
        for job, part, _ in self._parts.values():
            parts.setdefault(id(job), (job, []))[1].append(part)

        return [replace(job, parts=missing) for job, missing in parts.values()]

    def _number(self, job: Job, block: int) -> Job:
        numbered = []
        for part in job.parts:
            self._parts[self._sent] = job, part, block
            numbered.append(replace(part, id=str(self._sent)))
            self._sent += 1

        return replace(job, parts=numbered)
