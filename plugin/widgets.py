"""Parts that the forms share: errors and the validation of single inputs."""

from __future__ import annotations

from collections.abc import Callable

from fiftyone.operators import types


def error_form(message: str, title: str | None = None) -> types.Property:
    """Build a form that shows an error and cannot be executed.

    Args:
        message: what is wrong and what to do
        title (None): the title of the form
    """
    inputs = types.Object()
    mark_invalid(inputs.view("error", types.Error(label=message)), message)
    return types.Property(inputs, view=types.View(label=title))


def check(prop: types.Property, validate: Callable[[], object]) -> None:
    """Mark an input as invalid if its validation fails.

    Args:
        prop: the input
        validate: a function that raises a ValueError if the input is not valid, or an
            ImportError if it needs a package that is not installed
    """
    try:
        validate()
    except (ValueError, ImportError) as error:
        mark_invalid(prop, str(error))


def check_named(inputs: types.Object, validate: Callable[[], object], default: str) -> None:
    """Mark the input of the option that the error of a validation is about.

    Args:
        inputs: the form
        validate: a function that raises a ValueError if an input is not valid
        default: the input to mark if the form has none of that name
    """
    try:
        validate()
    except ValueError as error:
        option = getattr(error, "option", default)
        name = option if option in inputs.properties else default
        mark_invalid(inputs.properties[name], str(error))


def mark_invalid(prop: types.Property, message: str) -> None:
    """Mark an input as invalid, so that the form cannot be executed.

    Args:
        prop: the input
        message: what is wrong and what to do
    """
    prop.invalid = True
    prop.error_message = message
