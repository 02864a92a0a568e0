"""From an entry of the zoo and its options to verified weights in an encoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import Checkpoint, get_checkpoint
from ..config import AUTO, DTYPES, Settings, fit_settings, parse_settings
from ..errors import OptionError
from ..hiera.checkpoint_kinds import expected_shapes, get_architecture
from ..hiera.encoder import Encoder
from ..hiera.hub import link, sha256
from ..hiera.user_checkpoint import LocalCheckpoint, open_checkpoint
from ..hiera.weights_file import MisfitError, WeightsFile
from .embedder import Embedder
from .provenance import provenance_of

# A child of FiftyOne's own logger, whose handler and level apply to it
logger = logging.getLogger("fiftyone.hiera")


def download_weights(name: str, destination: Path) -> None:
    """Download and verify the weights of an entry, and link them to a path.

    Args:
        name: the name of the entry
        destination: the path

    Raises:
        DownloadError: if they cannot be downloaded or verified
    """
    checkpoint = get_checkpoint(name)
    path = _fetch(checkpoint, destination)
    checkpoint.file.verify(path, sha256(path))
    link(path.resolve(), destination)


def load_checkpoint(name: str, path: Path | None, options: Mapping[str, Any]) -> Embedder:
    """Load the checkpoint of an entry.

    Args:
        name: the name of the entry
        path: the path of its weights; None takes them from the hub's cache, and
            downloads them if they are not there
        options: see :class:`fiftyone_hiera.config.Settings`

    Returns:
        an embedder, whose network is built when it is needed

    Raises:
        ValueError: if the name, an option or the weights are not valid
        DownloadError: if weights cannot be downloaded or verified
    """
    checkpoint = get_checkpoint(name)
    settings = parse_settings(checkpoint, options)
    _log_choices(name, settings, options)
    optional = None
    if settings.checkpoint is not None:
        local, source = open_checkpoint(settings.checkpoint), settings.checkpoint
        settings = fit_settings(settings, options, local.config.num_stages)
        optional = get_architecture(local.config).optional
    else:
        local, source = _open_entry(checkpoint, path), checkpoint.file.origin

    preprocessing = settings.apply(local.preprocessing)
    local.config.at_size(preprocessing.crop_size)  # refuses it before weights are read
    shapes = expected_shapes(local.config)
    try:
        weights = WeightsFile(local.path, shapes, local.verify, optional)
    except MisfitError as error:
        if settings.checkpoint is None:
            raise

        raise MisfitError(
            f"{error}. The expected tensors follow from config.json; those of the "
            "classifier from id2label or num_labels"
        ) from None

    encoder = Encoder(
        local.config,
        weights,
        preprocessing,
        engine=settings.engine,
        dtype=DTYPES[settings.dtype],
        device=torch.device(settings.device or "cpu"),
    )
    if settings.pooling == "pooler" and encoder.norm is None:
        raise OptionError(
            "pooling",
            f"Invalid pooling: 'pooler'. {weights.path} has no final LayerNorm, as a model "
            "with add_pooling_layer=False: use 'mean' or 'cls'",
        )

    provenance = provenance_of(
        source, local.revision, weights.sha256, preprocessing, settings
    )
    return Embedder(encoder, preprocessing, settings, provenance, name, path)


def _log_choices(name: str, settings: Settings, options: Mapping[str, Any]) -> None:
    chosen = [
        f"{option} {getattr(settings, option)!r}"
        for option in ("dtype", "engine")
        if options.get(option, AUTO) == AUTO
    ]
    if chosen:
        _inform(f"{name} on {settings.device}: auto picked {' and '.join(chosen)}")


@cache  # once per process
def _inform(message: str) -> None:
    logger.info(message)


def _open_entry(checkpoint: Checkpoint, path: Path | None) -> LocalCheckpoint:
    file = checkpoint.file
    if path is None:
        path = _fetch(checkpoint)
        verify = partial(file.verify, path)
    else:
        verify = partial(file.verify_copy, path)

    preprocessing = checkpoint.preprocessing
    read_preprocessing = checkpoint.architecture.read_preprocessing
    if read_preprocessing is not None:
        preprocessing = read_preprocessing(path, preprocessing.crop_size)

    return LocalCheckpoint(checkpoint.config, path, preprocessing, file.revision, verify)


def _fetch(checkpoint: Checkpoint, destination: Path | None = None) -> Path:
    if checkpoint.file.cached() is None:
        _inform(f"The weights of {checkpoint.name} are licensed {checkpoint.license}")

    return checkpoint.file.fetch(destination)
