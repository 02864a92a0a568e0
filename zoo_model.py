"""Load the model of an entry of FiftyOne's zoo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import choose_output
from .embedding.loading import load_checkpoint
from .hiera.checkpoint_kinds import get_architecture
from .hiera.configuration import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .models.classification import (
    HieraClassifierModel,
    HieraMultiLabelModel,
    HieraRegressionModel,
)
from .models.embedding import HieraEmbeddingModel
from .models.heatmap import HieraAutoencoderModel, HieraFeatureHeatmapModel


def load(
    name: str, weights_path: Path | None, options: Mapping[str, Any]
) -> HieraEmbeddingModel:
    """Load the model of an entry; see :func:`fiftyone_hiera.load_model`."""
    embedder = load_checkpoint(name, weights_path, options)
    config = embedder.encoder.config
    output = choose_output(embedder.settings, get_architecture(config))
    is_classifier = output == "classification"
    model_class = _CLASSIFIERS[config.problem_type] if is_classifier else _MODELS[output]
    model = model_class(embedder)
    # Last, as it releases the weights that an engine copied
    stages = {embedder.settings.stage}
    if is_classifier:
        stages.add(config.num_stages)  # the head needs the last one

    embedder.encoder.prepare(*sorted(stages))
    return model


_CLASSIFIERS: dict[str, type[HieraClassifierModel]] = {
    SINGLE_LABEL: HieraClassifierModel,
    MULTI_LABEL: HieraMultiLabelModel,
    REGRESSION: HieraRegressionModel,
}
"""Models of a fine-tuned checkpoint, by what it was trained for."""

_MODELS: dict[str, type[HieraEmbeddingModel]] = {
    "embeddings": HieraEmbeddingModel,
    "reconstruction_error": HieraAutoencoderModel,
    "heatmap": HieraFeatureHeatmapModel,
}
"""Other models, by what ``apply_model`` computes."""
