"""The demo and these tests do not touch the user's FiftyOne."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import LIMIT

EXAMPLES = Path(__file__).parents[1] / "examples"

_USER = """
import fiftyone as fo

fo.Dataset("users-own", persistent=True)
print("READY", flush=True)
input()
print(fo.list_datasets())
"""

_DEMO = f"""
import sys
from pathlib import Path

sys.path.insert(0, {str(EXAMPLES)!r})
from sandbox import use_own_fiftyone

use_own_fiftyone(Path.cwd() / "own")
import fiftyone as fo

fo.Dataset("demos-own", persistent=True)
print(fo.list_datasets())
"""


@pytest.mark.slow
def test_a_running_fiftyone_is_left_alone(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FIFTYONE_")}
    environment |= {"HOME": str(tmp_path), "FIFTYONE_DATABASE_VALIDATION": "false"}
    environment["FIFTYONE_DO_NOT_TRACK"] = "true"
    user = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _USER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert user.stdout is not None
    assert any("READY" in line for line in user.stdout)

    demo = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _DEMO],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert "['demos-own']" in demo.stdout, demo.stderr
    listed, _ = user.communicate("\n", timeout=LIMIT)
    assert "['users-own']" in listed
