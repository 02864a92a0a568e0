"""Errors that tell which option they are about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class OptionError(ValueError):
    """An option does not exist, or has a value that is not valid here.

    Args:
        option: the name of the option
        message: what is wrong, and what is valid
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(option, message)  # with both, so that it can be pickled
        self.option = option
        self.message = message

    def __str__(self) -> str:
        return self.message


def invalid(name: str, value: object, reason: str) -> OptionError:
    """Return the error of an option whose value is not valid, to be raised."""
    return OptionError(name, f"Invalid {name} {value!r}: {reason}")


def check_choice(name: str, value: Any, valid: Iterable[Any], of: str = "") -> Any:
    """Return a value if it is one of the valid ones, and of the type of that one.

    Raises:
        OptionError: if it is not; its message says of what the valid ones are
    """
    valid = [*valid]
    if not any(type(value) is type(choice) and value == choice for choice in valid):
        raise OptionError(name, f"Invalid {name}{of}: {value!r}. Valid are {valid}")

    return value
