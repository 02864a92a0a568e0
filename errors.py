"""Errors that tell which option they are about."""

from __future__ import annotations


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
