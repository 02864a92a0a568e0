"""FiftyOne's brain on the vectors of a field: an index and a map."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import fiftyone.brain as fob
import fiftyone.zoo as foz

from ..checkpoints import CHECKPOINTS, Checkpoint
from ..config import Settings
from .compute_plan import EmbeddingPlan


def build_index(plan: EmbeddingPlan) -> None:
    """Build the similarity index.

    Args:
        plan: the plan, whose vectors are stored
    """
    with _removed_if_it_fails(plan, plan.similarity_brain_key):
        index = fob.compute_similarity(
            plan.samples,
            patches_field=plan.patches_field,
            embeddings=plan.embeddings_field,
            brain_key=plan.similarity_brain_key,
            progress=False,
        )
        name = _find_entry(plan.checkpoint, plan.settings)
        if name is not None and name in foz.list_zoo_models():
            index.config.model = name
            index.save_config()


def draw_map(plan: EmbeddingPlan) -> None:
    """Draw the 2-D map.

    Args:
        plan: the plan, whose vectors are stored
    """
    with _removed_if_it_fails(plan, plan.visualization_brain_key):
        fob.compute_visualization(
            plan.samples,
            patches_field=plan.patches_field,
            embeddings=plan.embeddings_field,
            brain_key=plan.visualization_brain_key,
            method=plan.visualization_method,
            progress=False,
        )


@contextlib.contextmanager
def _removed_if_it_fails(plan: EmbeddingPlan, brain_key: str) -> Iterator[None]:
    # FiftyOne registers a run before it computes anything
    try:
        yield
    except BaseException:
        dataset = plan.samples._dataset
        if brain_key in dataset.list_brain_runs():
            dataset.delete_brain_run(brain_key)

        raise


def _find_entry(checkpoint: Checkpoint, settings: Settings) -> str | None:
    # FiftyOne's own search by an uploaded image loads an index's model by its name
    # alone. Where no name says the pooling, an index without a model makes FiftyOne
    # refuse, rather than embed the image in another way than the dataset
    for entry in CHECKPOINTS.values():
        is_default = settings.pooling == entry.poolings[0]
        if entry.weights == checkpoint.weights and is_default:
            return entry.name

    return None
