"""Print the oldest supported packages, as constraints for pip.

    python scripts/oldest.py > oldest.txt
    PIP_CONSTRAINT=oldest.txt make test

The lower ends of the ranges in pyproject.toml, of the dependencies and of the extras that
users install. Tools of the demo and of the tests stay the newest.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_TOOLS = {"app", "birder", "demo", "test"}


def oldest() -> list[str]:
    """Return one requirement ``name==version`` per package."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = list(project["dependencies"])
    for extra in sorted(extras.keys() - _TOOLS):
        requirements += extras[extra]

    pattern = r"([\w-]+)>=([\d.]+),<[\d.]+"
    return [re.sub(pattern, r"\1==\2", requirement) for requirement in requirements]


if __name__ == "__main__":
    print("\n".join(oldest()))
