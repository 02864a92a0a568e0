"""The form of compute_hiera_embeddings: what is asked, and what is wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.core.media as fom
from fiftyone.operators import types

from ..checkpoints import CHECKPOINTS, Checkpoint, get_checkpoint
from .compute_params import WHOLE, EmbeddingParams, parse_params
from .compute_plan import (
    METHODS,
    EmbeddingPlan,
    check_brain_key,
    check_method,
    check_patches_field,
    default_method,
    find_obstacle,
    find_patches_fields,
    get_settings,
    make_plan,
    target_samples,
    vectors_prefix,
)
from .local_weights import is_on_disk, zoo_folder
from .widgets import check, mark_invalid, show_obstacle
from .zoo_form import ask_pooling

_TITLE = "Compute Hiera embeddings"
_NO_FRAMES = (
    "FiftyOne's brain takes frames only as samples of their own: embed the videos first, "
    "then use the brain on dataset.to_frames()"
)


def build_form(ctx: Any) -> types.Property:
    """Build the form, with what is wrong marked.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`

    Returns:
        the form, or a message if there is nothing to embed
    """
    obstacle = find_obstacle(ctx)
    if obstacle is not None:
        return show_obstacle(obstacle, _TITLE)

    inputs = types.Object()
    params = parse_params(ctx.params)
    inputs.view_target(ctx, action_description="Embed", require_flat=True)
    samples = target_samples(ctx)
    if _ask_model(inputs, params) and _ask_patches(inputs, params, samples):
        plan = make_plan(params, samples)
        # Not defaults: the App would not follow when checkpoint or pooling change
        unnamed = replace(
            params,
            embeddings_field=None,
            similarity_brain_key=None,
            visualization_brain_key=None,
        )
        proposed = make_plan(unnamed, samples)
        _ask_field(inputs, params, plan, proposed)
        _ask_brain(inputs, params, plan, proposed)
        _ask_how(inputs)

    return types.Property(inputs, view=types.View(label=_TITLE))


def _ask_model(inputs: types.Object, params: EmbeddingParams) -> bool:
    """Ask for checkpoint and pooling; return whether they are valid."""
    choices = types.Dropdown()
    folder = zoo_folder()
    for checkpoint in CHECKPOINTS.values():
        if checkpoint.pooling is None:  # the others are the same weights
            choices.add_choice(checkpoint.name, label=_label(checkpoint, folder))

    model = inputs.enum(
        "model_name",
        list(CHECKPOINTS),
        default=next(iter(CHECKPOINTS)),
        label="Checkpoint",
        view=choices,
    )
    name = params.model_name or model.default
    check(model, lambda: get_checkpoint(name))
    if model.invalid:
        return False

    checkpoint = get_checkpoint(name)
    license_text = f"These weights are licensed {checkpoint.license}"
    if "NC" in checkpoint.license:
        license_text += ": not for commercial use"

    inputs.view("license", types.Notice(label=license_text))
    pooling = ask_pooling(inputs, checkpoint)
    check(pooling, lambda: get_settings(params))
    return not pooling.invalid


def _ask_patches(inputs: types.Object, params: EmbeddingParams, samples: Any) -> bool:
    """Ask whether patches are embedded; return whether that is valid."""
    names = find_patches_fields(samples)
    if not names and params.patches_field is None:
        return True

    whole = "frames" if samples.media_type == fom.VIDEO else "images"
    choices = types.Dropdown()
    choices.add_choice(WHOLE, label=f"Whole {whole}")
    for name in names:
        choices.add_choice(name, label=f"Patches: {name}")

    prop = inputs.enum(
        "patches_field",
        choices.values(),
        default=WHOLE,
        label="What is embedded",
        view=choices,
    )
    check(prop, lambda: check_patches_field(samples, params.patches_field))
    return not prop.invalid


def _ask_field(
    inputs: types.Object,
    params: EmbeddingParams,
    plan: EmbeddingPlan,
    proposed: EmbeddingPlan,
) -> None:
    """Ask which field the vectors go to."""
    fields = types.AutocompleteView()
    for name in _vector_fields(plan):
        fields.add_choice(name, label=name)

    field = inputs.str(
        "embeddings_field",
        label="Field",
        description=(
            f"Empty for {proposed.embeddings_field!r}. What has a vector there already is "
            "skipped"
        ),
        view=fields,
    )
    inputs.bool(
        "overwrite",
        default=False,
        label="Overwrite",
        description="Embed again what has a vector already",
        view=types.CheckboxView(),
    )
    check(field, lambda: plan.check_field(overwrite=params.overwrite))


def _ask_how(inputs: types.Object) -> None:
    inputs.str(
        "failure_tag",
        required=False,
        label="Tag failures",
        description="A tag for the samples that cannot be read; empty for none",
    )
    inputs.int(
        "batch_size",
        required=False,
        min=1,
        label="Batch size",
        description="Images in a forward pass; empty for the default, 32",
    )
    inputs.int(
        "num_workers",
        required=False,
        min=0,
        label="Workers",
        description="Threads that read images; empty for one per core",
    )


def _ask_brain(
    inputs: types.Object,
    params: EmbeddingParams,
    plan: EmbeddingPlan,
    proposed: EmbeddingPlan,
) -> None:
    """Ask whether to index the vectors and to draw their map."""
    index = inputs.bool(
        "similarity_index",
        default=False,
        label="Similarity index",
        description="Sort by similarity to any image; find duplicates and outliers",
        view=types.CheckboxView(),
    )
    if params.similarity_index:
        _ask_brain_key(inputs, "similarity_brain_key", plan, proposed)

    drawing = inputs.bool(
        "visualization",
        default=False,
        label="2-D map",
        description="See the dataset in the Embeddings panel",
        view=types.CheckboxView(),
    )
    if params.visualization:
        prop = _ask_brain_key(inputs, "visualization_brain_key", plan, proposed)
        is_same = plan.visualization_brain_key == plan.similarity_brain_key
        if params.similarity_index and is_same:
            mark_invalid(prop, "Both need a brain key of their own")

        methods = types.RadioGroup()
        for name, label in METHODS.items():
            methods.add_choice(name, label=label)

        method = inputs.enum(
            "visualization_method",
            list(METHODS),
            default=default_method(),
            label="Method",
            view=methods,
        )
        check(method, lambda: check_method(plan.visualization_method))

    if plan.samples.media_type == fom.VIDEO:
        for prop, is_wanted in (
            (index, params.similarity_index),
            (drawing, params.visualization),
        ):
            if is_wanted:
                mark_invalid(prop, _NO_FRAMES)


def _ask_brain_key(
    inputs: types.Object, name: str, plan: EmbeddingPlan, proposed: EmbeddingPlan
) -> types.Property:
    prop = inputs.str(
        name,
        label="Brain key",
        description=f"A new name; empty for {getattr(proposed, name)!r}",
    )
    taken = plan.samples._dataset.list_brain_runs()
    check(prop, lambda: check_brain_key(getattr(plan, name), taken))
    return prop


def _vector_fields(plan: EmbeddingPlan) -> list[str]:
    """Return the names of the vector fields that the run could go on with."""
    dataset = plan.samples._dataset
    prefix = vectors_prefix(plan.samples, plan.patches_field)
    schema = dataset.get_field_schema(ftype=fo.VectorField, flat=True)
    if prefix.startswith("frames."):
        frames = dataset.get_frame_field_schema(ftype=fo.VectorField, flat=True)
        schema = {f"frames.{name}": field for name, field in frames.items()}

    names = [path.removeprefix(prefix) for path in schema if path.startswith(prefix)]
    return sorted(name for name in names if "." not in name)


def _label(checkpoint: Checkpoint, folder: Path | None) -> str:
    size = f"{checkpoint.size_bytes / 1e6:,.0f} MB"
    where = f"{size}, on disk" if is_on_disk(checkpoint, folder) else f"{size} to download"
    return (
        f"{checkpoint.name}: {checkpoint.embedding_dim} dimensions, "
        f"{checkpoint.parameters / 1e6:.1f} M parameters, {where}"
    )
