"""Code in other processes, which a test may kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from waiting import LIMIT

import fiftyone_hiera

_PREAMBLE = """
import json, sys, time
from pathlib import Path

def say(**values):
    print("SAID" + json.dumps(values), flush=True)

def main():
    import fiftyone as fo
    import fiftyone_hiera

    sys.path.append(TESTS)
    from cpu_kinds import fix_auto

    fix_auto()
    exact = {"dtype": "float32", "engine": "torch"}
    model = fiftyone_hiera.load_model("hiera-nano-digits", **exact)

    def slowly(bar):
        say(stored=bar.iteration)
        time.sleep(0.05)

    def stay_at(count):
        stayed = []

        def stay(bar):
            say(stored=bar.iteration)
            if bar.iteration >= count and not stayed:
                stayed.append(True)
                time.sleep(600)

        return stay

"""


def heed_interrupts() -> None:
    """Let SIGINT interrupt this process, in case the one that started it ignores it."""
    # Programs that a shell starts in the background ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class OtherProcess:
    """Python code that runs in parallel to the test, with ``fo`` and ``model``.

    Args:
        code: what it does; ``say(name=value)`` tells the test,
            ``progress=slowly`` makes a run report and take its time, and
            ``progress=stay_at(count)`` makes it report and stay there until it is killed
        folder: a folder for the script
        config (None): FiftyOne's config file; None is the tests' own

    It is killed after ``LIMIT``.
    """

    def __init__(self, code: str, folder: Path, config: Path | None = None) -> None:
        script = folder / f"script-{time.monotonic_ns()}.py"
        body = textwrap.indent(textwrap.dedent(code), "    ")
        script.write_text(
            f"TESTS = {str(Path(__file__).parent)!r}\n"
            f"{_PREAMBLE}{body}\n\nif __name__ == '__main__':\n    main()\n",
            "utf-8",
        )
        sources = str(Path(fiftyone_hiera.__file__).absolute().parents[1])
        environment = {**os.environ, "PYTHONPATH": sources}
        if config is not None:
            environment["FIFTYONE_CONFIG_PATH"] = str(config)

        self._errors = open(script.with_suffix(".log"), "w+", encoding="utf-8")  # noqa: SIM115  # closed by wait()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            preexec_fn=heed_interrupts,
        )
        self._limit = threading.Timer(LIMIT, self._process.kill)
        self._limit.daemon = True
        self._limit.start()

    def said(self) -> Iterator[dict[str, Any]]:
        """Yield what the code says, as it does."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("SAID"):
                yield json.loads(line[4:])

    def wait_until_stored(self, count: int) -> None:
        """Wait until a run has stored so many embeddings."""
        for said in self.said():
            if said.get("stored", 0) >= count:
                return

        raise AssertionError(f"It ended before:\n{self.wait()[1]}")

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        self._process.send_signal(number)

    def descendants(self, name: str) -> list[psutil.Process]:
        """Return the processes below this one whose command line has a word."""
        below = psutil.Process(self._process.pid).children(recursive=True)
        return [process for process in below if name in " ".join(process.cmdline())]

    def wait(self) -> tuple[int, str]:
        """Wait for the end; return the exit status and what was logged."""
        self._process.communicate()
        self._limit.cancel()
        self._errors.seek(0)
        log = self._errors.read()
        self._errors.close()
        return self._process.returncode, log

    def result(self) -> dict[str, Any]:
        """Wait for the end, and return the last thing that was said."""
        said = list(self.said())
        status, log = self.wait()
        assert status == 0, log
        return said[-1]
