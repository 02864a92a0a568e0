"""What several forms have in common."""

from __future__ import annotations

from collections.abc import Callable

from fiftyone.operators import types


def show_obstacle(text: str, title: str | None = None) -> types.Property:
    """Return a message in place of a form, which cannot be executed.

    Args:
        text: what is in the way, and what to do
        title (None): the title of the form
    """
    inputs = types.Object()
    mark_invalid(inputs.view("obstacle", types.Error(label=text)), text)
    return types.Property(inputs, view=types.View(label=title))


def check(prop: types.Property, validate: Callable[[], object]) -> None:
    """Mark a property as invalid if that is what a validation says.

    Args:
        prop: the property
        validate: raises a ValueError if it is not valid
    """
    try:
        validate()
    except ValueError as error:
        mark_invalid(prop, str(error))


def mark_invalid(prop: types.Property, message: str) -> None:
    """Mark a property as invalid, so that the form cannot be executed.

    Args:
        prop: the property
        message: what is wrong, and what to do
    """
    prop.invalid = True
    prop.error_message = message
