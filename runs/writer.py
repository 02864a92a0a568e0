"""Write to the database in a thread while the next batches are embedded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ..embedding.jobs import Failed
from .report import EmbeddingError

Write = Callable[[], Sequence[Failed] | None]
"""A write; it may return what the database refused for good."""

# Writes that may wait; then embedding waits for the database
_MAX_WAITING = 2


class WriteError(Exception):
    """A write failed."""


class Writer:
    """Runs writes in one thread, in order; after a failure, no other one.

    As a context manager it waits for the writes that were submitted.

    Args:
        on_stored: called in the caller's thread with the number of embeddings that each
            successful write stored, and with what was refused
    """

    def __init__(self, on_stored: Callable[[int, Sequence[Failed]], None]) -> None:
        self._on_stored = on_stored
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hiera-write")
        self._waiting: deque[tuple[int, Future[Sequence[Failed]]]] = deque()
        self._has_failed = False

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        errors: list[Exception] = []
        try:
            while self._waiting:
                try:
                    self._finish_one()
                except (WriteError, EmbeddingError) as error:
                    errors.append(error)
        finally:
            self._pool.shutdown(cancel_futures=True)

        if errors and error_type is None:
            raise errors[0]

    def submit(self, write: Write, count: int = 0) -> None:
        """Queue a write, after waiting for others if too many are queued.

        Args:
            write: the write
            count (0): the number of embeddings that it stores, or that are refused

        Raises:
            WriteError: if an earlier write failed
        """
        while len(self._waiting) >= _MAX_WAITING:
            self._finish_one()

        self._waiting.append((count, self._pool.submit(self._write, write)))

    def _finish_one(self) -> None:
        count, future = self._waiting.popleft()
        try:
            refused = future.result()
        except Exception as error:  # FiftyOne turns some into ValueErrors
            raise WriteError(str(error)) from error

        self._on_stored(count - sum(len(failed.parts) for failed in refused), refused)

    def _write(self, write: Write) -> Sequence[Failed]:
        # It takes half a minute to notice a lost database: not once per write
        if self._has_failed:
            raise RuntimeError("an earlier write failed")

        try:
            return write() or ()
        except BaseException:
            self._has_failed = True
            raise
