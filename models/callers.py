"""Find out which function of FiftyOne calls a model, by the frames of the call."""

from __future__ import annotations

import inspect
import sys
from types import FrameType, ModuleType

import fiftyone.core.media as fomm
import fiftyone.core.models as fom

from ..runs.run_index import NO_FRAMES

# Imported by the methods of the brain that embed: until then, none of them runs
_BRAIN = "fiftyone.brain.internal.core.utils"


def is_in_apply_model() -> bool:
    """Return whether FiftyOne's ``apply_model()`` uses the model."""
    frame = _find_frame(fom, inspect.currentframe())
    return frame is not None and frame.f_code is fom.apply_model.__code__


def refuse_videos_in_brain() -> None:
    """Refuse to embed videos for a method of FiftyOne's brain.

    The brain would take the embeddings of all frames of a video for one, and fail or
    register an index that cannot be searched. It registers its run before it embeds:
    that is undone.

    Raises:
        ValueError: if a method of the brain embeds videos with the model
    """
    brain = sys.modules.get(_BRAIN)
    if brain is None:
        return

    embedding = _find_frame(fom, inspect.currentframe())
    request = _find_frame(brain, embedding)
    if embedding is None or request is None:
        return

    is_of_brain = request.f_code.co_name == "get_embeddings"
    if not is_of_brain or embedding.f_locals["samples"].media_type != fomm.VIDEO:
        return

    method = request.f_back
    names = {} if method is None else method.f_locals
    if "brain_method" in names and names["brain_key"] is not None:
        # Its clean-up would delete what was there before: this run has stored nothing
        names["brain_method"].delete_run(
            names["samples"], names["brain_key"], cleanup=False
        )

    raise ValueError(NO_FRAMES)


def _find_frame(module: ModuleType, frame: FrameType | None) -> FrameType | None:
    """Return the innermost call of a function of a module, from a frame outwards."""
    while frame is not None and frame.f_globals is not vars(module):
        frame = frame.f_back

    return frame
