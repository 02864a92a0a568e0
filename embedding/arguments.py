"""Checks of the types and values of arguments."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import OptionError


def to_integer(name: str, value: Any, least: int) -> int:
    """Convert an argument that is an integer; those of NumPy are, booleans are not.

    Args:
        name: the name of the argument
        value: its value
        least: the smallest valid value

    Returns:
        an int

    Raises:
        ValueError: if it is not valid
    """
    if not is_integer(value) or value < least:
        raise OptionError(
            name, f"Invalid {name} {value!r}: expected an integer of at least {least}"
        )

    return int(value)


def to_shard(value: Any) -> tuple[int, int]:
    """Convert an argument ``shard``.

    Args:
        value: its value

    Returns:
        a tuple ``(k, n)`` of ints with 0 <= k < n

    Raises:
        ValueError: if it is not valid
    """
    match value:
        case (index, count) if is_integer(index) and is_integer(count):
            if 0 <= index < count:
                return int(index), int(count)

    raise OptionError(
        "shard", f"Invalid shard {value!r}: expected (k, n), integers with 0 <= k < n"
    )


def check_boolean(name: str, value: object) -> None:
    """Check an argument that is True or False.

    Raises:
        ValueError: if it is not
    """
    if not isinstance(value, (bool, np.bool_)):
        raise OptionError(name, f"Invalid {name} {value!r}: expected True or False")


def check_progress(value: bool | Callable[[Any], None] | None) -> None:
    """Check FiftyOne's argument ``progress``.

    Raises:
        ValueError: if it is not valid
    """
    if not (value is None or isinstance(value, (bool, np.bool_)) or callable(value)):
        raise OptionError(
            "progress",
            f"Invalid progress {value!r}: expected True, False, None or a function",
        )


def is_integer(value: object) -> bool:
    """Return whether a value is an integer, and no boolean."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
