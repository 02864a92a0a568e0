"""Build the input form of compute_hiera_embeddings, and validate it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fiftyone as fo
import fiftyone.core.media as fom
import fiftyone.zoo as foz
from fiftyone.operators import types

from ..checkpoints import CHECKPOINTS, Checkpoint, get_checkpoint
from ..runs.patches_fields import check_patches_field, find_patches_fields
from ..runs.run_index import NO_FRAMES
from .compute_params import WHOLE
from .compute_plan import EmbeddingPlan, get_settings, make_plan
from .compute_request import ComputeRequest
from .index_form import ask_index
from .maps import METHODS
from .widgets import ask_box, ask_choice, check, check_named, mark_invalid
from .zoo_form import ask_pooling

TITLE = "Compute Hiera embeddings"


def build_form(request: ComputeRequest) -> tuple[types.Property, EmbeddingPlan | None]:
    """Build the form and mark the invalid inputs.

    Returns:
        the form, and the plan of the run; None if the model, the pooling or the patches
        field is not valid
    """
    inputs, plan = types.Object(), None
    inputs.add_property("view_target", request.view_target)
    if _ask_model(inputs, request) and _ask_patches(inputs, request):
        plan = make_plan(request)
        _ask_field(inputs, plan)
        ask_index(inputs, plan)
        _ask_map(inputs, plan)
        _ask_options(inputs, plan)

    return types.Property(inputs, view=types.View(label=TITLE)), plan


def check_form(
    request: ComputeRequest, find_errors: Callable[[types.Property], list[Any]]
) -> EmbeddingPlan:
    """Plan a run, and check the parameters as FiftyOne does before it executes an operator.

    Pipelines and other operators execute it without.

    Args:
        request: what is requested
        find_errors: returns FiftyOne's validation errors of a form

    Raises:
        ValueError: if a parameter is not valid
    """
    form, plan = build_form(request)
    errors = find_errors(form)
    if errors or plan is None:
        raise ValueError("; ".join(f"{error.path[1:]}: {error.reason}" for error in errors))

    return plan


def _ask_model(inputs: types.Object, request: ComputeRequest) -> bool:
    """Ask for checkpoint and pooling; return whether they are valid."""
    params, allowed = request.params, request.allowed
    if allowed.restrictions is not None:
        label = f"Models are restricted: {allowed.restrictions}"
        inputs.view("allowed", types.Notice(label=label))

    downloaded = foz.list_downloaded_zoo_models()
    first_of = {c.file: c for c in reversed(allowed.checkpoints)}
    model = ask_choice(
        inputs,
        "model_name",
        {
            checkpoint.name: _label(checkpoint, checkpoint.name in downloaded)
            for checkpoint in allowed.checkpoints
            if first_of[checkpoint.file] is checkpoint
        },
        values=[*CHECKPOINTS],
        default=allowed.checkpoints[0].name,
        label="Checkpoint",
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


def _ask_patches(inputs: types.Object, request: ComputeRequest) -> bool:
    """Ask whether to embed patches; return whether the field is valid."""
    samples, field = request.samples, request.params.patches_field
    names = find_patches_fields(samples)
    if not names and field is None:
        return True

    whole = "frames" if samples.media_type == fom.VIDEO else "images"
    labels = {WHOLE: f"Whole {whole}", **{name: f"Patches: {name}" for name in names}}
    patches = ask_choice(
        inputs, "patches_field", labels, default=WHOLE, label="What to embed"
    )
    check(patches, lambda: check_patches_field(samples, field))
    return not patches.invalid


def _ask_field(inputs: types.Object, plan: EmbeddingPlan) -> None:
    """Ask for the field to store the embeddings in, and whether to overwrite it."""
    if not plan.params.index_only:
        fields = types.AutocompleteView()
        for name in _embeddings_fields(plan):
            fields.add_choice(name, label=name)

        # Described, not set as a default: the App would keep a default when another
        # checkpoint or pooling changes it
        field = inputs.str(
            "embeddings_field",
            label="Embeddings field",
            description=(
                f"Empty for {plan.default_field!r}. {plan.unit.capitalize()} that already "
                "have an embedding there are skipped"
            ),
            view=fields,
        )
        check(field, plan.check_field)

    ask_box(
        inputs,
        "overwrite",
        "Overwrite",
        "Recompute existing embeddings, and build their index anew",
    )


def _ask_map(inputs: types.Object, plan: EmbeddingPlan) -> None:
    """Ask whether to compute a 2-D map, and which."""
    description = "Visualize the embeddings in the Embeddings panel"
    box = ask_box(inputs, "visualization", "2-D map", description)
    if not plan.params.visualization:
        return

    if plan.source.frames_prefix:
        mark_invalid(box, NO_FRAMES)
    elif plan.params.index_only:
        mark_invalid(box, "A map needs the embeddings on the samples, not in an index only")

    key = inputs.str(
        "visualization_brain_key",
        label="Brain key",
        description=(
            "A new name, or a map of the same embeddings to add new samples to; empty for "
            f"{plan.default_map_key!r}"
        ),
    )
    check(key, plan.check_map_key)
    if plan.params.similarity_index and plan.map_key == plan.index_key:
        mark_invalid(key, "The similarity index and the 2-D map need different brain keys")

    method = ask_choice(
        inputs,
        "visualization_method",
        METHODS,
        default=plan.default_method,
        label="Method",
        view=types.RadioGroup,
    )
    check(method, plan.check_method)


def _ask_options(inputs: types.Object, plan: EmbeddingPlan) -> None:
    inputs.str(
        "failure_tag",
        label="Tag failures",
        description="Tag to add to samples that cannot be embedded; empty for none",
    )
    inputs.int(
        "batch_size",
        label="Batch size",
        description="Images per forward pass; empty for the default, 32",
    )
    inputs.int(
        "num_workers",
        label="Workers",
        description="Threads that read images; empty for one per core",
    )
    check_named(inputs, lambda: plan.options, "batch_size")


def _embeddings_fields(plan: EmbeddingPlan) -> list[str]:
    """Return the names of the existing vector fields that the run could write to."""
    dataset, prefix = plan.source.dataset, plan.source.parts_prefix
    schema = dataset.get_field_schema(ftype=fo.VectorField, flat=True)
    if plan.source.frames_prefix:
        frames = dataset.get_frame_field_schema(ftype=fo.VectorField, flat=True)
        schema = {f"frames.{name}": field for name, field in frames.items()}

    names = [path.removeprefix(prefix) for path in schema if path.startswith(prefix)]
    return sorted(name for name in names if "." not in name)


def _label(checkpoint: Checkpoint, is_in_zoo: bool) -> str:
    where = ", on disk" if is_in_zoo or checkpoint.file.cached() else " to download"
    return (
        f"{checkpoint.name}: {checkpoint.embedding_dim} dimensions, "
        f"{checkpoint.parameters / 1e6:.1f} M parameters, "
        f"{checkpoint.size_bytes / 1e6:,.0f} MB{where}"
    )
