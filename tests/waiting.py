"""Waiting for events, however long they take on a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT = 600
"""After so many seconds, something hangs."""


def wait_until(happened: Callable[[], object], limit: float = LIMIT) -> None:
    """Wait until something has happened.

    Args:
        happened: returns whether it has
        limit (LIMIT): the seconds after which it is taken for a hang
    """
    end = time.monotonic() + limit
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)
