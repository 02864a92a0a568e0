"""What "auto" resolves to in the tests, whatever CPU they run on.

torch computes bfloat16 on any CPU, slowly. OpenVINO computes float32 where the CPU has no
bfloat16, so that tests of its rounding ask for ``COMPUTES_BFLOAT16``.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Any

import pytest
import torch

from fiftyone_hiera.hiera.engines import has_bfloat16, has_openvino

COMPUTES_BFLOAT16 = has_bfloat16()
"""Whether this CPU itself has instructions for bfloat16."""

ORIGINALS = {
    name: getattr(torch.cpu, name)
    for name in ("get_capabilities", "_is_avx512_bf16_supported")
    if hasattr(torch.cpu, name)
}
"""The functions by which torch tells, of which releases have one or both."""


def fix_auto() -> None:
    """Have this process resolve "auto" as the tests are told to.

    That is float32 by OpenVINO, unless the environment variable ``TESTED_AUTO`` names
    "bfloat16" or "no-openvino".
    """
    told = os.environ.get("TESTED_AUTO", "").split()
    patch = pytest.MonkeyPatch()
    say_bfloat16(patch, "bfloat16" in told)
    if "no-openvino" in told:
        hide_openvino(patch)


def say_bfloat16(patch: pytest.MonkeyPatch, is_said: bool) -> None:
    """Say of this CPU that it has instructions for bfloat16, or that it has none."""
    said = {
        "get_capabilities": lambda: {"avx512_bf16": is_said},
        "_is_avx512_bf16_supported": lambda: is_said,
    }
    for name in ORIGINALS:
        patch.setattr(torch.cpu, name, said[name])


def say_truth(patch: pytest.MonkeyPatch) -> None:
    """Say of this CPU what is true, as processes do that FiftyOne starts."""
    for name, function in ORIGINALS.items():
        patch.setattr(torch.cpu, name, function)


def hide_openvino(patch: pytest.MonkeyPatch) -> None:
    """Have OpenVINO seem not to be installed, for all copies of the package."""
    version = importlib.metadata.version

    def version_but(name: str) -> Any:
        if name == "openvino":
            raise importlib.metadata.PackageNotFoundError(name)

        return version(name)

    patch.setattr(importlib.metadata, "version", version_but)
    patch.setitem(sys.modules, "openvino", None)
    has_openvino.cache_clear()
