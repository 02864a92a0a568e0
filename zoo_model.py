"""Load the model of an entry of FiftyOne's zoo."""

from __future__ import annotations

from collections.abc import Mapping
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
    model = _make_model(output, loaded)
    # Last, as it releases the weights that an engine copied
    stages = {embedder.settings.stage}
    if output == "classification":
        stages.add(loaded.config.num_stages)  # the head needs the last one

    embedder.encoder.prepare(*sorted(stages))
    return model


def _make_model(output: str, loaded: LoadedCheckpoint) -> HieraEmbeddingModel:
    """Make the model whose ``apply_model`` computes an output."""
    embedder = loaded.embedder
    settings = embedder.settings
    match output:
        case "classification":
            classifier = load_classifier(loaded.config, loaded.weights, embedder.encoder)
            model = _CLASSIFIERS[loaded.config.problem_type]
            return model(classifier, loaded.config.class_names, embedder)
        case "reconstruction_error":
            autoencoder = Autoencoder(
                loaded.config,
                loaded.weights,
                embedder.preprocessing,
                settings.num_masks,
                embedder.encoder.device,
            )
            return HieraAutoencoderModel(autoencoder, embedder)
        case "heatmap":
            basis = settings.heatmap_basis
            return HieraFeatureHeatmapModel(Path(basis) if basis else None, embedder)
        case _:
            return HieraEmbeddingModel(embedder)


_CLASSIFIERS: dict[str, type[HieraClassifierModel]] = {
    SINGLE_LABEL: HieraClassifierModel,
    MULTI_LABEL: HieraMultiLabelModel,
    REGRESSION: HieraRegressionModel,
}
"""Models of a fine-tuned checkpoint, by what it was trained for."""
