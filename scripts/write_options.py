"""Write the README's table of options from their descriptions in config.py.

    python scripts/write_options.py

A test fails where the README differs from what this script writes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(_ROOT / "examples"))

from documents import insert, table  # noqa: E402
from fiftyone_hiera.config import OPTIONS, Option, Settings  # noqa: E402


def options_table() -> str:
    """Return the table of options in Markdown."""
    rows = [
        [f"`{name}`", f"`{_show(getattr(Settings, name))}`", _describe(option)]
        for name, option in OPTIONS.items()
    ]
    return "\n".join(table(["option", "default", "what it does"], rows))


def _describe(option: Option) -> str:
    # Quoted words are values, and functions and paths are code
    return re.sub(r'"[\w:]+"|[\w.]+\([^)]*\)|<owner>\S+', r"`\g<0>`", str(option))


def _show(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


if __name__ == "__main__":
    insert(options_table(), "options", _ROOT / "README.md")
