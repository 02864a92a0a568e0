"""What several forms have in common."""

from __future__ import annotations

from collections.abc import Callable

from fiftyone.operators import types

from .config import Checkpoint, Settings
from .hiera.pooling import POOLINGS

_POOLING_NOTES = {
    "mean": "The average over the whole image: the one to use, unless you have a reason",
    "cls": "The top-left corner, with what attention brought there; Hiera has no class "
    "token, but earlier plugins stored this as one",
    "pooler": "The average, through a LayerNorm that pretraining left untrained; for "
    "fine-tuned weights",
}


def ask_pooling(inputs: types.Object, checkpoint: Checkpoint) -> types.Property:
    """Ask for the pooling, and say what each is.

    Args:
        inputs: the form
        checkpoint: the entry of the zoo, whose name may settle it
    """
    choices = types.RadioGroup()
    for name in [checkpoint.pooling] if checkpoint.pooling else POOLINGS:
        choices.add_choice(name, label=name, description=_POOLING_NOTES[name])

    return inputs.enum(
        "pooling",
        choices.values(),
        default=checkpoint.pooling or Settings.pooling,
        label="Pooling",
        description="How the grid of tokens becomes one vector",
        view=choices,
    )


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
