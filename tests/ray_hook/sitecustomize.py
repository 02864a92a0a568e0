"""Faults of worker processes: what happens to one that opens a certain file.

Python imports this module when it starts, if its folder is on ``PYTHONPATH``.
"""

from __future__ import annotations

import os
import signal
import sys
import time


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not isinstance(arguments[0], str):
        return

    name = os.path.basename(arguments[0])
    if name.startswith("killer"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif name.startswith("slow"):
        time.sleep(25)


sys.addaudithook(_hook)
