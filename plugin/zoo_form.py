"""Build the form of a model's options, for FiftyOne's own zoo operators."""

from __future__ import annotations

import typing
from typing import Any

from fiftyone.operators import types

from ..checkpoints import Checkpoint, get_checkpoint
from ..config import OPTIONS, Settings, parse_settings
from ..hiera.pooling import POOLINGS
from .allowed_models import read_allowed
from .widgets import ask_choice, check_named


def build_form(model_name: str, ctx: Any) -> types.Property:
    """Build the form of a model's options, and mark what is invalid."""
    checkpoint = get_checkpoint(model_name)
    outputs = checkpoint.architecture.outputs
    hints = typing.get_type_hints(Settings)
    inputs = types.Object()
    for name, option in OPTIONS.items():
        if name == "num_masks" and "reconstruction_error" not in outputs:
            continue

        texts: dict[str, Any] = {"label": option.label, "description": option.description}
        choices, default = option.choices, getattr(Settings, name)
        if name == "stage":
            default = None  # left empty, it is the last, also of the user's own weights
        elif name == "output":
            choices, default = outputs, outputs[0]

        if name == "pooling":
            ask_pooling(inputs, checkpoint)
        elif hints[name] is bool:
            inputs.bool(name, default=default, **texts)
        elif choices:
            ask_choice(inputs, name, choices, default=default, **texts)
        elif name in ("num_masks", "image_size"):
            inputs.int(name, default=default, **texts)
        else:
            inputs.str(name, **texts)

    # FiftyOne keeps the options in this parameter
    options = dict(ctx.params.get("remote_params") or {})
    check_named(inputs, lambda: parse_options(model_name, ctx, options), "pooling")
    return types.Property(inputs, view=types.View(label="Options"))


def parse_options(model_name: str, ctx: Any, options: dict[str, Any]) -> None:
    """Remove the options that were left empty, in place, and validate the others.

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
    """Add a choice of the pooling."""
    docs = {name: POOLINGS[name].__doc__ or "" for name in checkpoint.poolings}
    return ask_choice(
        inputs,
        "pooling",
        checkpoint.poolings,
        notes={name: " ".join(doc.split()) for name, doc in docs.items()},
        default=checkpoint.poolings[0],
        label=OPTIONS["pooling"].label,
        description="How the grid of tokens becomes one embedding",
        view=types.RadioGroup,
    )
