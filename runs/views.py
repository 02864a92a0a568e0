"""Tell which views are copies, can be paged, or change what is embedded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import fiftyone as fo
from fiftyone.core.clips import ClipsView
from fiftyone.core.patches import EvaluationPatchesView, PatchesView
from fiftyone.core.video import FramesView

from .fiftyone_internals import dataset_of, stages_of

# Stages that decide about each sample without the others. A limit, for instance, would
# begin anew on each page; lists of IDs would be sent with each
_KEEP_ALL_OF_EACH = {
    "ExcludeFields",
    "Exists",
    "MapLabels",
    "Match",
    "MatchLabels",
    "MatchTags",
    "SelectFields",
}
_KEEP_SOME_OF_EACH = {
    "ExcludeLabels",
    "FilterLabels",
    "LimitLabels",
    "MatchFrames",
    "SelectLabels",
}
_EDIT_EACH = {"FilterField", "FilterKeypoints", "MapValues", "SetField"}
_PER_SAMPLE = _KEEP_ALL_OF_EACH | _KEEP_SOME_OF_EACH | _EDIT_EACH
_FIRST = {"SelectGroupSlices"}  # elsewhere they turn samples into others of their groups

# Stages that keep what is embedded of the samples that they keep
_KEEP_ALL = _KEEP_ALL_OF_EACH | {
    "Exclude",
    "ExcludeBy",
    "ExcludeGroupSlices",
    "ExcludeGroups",
    "Flatten",
    "GeoNear",
    "GeoWithin",
    "GroupBy",
    "Limit",
    "Select",
    "SelectBy",
    "SelectGroupSlices",
    "SelectGroups",
    "Shuffle",
    "Skip",
    "SortBy",
    "SortBySimilarity",
    "Take",
}

# Stages that leave out some frames or labels, and keep the others as they are
_KEEP_SOME = _KEEP_SOME_OF_EACH | {"ExcludeFrames", "SelectFrames"}

_PATCHES = (PatchesView, EvaluationPatchesView)


def is_generated(samples: Any) -> bool:
    """Return whether samples are copies: a view of patches, frames or clips of others."""
    return isinstance(samples, (*_PATCHES, FramesView, ClipsView))


def is_patches(samples: Any) -> bool:
    """Return whether samples are a view of patches."""
    return isinstance(samples, _PATCHES)


def can_be_paged(samples: Any) -> bool:
    """Return whether each page of a dataset or view can be read by itself."""
    names = [type(stage).__name__ for stage in stages_of(samples)]
    rest = names[1:] if names and names[0] in _FIRST else names
    return _PER_SAMPLE.issuperset(rest)


def add_stages(view: Any, samples: Any) -> Any:
    """Add the stages of a dataset or view that can be paged to a view of some samples."""
    for stage in stages_of(samples):
        if type(stage).__name__ not in _FIRST:
            view = view.add_stage(stage)

    return view


def changes(samples: Any, paths: Sequence[str]) -> bool:
    """Return whether samples may show other values of some paths than those stored."""
    keeping = _KEEP_ALL | _KEEP_SOME
    return any(_may_change(stage, samples, paths, keeping) for stage in stages_of(samples))


def check_groups(samples: Any, paths: Sequence[str]) -> None:
    """Check that flattening the dynamic groups of a view loses nothing that it shows.

    FiftyOne flattens them to the samples from before ``group_by()``.

    Raises:
        ValueError: if a later stage may change what is embedded, or leave some of it out
    """
    stages = stages_of(samples)
    last = max(i for i, stage in enumerate(stages) if stage.outputs_dynamic_groups)
    for stage in stages[last:]:
        if _may_change(stage, samples, paths, _KEEP_ALL):
            raise ValueError(
                f"The stage {stage} changes the samples that group_by() shows of each "
                "group, and not the others: put it before group_by()"
            )


def check_videos(samples: Any) -> None:
    """Check that a view of videos shows the files whose frames are counted.

    Raises:
        ValueError: if a stage changes their paths
    """
    for stage in stages_of(samples):
        if _overlap(_paths(stage.get_edited_fields, samples), ["filepath"]):
            raise ValueError(
                f"The stage {stage} changes the paths of videos, but the frames are those "
                "of the stored files: make a dataset of the other files"
            )


def hides_fields(samples: Any) -> bool:
    """Return whether samples are a view that selects or excludes fields."""
    hiding = fo.SelectFields | fo.ExcludeFields
    return any(isinstance(stage, hiding) for stage in stages_of(samples))


def unhide_field(samples: Any, path: str) -> Any:
    """Return samples that show a field which a view of theirs may hide.

    A field that does not exist yet will be shown, too.
    """
    if not hides_fields(samples):
        return samples

    siblings = path.rpartition(".")[0] + "." if "." in path else ""
    view = dataset_of(samples).view()
    for stage in stages_of(samples):
        if isinstance(stage, fo.ExcludeFields):
            names = [
                name for name in _paths(stage.get_excluded_fields, view) if name != path
            ]
            stage = fo.ExcludeFields(names, _allow_missing=True)
        elif isinstance(stage, fo.SelectFields):
            selected = _paths(stage.get_selected_fields, view)
            # A field that is selected as a whole shows all that is in it
            if any(name.startswith(siblings) for name in selected):
                names = [*(stage.field_names or []), path]
                stage = fo.SelectFields(names, stage.meta_filter, _allow_missing=True)

        view = view.add_stage(stage)

    return view


def _may_change(
    stage: Any, samples: Any, paths: Sequence[str], keeping: Collection[str]
) -> bool:
    if type(stage).__name__ in keeping and not getattr(stage, "stages", None):
        return False  # the stages are those of flatten(), which may be any

    edited = _paths(stage.get_edited_fields, samples)
    # mongo(), concat() and others may edit all
    return not edited or _overlap(edited, paths)


def _paths(get_fields: Callable[..., Any], samples: Any) -> list[str]:
    """Return what a method of a stage says about the fields of samples and frames."""
    of_frames = get_fields(samples, frames=True) or []
    names = [*(get_fields(samples) or []), *(f"frames.{name}" for name in of_frames)]
    return [name.replace("[]", "") for name in names]


def _overlap(some: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether a path is in another one, or the same."""
    return any(
        f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
        for one in some
        for other in others
    )
