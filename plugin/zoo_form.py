"""The form of a model's options, for FiftyOne's own zoo operators."""

from __future__ import annotations

import typing
from typing import Any

from fiftyone.operators import types

from ..checkpoints import Checkpoint, get_checkpoint
from ..config import OPTIONS, Settings, parse_settings
from ..hiera.pooling import POOLINGS
from .allowed_models import read_allowed
from .widgets import check_named


def build_form(model_name: str, ctx: Any) -> types.Property:
    """Build the form, and mark what is invalid.

    Args:
        model_name: the name of the model
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`; FiftyOne keeps
            the options in its parameter ``remote_params``

    Returns:
        a :class:`fiftyone.operators.types.Property`
    """
    checkpoint = get_checkpoint(model_name)
    outputs = checkpoint.architecture.outputs
    hints = typing.get_type_hints(Settings)
    inputs = types.Object()
    for name, option in OPTIONS.items():
        if name == "num_masks" and "reconstruction_error" not in outputs:
            continue

        # Left empty, the stage is the last, also of the user's own weights
        default = None if name == "stage" else getattr(Settings, name)
        texts = {"label": option.label, "description": option.description}
        if name == "pooling":
            ask_pooling(inputs, checkpoint)
        elif name == "output":
            _ask_choice(inputs, name, [*outputs], default=outputs[0], **texts)
        elif hints[name] is bool:
            inputs.bool(name, default=default, **texts)
        elif option.choices:
            _ask_choice(inputs, name, [*option.choices], default=default, **texts)
        elif name in ("num_masks", "image_size"):
            inputs.int(name, default=default, **texts)
        else:
            inputs.str(name, **texts)

    options = dict(ctx.params.get("remote_params") or {})
    check_named(inputs, lambda: parse_options(model_name, ctx, options), "pooling")
    return types.Property(inputs, view=types.View(label="Options"))


def parse_options(model_name: str, ctx: Any, options: dict[str, Any]) -> None:
    """Remove the options that were left empty, and validate the others.

    Args:
        model_name: the name of the model
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`
        options: the options, which are changed

    Raises:
        ValueError: if the model is not allowed, or if an option or its value is not valid
    """
    checkpoint = get_checkpoint(model_name)
    allowed = read_allowed(ctx)
    allowed.check_checkpoint(checkpoint)
    for name in [name for name, value in options.items() if value in (None, "")]:
        del options[name]

    settings = parse_settings(checkpoint, options)
    if settings.checkpoint is not None:
        allowed.check(settings.checkpoint, None)


def ask_pooling(inputs: types.Object, checkpoint: Checkpoint) -> types.Property:
    """Add a choice of the pooling.

    Args:
        inputs: the form
        checkpoint: the entry of the zoo

    Returns:
        the :class:`fiftyone.operators.types.Property`
    """
    choices = types.RadioGroup()
    for name in checkpoint.poolings:
        note = " ".join((POOLINGS[name].__doc__ or "").split())
        choices.add_choice(name, label=name, description=note)

    return inputs.enum(
        "pooling",
        choices.values(),
        default=checkpoint.poolings[0],
        label=OPTIONS["pooling"].label,
        description="How the grid of tokens becomes one embedding",
        view=choices,
    )


def _ask_choice(inputs: types.Object, name: str, choices: list[Any], **kwargs: Any) -> None:
    view = types.Dropdown()
    for choice in choices:
        view.add_choice(choice, label=str(choice))

    inputs.enum(name, choices, view=view, **kwargs)
