"""Parts that the forms share: errors, choices and the validation of single inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fiftyone.operators import types


def error_form(message: str, title: str | None = None) -> types.Property:
    """Build a form that shows an error and cannot be executed."""
    inputs = types.Object()
    mark_invalid(inputs.view("error", types.Error(label=message)), message)
    return types.Property(inputs, view=types.View(label=title))


def ask_choice(
    inputs: types.Object,
    name: str,
    labels: Mapping[Any, str] | Sequence[Any],
    *,
    notes: Mapping[Any, str] | None = None,
    view: type[types.Choices] = types.Dropdown,
    **kwargs: Any,
) -> types.Property:
    """Add a choice of one of several values.

    Args:
        inputs: the form
        name: the name of the input
        labels: the labels of the values, or the values alone
        notes (None): descriptions of the values
        view (Dropdown): the class that shows the choice
        **kwargs: the other arguments of :meth:`fiftyone.operators.types.Object.enum`; its
            ``values`` are by default those that have a label
    """
    choices = view()
    for value in labels:
        label = labels[value] if isinstance(labels, Mapping) else str(value)
        choices.add_choice(value, label=label, description=(notes or {}).get(value))

    return inputs.enum(name, kwargs.pop("values", [*labels]), view=choices, **kwargs)


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
    """Mark an input as invalid, so that the form cannot be executed."""
    prop.invalid = True
    prop.error_message = message
