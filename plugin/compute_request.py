"""What compute_hiera_embeddings is given: its parameters, and the samples to embed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fiftyone.core.media as fom
from fiftyone.operators import types

from ..runs.fiftyone_internals import flatten_dynamic_groups
from ..runs.target import Target
from ..runs.views import is_generated
from .allowed_models import AllowedModels, read_allowed
from .compute_params import EmbeddingParams, parse_params


@dataclass(frozen=True)
class ComputeRequest:
    """What the App, or a caller, gives to compute_hiera_embeddings.

    Args:
        params: the parameters
        samples: the samples to embed, a
            :class:`fiftyone.core.collections.SampleCollection`; for grouped datasets,
            those of the active slice; for dynamic groups, those in them
        view_target: the input of the form that chooses the samples
        allowed: the models that may be used
        find_secret: returns the value of a secret of the plugin by its name, or None
    """

    params: EmbeddingParams
    samples: Any
    view_target: types.Property
    allowed: AllowedModels
    find_secret: Callable[[str], str | None]


def read_request(ctx: Any) -> ComputeRequest:
    """Read what to embed, and how.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`, whose parameters
            have the names of :class:`EmbeddingParams`

    Raises:
        ValueError: if nothing can be embedded
    """
    if ctx.dataset is None:
        raise ValueError("Open a dataset first")

    allowed = read_allowed(ctx)
    if not allowed.checkpoints:
        raise ValueError(f"No Hiera model is allowed here: {allowed.restrictions}")

    if is_generated(ctx.view):
        raise ValueError(
            "Cannot embed a view of patches, frames or clips. Return to the dataset; to "
            "embed patches, select their field in this form"
        )

    samples = _find_samples(ctx)
    _check_media(samples)
    target = types.Object().view_target(ctx, action_description="Embed", require_flat=True)
    return ComputeRequest(
        params=parse_params(ctx.params, allowed.checkpoints[0].name),
        samples=samples,
        view_target=target,
        allowed=allowed,
        find_secret=lambda name: ctx.secret(name) if name in ctx.secrets else None,
    )


def _find_samples(ctx: Any) -> Any:
    """Find the samples that the user chose to embed."""
    is_chosen = "view_target" in {**ctx.params, **ctx.request_params}
    if ctx.selected and not is_chosen:  # from Python; the App's form has this default
        samples = flatten_dynamic_groups(ctx.view).select(ctx.selected)
    else:
        samples = flatten_dynamic_groups(ctx.target_view())

    if samples.media_type == fom.GROUP and samples.group_slice is not None:
        return samples.select_group_slices(samples.group_slice)

    return samples


def _check_media(samples: Any) -> None:
    media_type = samples.media_type
    if media_type is None:
        raise ValueError("This dataset has no samples")

    if media_type not in (fom.IMAGE, fom.VIDEO):
        raise ValueError(
            f"Cannot embed media of type {media_type!r}, only images and videos. In a "
            "grouped dataset, select a slice of images or videos"
        )

    Target(samples, None)  # raises an error if the view changes what is embedded
