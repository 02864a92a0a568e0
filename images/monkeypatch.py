"""Change an attribute of another library temporarily, safely across threads."""

from __future__ import annotations

import threading
from typing import Any


class Override:
    """Context manager that sets an attribute while any thread is inside.

    Args:
        owner: the object or module
        name: the name of the attribute
        value: the value inside the context
    """

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner = owner
        self._name = name
        self._value = value
        self._lock = threading.Lock()
        self._num_inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._previous = getattr(self._owner, self._name)
                setattr(self._owner, self._name, self._value)

            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                setattr(self._owner, self._name, self._previous)
