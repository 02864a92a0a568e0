"""The form of a model's options, for FiftyOne's own zoo operators."""

from __future__ import annotations

from typing import Any

from fiftyone.operators import types

from .config import DTYPES, Settings, get_checkpoint, parse_settings
from .form_parts import ask_pooling, mark_invalid


def build_form(model_name: str, ctx: Any) -> types.Property:
    """Build the form.

    Args:
        model_name: the entry of the zoo
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`; FiftyOne keeps
            the options in its parameter ``remote_params``

    Returns:
        the form, with what is wrong marked
    """
    entry = get_checkpoint(model_name)
    inputs = types.Object()
    ask_pooling(inputs, entry)
    inputs.bool(
        "normalize",
        default=Settings.normalize,
        label="Normalize",
        description="Scale each vector to length 1 (L2)",
    )
    dtypes = types.Dropdown()
    for name in DTYPES:
        dtypes.add_choice(name, label=name)

    inputs.enum(
        "dtype",
        list(DTYPES),
        default=Settings.dtype,
        label="Type to compute in",
        description="auto is float32, the exact one",
        view=dtypes,
    )
    inputs.str(
        "device",
        label="Device",
        description="cuda, cuda:1, mps or cpu; empty for the first that exists",
    )
    inputs.str(
        "checkpoint",
        label="Weights of your own",
        description=(
            "A folder, a .safetensors file or <owner>/<name>@<revision> on the hub; empty "
            "for the model's own"
        ),
    )
    options = dict(ctx.params.get("remote_params") or {})
    try:
        parse_options(model_name, options)
    except ValueError as error:
        named = [name for name in inputs.properties if f" {name}" in str(error)]
        mark_invalid(inputs.properties[(named or ["pooling"])[0]], str(error))

    return types.Property(inputs, view=types.View(label="Options"))


def parse_options(model_name: str, options: dict[str, Any]) -> None:
    """Leave those options that were given, and check them.

    Args:
        model_name: the entry of the zoo
        options: the options, which are changed

    Raises:
        ValueError: if an option or its value is not valid
    """
    for name in [name for name, value in options.items() if value in (None, "")]:
        del options[name]

    parse_settings(get_checkpoint(model_name), options)
