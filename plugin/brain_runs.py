"""Brain runs on stored embeddings: a similarity index and a visualization."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import fiftyone.brain as fob
import fiftyone.zoo as foz

from ..checkpoints import CHECKPOINTS
from ..runs.fiftyone_internals import dataset_of
from .compute_plan import EmbeddingPlan


def compute_similarity(plan: EmbeddingPlan) -> None:
    """Compute the similarity index.

    Args:
        plan: the plan, whose embeddings are stored
    """
    with _deleted_on_error(plan, plan.similarity_brain_key):
        index = fob.compute_similarity(
            plan.samples,
            patches_field=plan.params.patches_field,
            embeddings=plan.embeddings_field,
            brain_key=plan.similarity_brain_key,
            progress=False,
        )
        name = _find_entry(plan)
        if name is not None and name in foz.list_zoo_models():
            index.config.model = name
            index.save_config()


def compute_visualization(plan: EmbeddingPlan) -> None:
    """Compute the 2-D visualization.

    Args:
        plan: the plan, whose embeddings are stored
    """
    with _deleted_on_error(plan, plan.visualization_brain_key):
        fob.compute_visualization(
            plan.samples,
            patches_field=plan.params.patches_field,
            embeddings=plan.embeddings_field,
            brain_key=plan.visualization_brain_key,
            method=plan.visualization_method,
            progress=False,
        )


@contextlib.contextmanager
def _deleted_on_error(plan: EmbeddingPlan, brain_key: str) -> Iterator[None]:
    # FiftyOne registers a brain run before it computes anything
    try:
        yield
    except BaseException:
        dataset = dataset_of(plan.samples)
        if brain_key in dataset.list_brain_runs():
            dataset.delete_brain_run(brain_key)

        raise


def _find_entry(plan: EmbeddingPlan) -> str | None:
    """Return the zoo entry whose default pooling is the plan's, if there is one.

    FiftyOne's own search by an uploaded image loads the model of an index by its name
    alone. If no name stands for the pooling, the index has no model, so that FiftyOne
    refuses the search instead of comparing embeddings of different poolings.
    """
    for entry in CHECKPOINTS.values():
        is_default = plan.settings.pooling == entry.poolings[0]
        if entry.weights == plan.checkpoint.weights and is_default:
            return entry.name

    return None
