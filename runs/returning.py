"""An iterator that keeps what its generator returns."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

Yielded = TypeVar("Yielded")
Returned = TypeVar("Returned")


class Returning(Iterator[Yielded], Generic[Yielded, Returned]):
    """Iterates over a generator, and keeps what it returns.

    Args:
        generator: the generator

    Attributes:
        result: what it returned; there only after the last item
    """

    result: Returned

    def __init__(self, generator: Generator[Yielded, None, Returned]) -> None:
        self._generator = generator

    def __next__(self) -> Yielded:
        try:
            return next(self._generator)
        except StopIteration as end:
            self.result = end.value
            raise

    def close(self) -> None:
        """Close the generator."""
        self._generator.close()
