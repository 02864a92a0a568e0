"""Embed pixels in actors of the cluster, which load the driver's encoder again."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..embedding.embedder import Embedder
from ..embedding.loading import load_checkpoint
from ..embedding.provenance import RECORDED_OPTIONS, Provenance
from .reading import Piece

_OPTIONS = (*RECORDED_OPTIONS, "checkpoint")


@dataclass(frozen=True)
class EncoderSpec:
    """Description of an encoder in plain values.

    Args:
        entry: the name of the entry of the zoo
        weights: the path of its weights; where there is no such file, they are taken
            from the hub's cache, or downloaded
        options: the options, all decided
        provenance: the provenance that its embeddings must have
    """

    entry: str
    weights: Path | None
    options: Mapping[str, Any]
    provenance: Provenance


def describe_encoder(embedder: Embedder, device: str) -> EncoderSpec:
    """Describe the encoder of this process for others.

    Args:
        embedder: the embedder of this process
        device: the device that the others use, "cuda" or "cpu"

    Raises:
        ValueError: if its engine cannot run on that device
    """
    settings = embedder.settings
    if settings.engine == "openvino" and device != "cpu":
        raise ValueError(
            "Engine 'openvino' is for the CPU, and the encoders are on GPUs: load the "
            "model with engine='torch', or pass ray=RayOptions(num_gpus=0)"
        )

    options = {name: getattr(settings, name) for name in _OPTIONS}
    return EncoderSpec(
        embedder.entry,
        embedder.weights_path,
        {**options, "device": device},
        embedder.provenance,
    )


class EncoderActor:
    """Embeds pieces in a process of the cluster.

    Args:
        spec: the encoder
        batch_size: the number of images per forward pass
        num_threads: the number of threads, if the node has as many cores
    """

    def __init__(self, spec: EncoderSpec, batch_size: int, num_threads: int) -> None:
        # Ray limits it to the CPUs that the actor reserves
        torch.set_num_threads(min(num_threads, os.cpu_count() or 1))
        self._spec = spec
        self._batch_size = batch_size

    def start(self) -> None:
        """Return as soon as the process has started."""

    def load(self) -> None:
        """Load the encoder ahead of the first piece.

        Not in the constructor: its errors reach the driver as the death of an actor.

        Raises:
            ValueError: if it cannot be loaded, or if its embeddings differ; the message
                names the node and what differs
        """
        _ = self._embedder

    def encode(self, piece: Piece) -> Piece:
        """Replace the pixels of a piece by their embeddings.

        Raises:
            ValueError: see :meth:`load`
            RuntimeError: if the encoder fails; the message names the node
        """
        embedder = self._embedder
        # A copy, as torch wants to be able to write
        batches = torch.from_numpy(piece.rows.copy()).split(self._batch_size)
        try:
            rows = [embedder.embed(batch) for batch in batches if len(batch)]
        except (MemoryError, RuntimeError) as error:
            raise RuntimeError(f"{error} (on node {socket.gethostname()})") from error

        nothing = np.empty((0, embedder.dim), np.float32)
        return Piece(piece.answers, np.concatenate([nothing, *rows]))

    @cached_property
    def _embedder(self) -> Embedder:
        return _load_encoder(self._spec)


def _load_encoder(spec: EncoderSpec) -> Embedder:
    node = socket.gethostname()
    weights = spec.weights if spec.weights and spec.weights.is_file() else None
    try:
        embedder = load_checkpoint(spec.entry, weights, spec.options)
    except Exception as error:
        raise ValueError(f"Cannot load {spec.entry} on node {node}: {error}") from error

    found = embedder.provenance
    differences = [
        f"{name} {found.get(name)!r} instead of {wanted!r}"
        for name, wanted in spec.provenance.items()
        if found.get(name) != wanted
    ]
    if differences:
        raise ValueError(
            f"Node {node} would compute other embeddings of {spec.entry} than this "
            f"process: {', '.join(differences)}. Install the same version and the same "
            "weights there"
        )

    embedder.encoder.prepare(embedder.settings.stage)
    return embedder
