"""The form of a model's options, for FiftyOne's own zoo operators."""

from __future__ import annotations

from typing import Any

from fiftyone.operators import types

from ..checkpoints import OUTPUTS, Checkpoint, get_checkpoint
from ..config import (
    AUTO,
    DTYPES,
    LARGEST_SIZE,
    LAST_STAGE,
    SIZE_STEP,
    Settings,
    parse_settings,
)
from ..hiera.engines import ENGINES
from .widgets import mark_invalid

_POOLING_NOTES = {
    "mean": "The average over the whole image: the one to use, unless you have a reason",
    "cls": "The top-left corner, with what attention brought there; Hiera has no class "
    "token, but earlier plugins stored this as one",
    "pooler": "The average, through a LayerNorm that pretraining left untrained; for "
    "fine-tuned weights",
}


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
    outputs = OUTPUTS[entry.architecture]
    inputs = types.Object()
    _ask_choice(
        inputs,
        "output",
        [*outputs],
        default=outputs[0],
        label="Output",
        description="What applying the model gives; embeddings are to be had in any case",
    )
    inputs.str(
        "heatmap_basis",
        label="Basis of heatmaps",
        description=(
            "For output heatmap, a file that model.fit_heatmap(dataset, path) wrote"
        ),
    )
    if "reconstruction_error" in outputs:
        inputs.int(
            "num_masks",
            default=Settings.num_masks,
            label="Number of masks",
            description="Through how many masks an image is looked at",
        )

    ask_pooling(inputs, entry)
    inputs.bool(
        "normalize",
        default=Settings.normalize,
        label="Normalize",
        description="Scale each vector to length 1 (L2)",
    )
    _ask_choice(
        inputs,
        "dtype",
        [AUTO, *DTYPES],
        label="Type to compute in",
        description="auto is bfloat16 on CPUs with AVX512-BF16, else float32",
    )
    _ask_choice(
        inputs,
        "engine",
        [AUTO, *ENGINES],
        label="Engine",
        description="What runs the network; auto is OpenVINO on CPUs, if it is installed",
    )
    inputs.bool(
        "fast_decoding",
        default=Settings.fast_decoding,
        label="Fast decoding",
        description="Read large JPEGs several times faster, to pixels a grey level off",
    )
    _ask_choice(
        inputs,
        "stage",
        [*range(1, LAST_STAGE + 1)],
        default=LAST_STAGE,
        label="Stage",
        description="The stage whose tokens become the vector; 3 sees finer, 4 means more",
    )
    inputs.int(
        "image_size",
        label="Image size",
        description=(
            f"A multiple of {SIZE_STEP} up to {LARGEST_SIZE}; empty for that of the "
            "checkpoint"
        ),
    )
    inputs.bool(
        "squash",
        default=Settings.squash,
        label="Squash",
        description="Squash elongated images instead of cropping them",
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


def _ask_choice(
    inputs: types.Object,
    name: str,
    choices: list[Any],
    *,
    label: str,
    description: str,
    default: Any = AUTO,
) -> None:
    view = types.Dropdown()
    for choice in choices:
        view.add_choice(choice, label=str(choice))

    inputs.enum(
        name, choices, default=default, label=label, description=description, view=view
    )


def ask_pooling(inputs: types.Object, checkpoint: Checkpoint) -> types.Property:
    """Ask for the pooling, and say what each is.

    Args:
        inputs: the form
        checkpoint: the entry of the zoo, whose name may settle it
    """
    choices = types.RadioGroup()
    for name in checkpoint.poolings:
        choices.add_choice(name, label=name, description=_POOLING_NOTES[name])

    return inputs.enum(
        "pooling",
        choices.values(),
        default=checkpoint.poolings[0],
        label="Pooling",
        description="How the grid of tokens becomes one vector",
        view=choices,
    )


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
