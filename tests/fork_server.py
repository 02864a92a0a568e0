"""New Python processes in tenths of a second: they fork from one that has imported most.

It imports nothing that starts a thread, and nothing of this project or of FiftyOne, which
connects to its database when it is imported. What torch reads from the environment then,
such as OMP_NUM_THREADS, is that of the first process.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import warnings
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["eta.core.video", "sklearn.metrics", "torch", "torchvision"]
)


def start_script(
    script: Path, log: Path, environment: dict[str, str]
) -> tuple[ForkServerProcess, Connection]:
    """Run a script in a new process, where ``say(name=value)`` tells this one.

    Args:
        script: the script
        log: the file for what the process prints
        environment: its environment

    Returns:
        the process, and the end of a pipe that receives what it says
    """
    heard, said = _context.Pipe(duplex=False)
    process = _context.Process(target=_run, args=(script, log, environment, said))
    process.start()
    said.close()
    return process, heard


def _run(script: Path, log: Path, environment: dict[str, str], said: Connection) -> None:
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the server ignores
    warnings.simplefilter("ignore")

    def say(**values: Any) -> None:
        said.send(values)

    try:
        runpy.run_path(str(script), {"say": say}, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends a process without them
