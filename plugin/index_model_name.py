"""The model that FiftyOne itself may use to search a similarity index."""

from __future__ import annotations

import fiftyone.zoo as foz
from fiftyone.core.brain import BrainMethod

from ..checkpoints import CHECKPOINTS
from ..runs.fiftyone_internals import dataset_of
from .compute_plan import EmbeddingPlan


def name_model(plan: EmbeddingPlan) -> None:
    """Record in an index the name of the zoo model that computes its embeddings.

    Args:
        plan: the plan, whose index is there
    """
    name = _find_entry(plan)
    if name is not None and name in foz.list_zoo_models():
        dataset = dataset_of(plan.samples)
        info = dataset.get_brain_info(plan.similarity_brain_key)
        if info.config.model != name:
            info.config.model = name
            BrainMethod.update_run_config(dataset, plan.similarity_brain_key, info.config)


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
