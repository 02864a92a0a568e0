"""A user of FiftyOne's model zoo, without this checkout."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_server import HubServer
from random_hiera import make_hiera, save_weights
from transformers import HieraConfig
from waiting import LIMIT

from fiftyone_hiera.checkpoints import CHECKPOINTS
from sandbox import served_archive

TINY = "facebook/hiera-tiny-224-hf"
NANO = "hiera-nano-digits"


_NAMES = """
import json, sys
import fiftyone as fo, fiftyone.brain as fob, fiftyone.zoo as foz
url, TINY, NANO = {names!r}
"""

# Answers each line of code with its result, or with what it raised. All that is printed
# goes to the log, whoever prints it
_INTERPRETER = """
import os, traceback
calls, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)
for call in calls:
    names = {name: globals()[name] for name in NAMES}
    try:
        exec(compile(json.loads(call), "call", "exec"), names)
        answer = json.dumps([names["result"], None])
    except BaseException:
        answer = json.dumps([None, traceback.format_exc()])

    names.clear()
    sys.stdout.flush()
    print(answer, file=answers, flush=True)
"""
_GIVEN = ("json", "sys", "fo", "fob", "foz", "url", "TINY", "NANO")

_CLI = """
from fiftyone.core.cli import main
sys.argv = {arguments!r}
try:
    main()
except SystemExit as end:
    assert not end.code, end.code

result = None
"""


@dataclass
class ZooUser:
    """A user with FiftyOne and the URL of the archive.

    Code has the names ``fo``, ``fob``, ``foz``, ``url``, ``TINY`` and ``NANO``, and assigns
    ``result``. It cannot import the checkout.

    Args:
        home: the user's folder
        url: where the archive is served
        hub: the hub
        printed: what the last code printed
    """

    home: Path
    url: str
    hub: HubServer
    printed: str = ""
    _process: subprocess.Popen[str] | None = None

    @property
    def source(self) -> Path:
        return self.home / "models" / "fiftyone_hiera"

    def python(self, code: str) -> Any:
        """Run code in the user's interpreter, which lives on, and return the result."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._start_interpreter()

        process, log = self._process, self.home / "log"
        assert process.stdin is not None and process.stdout is not None
        start = log.stat().st_size
        limit = threading.Timer(LIMIT, process.kill)
        limit.start()
        print(json.dumps(code), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        limit.cancel()
        self.printed = log.read_bytes()[start:].decode()
        assert answer, f"The interpreter has ended: {self.printed}"
        result, error = json.loads(answer)
        assert error is None, self.printed + error
        return result

    def new_python(self, code: str) -> Any:
        """Run code as a script, in a new interpreter, and return the result."""
        script = self.home / "script.py"
        lines = [
            self._names,
            "def main():",
            *(f"    {line}" for line in code.strip().splitlines()),
            "    print('RESULT' + json.dumps(result))",
            "if __name__ == '__main__':",
            "    main()",
        ]
        script.write_text("\n".join(lines), "utf-8")
        done = self._run([sys.executable, str(script)])
        self.printed, _, result = done.stdout.rpartition("RESULT")
        # Other libraries may print at exit
        return json.loads(result.splitlines()[0])

    def cli(self, *arguments: str) -> str:
        """Run ``fiftyone`` in the user's interpreter, and return what it prints."""
        self.python(_CLI.format(arguments=["fiftyone", *arguments]))
        return self.printed

    def new_cli(self, *arguments: str) -> str:
        """Run ``fiftyone`` as a shell does, and return what it prints."""
        fiftyone = Path(sys.executable).with_name("fiftyone")
        done = self._run([str(fiftyone), *arguments])
        return done.stdout + done.stderr

    def forget(self) -> None:
        """Remove all models, plugins and downloads."""
        for name in ("models", "plugins", "hub"):
            shutil.rmtree(self.home / name, ignore_errors=True)

        self.hub.requests.clear()

    def close(self) -> None:
        """Kill the interpreter."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    @property
    def _names(self) -> str:
        return _NAMES.format(names=(self.url, TINY, NANO))

    @property
    def _environment(self) -> dict[str, str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PYTHON")
        }
        return environment | {
            "FIFTYONE_MODEL_ZOO_DIR": str(self.home / "models"),
            "FIFTYONE_PLUGINS_DIR": str(self.home / "plugins"),
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home / "hub"),
            "HF_HUB_OFFLINE": "0",
        }

    def _start_interpreter(self) -> subprocess.Popen[str]:
        with open(self.home / "log", "a") as log:
            return subprocess.Popen(
                [sys.executable, "-c", f"{self._names}NAMES = {_GIVEN}\n{_INTERPRETER}"],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.home,
            )

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            cwd=self.home,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done


@contextlib.contextmanager
def make_zoo_user(home: Path, served: Path) -> Iterator[ZooUser]:
    """Serve an archive of this checkout, and a hub with random weights.

    Args:
        home: the user's folder
        served: the folder to serve
    """
    tiny = CHECKPOINTS[TINY]
    config = HieraConfig(
        depths=tiny.depths, embed_dim=tiny.embed_dim, num_heads=tiny.config.num_heads
    )
    weights = save_weights(served / "model.safetensors", make_hiera(config))
    revision = tiny.file.revision
    files = {"model.safetensors": weights.read_bytes()}
    with served_archive(served) as url, HubServer(commit=revision, files=files) as hub:
        zoo_user = ZooUser(home, url, hub)
        yield zoo_user
        zoo_user.close()
