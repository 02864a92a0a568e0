"""The input form of compute_hiera_embeddings and its validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.core.media as fom
from fiftyone.operators import types
from fiftyone.operators.executor import ValidationContext

from ..checkpoints import CHECKPOINTS, Checkpoint, get_checkpoint
from ..errors import OptionError
from ..indexes.options import check_brain_key
from ..runs.fiftyone_internals import dataset_of
from ..runs.patches_fields import check_patches_field, find_patches_fields
from ..runs.run_index import NO_FRAMES
from ..runs.views import is_generated
from .allowed_models import AllowedModels, read_allowed
from .compute_params import WHOLE, EmbeddingParams, parse_params
from .compute_plan import (
    EmbeddingPlan,
    field_prefix,
    get_settings,
    has_umap,
    make_plan,
    target_samples,
)
from .index_form import ask_index
from .local_weights import find_on_disk, zoo_folder
from .maps import METHODS, check_growth
from .widgets import check, check_named, error_form, mark_invalid
from .zoo_form import ask_pooling

_TITLE = "Compute Hiera embeddings"


def build_form(ctx: Any) -> types.Property:
    """Build the form and mark the invalid inputs.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`, whose parameters
            have the names of :class:`EmbeddingParams`

    Returns:
        the form, or an error if nothing can be embedded
    """
    allowed = read_allowed(ctx)
    reason = _unsupported_reason(ctx, allowed)
    if reason is not None:
        return error_form(reason, _TITLE)

    inputs = types.Object()
    params = parse_params(ctx)
    inputs.view_target(ctx, action_description="Embed", require_flat=True)
    samples = target_samples(ctx)
    if _ask_model(inputs, params, allowed) and _ask_patches(inputs, params, samples):
        plan = make_plan(params, samples)
        _ask_field(inputs, plan)
        _ask_brain(inputs, plan)
        _ask_options(inputs, plan)

    return types.Property(inputs, view=types.View(label=_TITLE))


def check_form(ctx: Any, operator: Any) -> None:
    """Check the parameters as FiftyOne does before it executes an operator.

    Pipelines and other operators execute it without.

    Args:
        ctx: see :func:`build_form`
        operator: the :class:`fiftyone.operators.operator.Operator`

    Raises:
        ValueError: if a parameter is not valid
    """
    errors = ValidationContext(ctx, build_form(ctx), operator).errors
    if errors:
        raise ValueError("; ".join(f"{error.path[1:]}: {error.reason}" for error in errors))


def _unsupported_reason(ctx: Any, allowed: AllowedModels) -> str | None:
    """Return why nothing can be embedded, or None if something can."""
    if ctx.dataset is None:
        return "Open a dataset first"

    if not allowed.checkpoints:
        return f"No Hiera model is allowed here: {allowed.restrictions}"

    if is_generated(ctx.view):
        return (
            "Cannot embed a view of patches, frames or clips. Return to the dataset; to "
            "embed patches, select their field in this form"
        )

    media_type = target_samples(ctx).media_type
    if media_type is None:
        return "This dataset has no samples"

    if media_type not in (fom.IMAGE, fom.VIDEO):
        return (
            f"Cannot embed media of type {media_type!r}, only images and videos. In a "
            "grouped dataset, select a slice of images or videos"
        )

    return None


def _ask_model(
    inputs: types.Object, params: EmbeddingParams, allowed: AllowedModels
) -> bool:
    """Ask for checkpoint and pooling; return whether they are valid."""
    choices = types.Dropdown()
    folder = zoo_folder()
    first_of = {c.file: c for c in reversed(allowed.checkpoints)}
    for checkpoint in allowed.checkpoints:
        if first_of[checkpoint.file] is checkpoint:
            choices.add_choice(checkpoint.name, label=_label(checkpoint, folder))

    if allowed.restrictions is not None:
        label = f"Models are restricted: {allowed.restrictions}"
        inputs.view("allowed", types.Notice(label=label))

    model = inputs.enum(
        "model_name",
        list(CHECKPOINTS),
        default=allowed.checkpoints[0].name,
        label="Checkpoint",
        view=choices,
    )
    check(model, lambda: allowed.check_checkpoint(get_checkpoint(params.model_name)))
    if model.invalid:
        return False

    checkpoint = get_checkpoint(params.model_name)
    license_text = f"These weights are licensed {checkpoint.license}"
    if "NC" in checkpoint.license:
        license_text += ": not for commercial use"

    inputs.view("license", types.Notice(label=license_text))
    pooling = ask_pooling(inputs, checkpoint)
    check(pooling, lambda: get_settings(params))
    return not pooling.invalid


def _ask_patches(inputs: types.Object, params: EmbeddingParams, samples: Any) -> bool:
    """Ask whether to embed patches; return whether the field is valid."""
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
        label="What to embed",
        view=choices,
    )
    check(prop, lambda: check_patches_field(samples, params.patches_field))
    return not prop.invalid


def _ask_field(inputs: types.Object, plan: EmbeddingPlan) -> None:
    """Ask for the field to store the embeddings in."""
    if plan.params.index_only:
        _ask_overwrite(inputs)
        return

    fields = types.AutocompleteView()
    for name in _embeddings_fields(plan):
        fields.add_choice(name, label=name)

    # Described, not set as a default: the App would keep a default when another checkpoint
    # or pooling changes it
    field = inputs.str(
        "embeddings_field",
        label="Embeddings field",
        description=(
            f"Empty for {plan.defaults['embeddings_field']!r}. {plan.unit.capitalize()} "
            "that already have an embedding there are skipped"
        ),
        view=fields,
    )
    _ask_overwrite(inputs)
    check(field, plan.check_field)


def _ask_overwrite(inputs: types.Object) -> None:
    inputs.bool(
        "overwrite",
        default=False,
        label="Overwrite",
        description="Recompute existing embeddings, and build their index anew",
        view=types.CheckboxView(),
    )


def _ask_brain(inputs: types.Object, plan: EmbeddingPlan) -> None:
    """Ask for the brain runs to compute."""
    wants_index = ask_index(inputs, plan)
    box = inputs.bool(
        "visualization",
        default=False,
        label="2-D map",
        description="Visualize the embeddings in the Embeddings panel",
        view=types.CheckboxView(),
    )
    if not plan.params.visualization:
        return

    if plan.samples.media_type == fom.VIDEO:
        mark_invalid(box, NO_FRAMES)
    elif plan.params.index_only:
        mark_invalid(box, "A map needs the embeddings on the samples, not in an index only")

    key = _ask_map_key(inputs, plan)
    if wants_index and plan.visualization_brain_key == plan.similarity_brain_key:
        mark_invalid(key, "The similarity index and the 2-D map need different brain keys")

    methods = types.RadioGroup()
    for name, label in METHODS.items():
        methods.add_choice(name, label=label)

    method = inputs.enum(
        "visualization_method",
        list(METHODS),
        default=plan.defaults["visualization_method"],
        label="Method",
        view=methods,
    )
    check(method, lambda: _check_method(plan.visualization_method))


def _ask_map_key(inputs: types.Object, plan: EmbeddingPlan) -> types.Property:
    prop = inputs.str(
        "visualization_brain_key",
        label="Brain key",
        description=(
            "A new name, or a map of the same embeddings to add new samples to; empty for "
            f"{plan.defaults['visualization_brain_key']!r}"
        ),
    )
    check(prop, lambda: _check_map_key(plan))
    return prop


def _check_map_key(plan: EmbeddingPlan) -> None:
    key = plan.visualization_brain_key
    check_brain_key(key)
    if key in dataset_of(plan.samples).list_brain_runs():
        check_growth(plan.samples, key, plan.map_source)


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise OptionError(
            "visualization_method", f"Invalid method {method!r}. Valid are {list(METHODS)}"
        )

    if method == "umap" and not has_umap():
        raise ValueError("Method 'umap' is not installed: pip install umap-learn")


def _ask_options(inputs: types.Object, plan: EmbeddingPlan) -> None:
    inputs.str(
        "failure_tag",
        required=False,
        label="Tag failures",
        description="Tag to add to samples that cannot be embedded; empty for none",
    )
    inputs.int(
        "batch_size",
        required=False,
        label="Batch size",
        description="Images per forward pass; empty for the default, 32",
    )
    inputs.int(
        "num_workers",
        required=False,
        label="Workers",
        description="Threads that read images; empty for one per core",
    )
    check_named(inputs, lambda: plan.options, "batch_size")


def _embeddings_fields(plan: EmbeddingPlan) -> list[str]:
    """Return the names of the existing vector fields that the run could write to."""
    dataset = dataset_of(plan.samples)
    prefix = field_prefix(plan.samples, plan.params.patches_field)
    schema = dataset.get_field_schema(ftype=fo.VectorField, flat=True)
    if prefix.startswith("frames."):
        frames = dataset.get_frame_field_schema(ftype=fo.VectorField, flat=True)
        schema = {f"frames.{name}": field for name, field in frames.items()}

    names = [path.removeprefix(prefix) for path in schema if path.startswith(prefix)]
    return sorted(name for name in names if "." not in name)


def _label(checkpoint: Checkpoint, folder: Path | None) -> str:
    size = f"{checkpoint.size_bytes / 1e6:,.0f} MB"
    where = (
        f"{size}, on disk" if find_on_disk(checkpoint, folder) else f"{size} to download"
    )
    return (
        f"{checkpoint.name}: {checkpoint.embedding_dim} dimensions, "
        f"{checkpoint.parameters / 1e6:.1f} M parameters, {where}"
    )
