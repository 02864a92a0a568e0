"""Check and convert the values of arguments."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from ..errors import invalid

Convert: TypeAlias = Callable[[str, Any], Any]
"""A function of an argument's name and value that returns its valid value.

It raises a :class:`fiftyone_hiera.errors.OptionError` if there is none.
"""


def convert_fields(options: object, **conversions: Convert) -> None:
    """Check and convert fields of a frozen dataclass, in its ``__post_init__``.

    Args:
        options: the dataclass
        **conversions: the conversion of each field
    """
    for name, convert in conversions.items():
        object.__setattr__(options, name, convert(name, getattr(options, name)))


def optional(convert: Convert) -> Convert:
    """Return a conversion that leaves None as it is."""
    return lambda name, value: None if value is None else convert(name, value)


def to_integer(name: str, value: Any, least: int) -> int:
    """Convert an argument that is an integer; those of NumPy are, booleans are not.

    Raises:
        OptionError: if it is not an integer of at least ``least``
    """
    if not _is_integer(value) or value < least:
        raise invalid(name, value, f"expected an integer of at least {least}")

    return int(value)


def to_shard(name: str, value: Any) -> tuple[int, int]:
    """Convert an argument ``(k, n)``, integers with 0 <= k < n; see :func:`to_integer`."""
    match value:
        case (index, count) if _is_integer(index) and _is_integer(count):
            if 0 <= index < count:
                return int(index), int(count)

    raise invalid(name, value, "expected (k, n), integers with 0 <= k < n")


def to_boolean(name: str, value: Any) -> bool:
    """Convert an argument that is True or False; see :func:`to_integer`."""
    if not isinstance(value, (bool, np.bool_)):
        raise invalid(name, value, "expected True or False")

    return bool(value)


def check_progress(value: bool | Callable[[Any], None] | None) -> None:
    """Check FiftyOne's argument ``progress``.

    Raises:
        OptionError: if it is not valid
    """
    if not (value is None or isinstance(value, (bool, np.bool_)) or callable(value)):
        raise invalid("progress", value, "expected True, False, None or a function")


def _is_integer(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
