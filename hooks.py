"""What FiftyOne's model zoo asks of this source: weights, then a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import HieraConfig

from .config import AUTO, DTYPES, Checkpoint, get_checkpoint, parse_settings
from .field_records import Origin
from .hiera.checkpoint import LocalCheckpoint, open_checkpoint
from .hiera.encoder import load_encoder
from .hiera.weights import BundledFile, download, link, verify
from .zoo_model import HieraEmbeddingModel

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

    preprocessing = settings.apply(local.preprocessing)
    encoder = load_encoder(
        local.config,
        local.weights,
        preprocessing,
        engine=settings.engine,
        dtype=DTYPES[settings.dtype],
        device=torch.device(settings.device or "cpu"),
    )
    origin = Origin(source, local.revision, local.weights)
    return HieraEmbeddingModel(encoder, preprocessing, settings, origin)


def _pinned_checkpoint(checkpoint: Checkpoint, weights: Path | None) -> LocalCheckpoint:
    return LocalCheckpoint(
        _hiera_config(checkpoint),
        weights or _verified_weights(checkpoint, None),
        checkpoint.preprocessing,
        checkpoint.revision,
    )


def _verified_weights(checkpoint: Checkpoint, destination: Path | None) -> Path:
    if isinstance(checkpoint.weights, BundledFile):
        return verify(checkpoint.weights)

    # A warning for the same reason
    logger.warning("The weights of %s are licensed %s", checkpoint.name, checkpoint.license)
    return download(checkpoint.weights, destination)


def _hiera_config(checkpoint: Checkpoint) -> HieraConfig:
    return HieraConfig(
        depths=checkpoint.depths,
        embed_dim=checkpoint.embed_dim,
        num_heads=checkpoint.num_heads,
        image_size=(checkpoint.image_size, checkpoint.image_size),
    )
