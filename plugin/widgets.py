"""Parts that the forms share: errors, choices and the validation of single inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def ask_choice(
    inputs: types.Object,
    name: str,
    labels: Mapping[Any, str],
    *,
    valid: Sequence[Any] | None = None,
    view: type[types.Choices] = types.Dropdown,
    **kwargs: Any,
) -> types.Property:
    """Add a choice of one of several values.

    Args:
        inputs: the form
        name: the name of the input
        labels: the labels of the values that are offered
        valid (None): the values that are valid; by default those that are offered
        view (Dropdown): the class that shows the choice
        **kwargs: the other arguments of :meth:`fiftyone.operators.types.Object.enum`

    Returns:
        the input
    """
    choices = view()
    for value, label in labels.items():
        choices.add_choice(value, label=label)

    return inputs.enum(name, [*(valid or labels)], view=choices, **kwargs)


def ask_box(
    inputs: types.Object, name: str, label: str, description: str
) -> types.Property:
    """Add a checkbox, which is not checked by default."""
    return inputs.bool(
        name,
        default=False,
        label=label,
        description=description,
        view=types.CheckboxView(),
    )


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
