"""Load the model of an entry of FiftyOne's zoo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .config import choose_output
from .embedding.loading import LoadedCheckpoint, load_checkpoint
from .hiera.autoencoder import Autoencoder
from .hiera.checkpoint_kinds import get_architecture
from .hiera.classification_head import load_classifier
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
    loaded = load_checkpoint(name, weights_path, options)
    embedder = loaded.embedder
    output = choose_output(embedder.settings, get_architecture(loaded.config))
    model = _MODELS[output](loaded)
    # Last, as it releases the weights that an engine copied
    stages = {embedder.settings.stage}
    if output == "classification":
        stages.add(loaded.config.num_stages)  # the head needs the last one

    embedder.encoder.prepare(*sorted(stages))
    return model


def _make_classifier(loaded: LoadedCheckpoint) -> HieraEmbeddingModel:
    embedder = loaded.embedder
    classifier = load_classifier(loaded.weights, embedder.encoder)
    model = _CLASSIFIERS[loaded.config.problem_type]
    return model(classifier, loaded.config.class_names, embedder)


def _make_autoencoder(loaded: LoadedCheckpoint) -> HieraEmbeddingModel:
    embedder = loaded.embedder
    autoencoder = Autoencoder(
        loaded.config,
        loaded.weights,
        embedder.preprocessing,
        embedder.settings.num_masks,
        embedder.encoder.device,
    )
    return HieraAutoencoderModel(autoencoder, embedder)


def _make_heatmap_model(loaded: LoadedCheckpoint) -> HieraEmbeddingModel:
    basis = loaded.embedder.settings.heatmap_basis
    return HieraFeatureHeatmapModel(Path(basis) if basis else None, loaded.embedder)


_CLASSIFIERS: dict[str, type[HieraClassifierModel]] = {
    SINGLE_LABEL: HieraClassifierModel,
    MULTI_LABEL: HieraMultiLabelModel,
    REGRESSION: HieraRegressionModel,
}
"""Models of a fine-tuned checkpoint, by what it was trained for."""

_MODELS: dict[str, Callable[[LoadedCheckpoint], HieraEmbeddingModel]] = {
    "embeddings": lambda loaded: HieraEmbeddingModel(loaded.embedder),
    "classification": _make_classifier,
    "reconstruction_error": _make_autoencoder,
    "heatmap": _make_heatmap_model,
}
"""Builders of models, by what ``apply_model`` computes."""
