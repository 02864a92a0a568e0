"""What FiftyOne's model zoo asks of this source: weights, then a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import HieraConfig

from .checkpoints import Checkpoint, get_checkpoint
from .config import AUTO, DTYPES, choose_output, parse_settings
from .hiera import abswin
from .hiera.autoencoder import load_autoencoder
from .hiera.encoder import load_encoder
from .hiera.head import load_classifier
from .hiera.hub import BundledFile, download, link, verify
from .hiera.imagenet import imagenet_classes
from .hiera.state_dict import architecture_name, class_names, read_metadata
from .hiera.user_checkpoint import LocalCheckpoint, open_checkpoint
from .models.classification import HieraClassifierModel
from .models.embedding import HieraEmbeddingModel
from .models.heatmap import HieraFeatureHeatmapModel
from .models.reconstruction import HieraAutoencoderModel
from .runs.provenance import Origin

_Parts = dict[str, Any]
"""The arguments of any :class:`HieraEmbeddingModel`."""

logger = logging.getLogger(__name__)


def download_weights(name: str, destination: Path) -> None:
    """Make the weights of an entry of the zoo appear at a path.

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
    """Load an entry of the zoo.

    Args:
        name: the name of the entry
        weights: the path of its weights; None takes them from the hub's
            cache, where they are downloaded to if necessary
        options: see :class:`fiftyone_hiera.config.Settings`

    Returns:
        a :class:`HieraEmbeddingModel`

    Raises:
        ValueError: if the name, an option or the weights are not valid
        DownloadError: if weights cannot be downloaded or verified
    """
    checkpoint = get_checkpoint(name)
    settings = parse_settings(checkpoint, options)

    picked = [
        f"{option} {getattr(settings, option)!r}"
        for option in ("dtype", "engine")
        if options.get(option, AUTO) == AUTO
    ]
    if picked:
        # A warning, so that it is seen: hosts rarely show what is merely informative
        logger.warning(
            "%s on %s: auto picked %s", name, settings.device, " and ".join(picked)
        )

    if settings.checkpoint is not None:
        local = open_checkpoint(settings.checkpoint)
        source = settings.checkpoint
    else:
        local = _pinned_checkpoint(checkpoint, weights)
        source = checkpoint.origin

    output = choose_output(settings, architecture_name(local.config))
    preprocessing = settings.apply(local.preprocessing)
    encoder = load_encoder(
        local.config,
        local.weights,
        preprocessing,
        engine=settings.engine,
        dtype=DTYPES[settings.dtype],
        device=torch.device(settings.device or "cpu"),
    )
    encoder.prepare(settings.stage)
    parts: _Parts = {
        "encoder": encoder,
        "preprocessing": preprocessing,
        "settings": settings,
        "origin": Origin(source, local.revision, local.weights),
    }
    return _MODELS[output](local, parts)


def _make_classifier(local: LocalCheckpoint, parts: _Parts) -> HieraEmbeddingModel:
    classifier = load_classifier(local.config, local.weights, parts["encoder"])
    return HieraClassifierModel(classifier, class_names(local.config), **parts)


def _make_autoencoder(local: LocalCheckpoint, parts: _Parts) -> HieraEmbeddingModel:
    autoencoder = load_autoencoder(
        local.config,
        local.weights,
        parts["preprocessing"],
        parts["settings"].num_masks,
        parts["encoder"].device,
    )
    return HieraAutoencoderModel(autoencoder, **parts)


def _make_heatmap_model(local: LocalCheckpoint, parts: _Parts) -> HieraEmbeddingModel:
    basis = parts["settings"].heatmap_basis
    return HieraFeatureHeatmapModel(Path(basis) if basis else None, **parts)


_MODELS: dict[str, Callable[[LocalCheckpoint, _Parts], HieraEmbeddingModel]] = {
    "embeddings": lambda local, parts: HieraEmbeddingModel(**parts),
    "classification": _make_classifier,
    "reconstruction_error": _make_autoencoder,
    "heatmap": _make_heatmap_model,
}
"""By what ``apply_model`` gives."""


def _pinned_checkpoint(checkpoint: Checkpoint, weights: Path | None) -> LocalCheckpoint:
    path = weights or _verified_weights(checkpoint, None)
    preprocessing = checkpoint.preprocessing
    if checkpoint.architecture == abswin.ARCHITECTURE:
        preprocessing = abswin.read_preprocessing(
            path, read_metadata(path), preprocessing.crop_size
        )

    return LocalCheckpoint(
        hiera_config(checkpoint), path, preprocessing, checkpoint.revision
    )


def _verified_weights(checkpoint: Checkpoint, destination: Path | None) -> Path:
    if isinstance(checkpoint.weights, BundledFile):
        return verify(checkpoint.weights)

    # A warning for the same reason
    logger.warning("The weights of %s are licensed %s", checkpoint.name, checkpoint.license)
    return download(checkpoint.weights, destination)


# The same in all of Meta's autoencoders
_DECODER = {
    "num_query_pool": 2,
    "decoder_depth": 8,
    "decoder_hidden_size": 512,
    "decoder_num_heads": 16,
    "mask_ratio": 0.6,
    "normalize_pixel_loss": True,
}


def hiera_config(checkpoint: Checkpoint) -> HieraConfig:
    """Return the transformers configuration of an entry of the zoo."""
    config = HieraConfig(
        architectures=[checkpoint.architecture],
        depths=checkpoint.depths,
        embed_dim=checkpoint.embed_dim,
        num_heads=checkpoint.num_heads,
        image_size=(checkpoint.image_size, checkpoint.image_size),
    )
    if checkpoint.architecture == "HieraForImageClassification":
        config.id2label = dict(enumerate(imagenet_classes()))
    elif checkpoint.architecture == "HieraForPreTraining":
        config.update(_DECODER)

    return config
