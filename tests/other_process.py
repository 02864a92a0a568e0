"""Code in other processes, which a test may kill."""

from __future__ import annotations

import contextlib
import os
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from fork_server import start_script
from waiting import LIMIT

import fiftyone_hiera

SOURCES = str(Path(fiftyone_hiera.__file__).absolute().parents[1])
"""The folder that the package is imported from."""

_BARE = f"""
import sys, time
from pathlib import Path

LIMIT = {LIMIT}

def main():
    import fiftyone_hiera

    exact = {{"dtype": "float32", "engine": "torch"}}

    def wait_for(path):
        end = time.monotonic() + LIMIT
        while not Path(path).exists():
            assert time.monotonic() < end, "the test has ended"
            time.sleep(0.001)

"""
_WITH_FIFTYONE = """
    import fiftyone as fo
    from cpu_kinds import fix_auto

    fix_auto()
    model = fiftyone_hiera.load_model("hiera-nano-digits", **exact)

    def stay_at(count, until="/nowhere"):
        stayed = []

        def stay(bar):
            say(stored=bar.iteration)
            if bar.iteration >= count and not stayed:
                stayed.append(True)
                wait_for(until)

        return stay

"""

_living: set[OtherProcess] = set()


def kill_all() -> None:
    """Kill those that live, and what they started."""
    for process in [*_living]:
        process.kill()


class OtherProcess:
    """Python code that runs in parallel to the test, with ``fo`` and ``model``.

    Args:
        code: what it does; ``say(name=value)`` tells the test, ``wait_for(path)`` waits
            until the test makes a file, and ``progress=stay_at(count, until)`` makes a run
            report what it stored, and stay there until the test makes a file, or kills it
        folder: a folder for the script
        config (None): FiftyOne's config file; None is the tests' own
        bare (False): whether it starts without ``fo``, ``model`` and ``stay_at``

    It is killed after ``LIMIT``.
    """

    def __init__(
        self, code: str, folder: Path, config: Path | None = None, *, bare: bool = False
    ) -> None:
        preamble = _BARE if bare else _BARE + _WITH_FIFTYONE
        script = folder / f"script-{time.monotonic_ns()}.py"
        body = textwrap.indent(textwrap.dedent(code), "    ")
        main = "if __name__ == '__main__':\n    main()\n"
        script.write_text(f"{preamble}{body}\n\n{main}", "utf-8")
        environment = {**os.environ}
        if config is not None:
            environment["FIFTYONE_CONFIG_PATH"] = str(config)

        self._log = script.with_suffix(".log")
        self._process, self._heard = start_script(script, self._log, environment)
        self._limit = threading.Timer(LIMIT, self.kill)
        self._limit.daemon = True
        self._limit.start()
        _living.add(self)

    def said(self) -> Iterator[dict[str, Any]]:
        """Yield what the code says, as it does."""
        with contextlib.suppress(EOFError, OSError):  # it ended, or while it said something
            while True:
                yield self._heard.recv()

    def wait_until_stored(self, count: int) -> None:
        """Wait until a run has stored so many embeddings."""
        for said in self.said():
            if said.get("stored", 0) >= count:
                return

        raise AssertionError(f"It ended before:\n{self.wait()[1]}")

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill the process and those below it, which hold the pipe that ``said`` reads."""
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.kill()

        self._process.kill()

    def descendants(self, name: str = "") -> list[psutil.Process]:
        """Return the processes below this one whose command line has a word."""
        below = psutil.Process(self._process.pid).children(recursive=True)
        return [process for process in below if name in " ".join(process.cmdline())]

    def wait(self) -> tuple[int, str]:
        """Wait for the end; return the exit status and what was logged."""
        for _ in self.said():
            pass

        self._process.join()
        self._limit.cancel()
        _living.discard(self)
        assert self._process.exitcode is not None
        return self._process.exitcode, self._log.read_text("utf-8", "replace")

    def result(self) -> dict[str, Any]:
        """Wait for the end, and return the last thing that was said."""
        said = list(self.said())
        status, log = self.wait()
        assert status == 0, log
        return said[-1]
