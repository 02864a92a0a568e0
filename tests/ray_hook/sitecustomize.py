"""Faults of worker processes: what happens to one that opens a certain file.

Python imports this module when it starts, if its folder is on ``PYTHONPATH``.
"""

from __future__ import annotations

import os
import signal
import sys
import time

_LIMIT = 300  # seconds, after which the test has failed


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not isinstance(arguments[0], str):
        return

    folder, name = os.path.split(arguments[0])
    if name.startswith("killer"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif name.startswith("slow"):
        _wait_for(os.path.join(folder, "go"))


def _wait_for(path: str) -> None:
    deadline = time.monotonic() + _LIMIT
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.05)


sys.addaudithook(_hook)
