"""A user of FiftyOne's model zoo, without this checkout."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_server import HubServer
from random_hiera import make_hiera, save_weights
from transformers import HieraConfig

from fiftyone_hiera.checkpoints import CHECKPOINTS
from sandbox import served_archive

TINY = "facebook/hiera-tiny-224-hf"
NANO = "hiera-nano-digits"


@dataclass
class ZooUser:
    """A user with FiftyOne and the URL of the archive.

    Args:
        home: the user's folder
        url: where the archive is served
        hub: the hub
        printed: what the last :meth:`python` printed
    """

    home: Path
    url: str
    hub: HubServer
    printed: str = ""

    @property
    def source(self) -> Path:
        return self.home / "models" / "fiftyone_hiera"

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PYTHON")
        }
        environment |= {
            "FIFTYONE_MODEL_ZOO_DIR": str(self.home / "models"),
            "FIFTYONE_PLUGINS_DIR": str(self.home / "plugins"),
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home / "hub"),
            "HF_HUB_OFFLINE": "0",
        }
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=self.home,
        )

    def python(self, code: str) -> Any:
        """Run code that assigns ``result``, and return that."""
        script = self.home / "script.py"
        lines = [
            "import json, sys",
            "import fiftyone as fo, fiftyone.brain as fob, fiftyone.zoo as foz",
            f"url, TINY, NANO = {self.url!r}, {TINY!r}, {NANO!r}",
            "def main():",
            *(f"    {line}" for line in code.strip().splitlines()),
            "    print('RESULT' + json.dumps(result))",
            "if __name__ == '__main__':",
            "    main()",
        ]
        script.write_text("\n".join(lines), "utf-8")
        done = self._run([sys.executable, str(script)])
        assert done.returncode == 0, done.stdout + done.stderr
        self.printed, _, result = done.stdout.rpartition("RESULT")
        # Other libraries may print at exit
        return json.loads(result.splitlines()[0])

    def cli(self, *arguments: str) -> str:
        """Run ``fiftyone``, and return what it prints."""
        fiftyone = Path(sys.executable).with_name("fiftyone")
        done = self._run([str(fiftyone), *arguments])
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@contextlib.contextmanager
def make_zoo_user(home: Path, served: Path) -> Iterator[ZooUser]:
    """Serve an archive of this checkout, and a hub with random weights.

    Args:
        home: the user's folder
        served: the folder to serve
    """
    tiny = CHECKPOINTS[TINY]
    config = HieraConfig(
        depths=tiny.depths, embed_dim=tiny.embed_dim, num_heads=tiny.num_heads
    )
    weights = save_weights(served / "model.safetensors", make_hiera(config))
    revision = tiny.weights.revision
    files = {"model.safetensors": weights.read_bytes()}
    with served_archive(served) as url, HubServer(commit=revision, files=files) as hub:
        yield ZooUser(home, url, hub)
