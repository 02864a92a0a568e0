"""From an entry of FiftyOne's model zoo and its options to verified weights to a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .checkpoints import Checkpoint, get_checkpoint
from .config import AUTO, DTYPES, Settings, choose_output, parse_settings
from .hiera.autoencoder import load_autoencoder
from .hiera.checkpoint_kinds import class_names, get_architecture
from .hiera.classification_head import load_classifier
from .hiera.encoder import Encoder, load_encoder
from .hiera.hub import BundledFile, download, link, verify
from .hiera.user_checkpoint import LocalCheckpoint, open_checkpoint
from .models.classification import HieraClassifierModel
from .models.embedding import HieraEmbeddingModel, ModelParts
from .models.heatmap import HieraFeatureHeatmapModel
from .models.reconstruction import HieraAutoencoderModel
from .runs.provenance import Origin

__all__ = ["HieraEmbeddingModel", "download_weights", "load"]

logger = logging.getLogger(__name__)


def download_weights(name: str, destination: Path) -> None:
    """Download and verify the weights of an entry, and link them to a path.

    Args:
        name: the name of the entry
        destination: the path

    Raises:
        DownloadError: if they cannot be downloaded or verified
    """
    checkpoint = get_checkpoint(name)
    link(_verified_weights(checkpoint, destination), destination)


def load(
    name: str, weights: Path | None, options: Mapping[str, Any]
) -> HieraEmbeddingModel:
    """Load the model of an entry.

    Args:
        name: the name of the entry
        weights: the path of its weights; None takes them from the hub's cache, and
            downloads them if they are not there
        options: see :class:`fiftyone_hiera.config.Settings`

    Returns:
        a :class:`HieraEmbeddingModel`

    Raises:
        ValueError: if the name, an option or the weights are not valid
        DownloadError: if weights cannot be downloaded or verified
    """
    checkpoint = get_checkpoint(name)
    settings = parse_settings(checkpoint, options)
    _log_choices(name, settings, options)
    if settings.checkpoint is not None:
        local, source = open_checkpoint(settings.checkpoint), settings.checkpoint
    else:
        local, source = _open_entry(checkpoint, weights), checkpoint.origin

    output = choose_output(settings, get_architecture(local.config))
    preprocessing = settings.apply(local.preprocessing)
    encoder = load_encoder(
        local.config,
        local.weights,
        preprocessing,
        engine=settings.engine,
        dtype=DTYPES[settings.dtype],
        device=torch.device(settings.device or "cpu"),
    )
    encoder.prepare(*_stages(output, settings, encoder))
    parts: ModelParts = {
        "encoder": encoder,
        "preprocessing": preprocessing,
        "settings": settings,
        "origin": Origin(source, local.revision, local.weights),
    }
    return _MODELS[output](local, parts)


def _log_choices(name: str, settings: Settings, options: Mapping[str, Any]) -> None:
    chosen = [
        f"{option} {getattr(settings, option)!r}"
        for option in ("dtype", "engine")
        if options.get(option, AUTO) == AUTO
    ]
    if chosen:
        # A warning, since hosts rarely show less
        logger.warning(
            "%s on %s: auto picked %s", name, settings.device, " and ".join(chosen)
        )


def _open_entry(checkpoint: Checkpoint, weights: Path | None) -> LocalCheckpoint:
    path = weights or _verified_weights(checkpoint, None)
    preprocessing = checkpoint.preprocessing
    read_preprocessing = checkpoint.architecture.read_preprocessing
    if read_preprocessing is not None:
        preprocessing = read_preprocessing(path, preprocessing.crop_size)

    return LocalCheckpoint(checkpoint.config, path, preprocessing, checkpoint.revision)


def _verified_weights(checkpoint: Checkpoint, destination: Path | None) -> Path:
    if isinstance(checkpoint.weights, BundledFile):
        return verify(checkpoint.weights)

    # A warning, for the same reason
    logger.warning("The weights of %s are licensed %s", checkpoint.name, checkpoint.license)
    return download(checkpoint.weights, destination)


def _stages(output: str, settings: Settings, encoder: Encoder) -> list[int]:
    """Return the stages that a model computes: a classifier's head needs the last."""
    last = [len(encoder.stages)] if output == "classification" else []
    return sorted({settings.stage, *last})


def _make_classifier(local: LocalCheckpoint, parts: ModelParts) -> HieraEmbeddingModel:
    classifier = load_classifier(local.config, local.weights, parts["encoder"])
    return HieraClassifierModel(classifier, class_names(local.config), **parts)


def _make_autoencoder(local: LocalCheckpoint, parts: ModelParts) -> HieraEmbeddingModel:
    autoencoder = load_autoencoder(
        local.config,
        local.weights,
        parts["preprocessing"],
        parts["settings"].num_masks,
        parts["encoder"].device,
    )
    return HieraAutoencoderModel(autoencoder, **parts)


def _make_heatmap_model(local: LocalCheckpoint, parts: ModelParts) -> HieraEmbeddingModel:
    basis = parts["settings"].heatmap_basis
    return HieraFeatureHeatmapModel(Path(basis) if basis else None, **parts)


_MODELS: dict[str, Callable[[LocalCheckpoint, ModelParts], HieraEmbeddingModel]] = {
    "embeddings": lambda local, parts: HieraEmbeddingModel(**parts),
    "classification": _make_classifier,
    "reconstruction_error": _make_autoencoder,
    "heatmap": _make_heatmap_model,
}
"""Builders of models, by what ``apply_model`` computes."""
