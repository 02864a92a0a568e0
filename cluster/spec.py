"""The description of an encoder, from which actors load the driver's own again."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..embedding.embedder import Embedder
from ..embedding.loading import load_checkpoint
from ..embedding.provenance import RECORDED_OPTIONS, Provenance

_OPTIONS = (*RECORDED_OPTIONS, "checkpoint")


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder, in plain values.

    Args:
        entry: the name of the entry of the zoo
        weights: the path of its weights; where there is no such file, they are taken
            from the hub's cache, or downloaded
        options: the options, all decided
        provenance: the provenance that its embeddings must have
    """

    entry: str
    weights: str | None
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
        str(embedder.weights_path) if embedder.weights_path else None,
        {**options, "device": device},
        embedder.provenance,
    )


def load_encoder(spec: EncoderSpec) -> Embedder:
    """Load an encoder, and check that it is the one described.

    Args:
        spec: the description

    Raises:
        ValueError: if it cannot be loaded, or if its embeddings differ; the message names
            the node and what differs
    """
    node = socket.gethostname()
    weights = Path(spec.weights) if spec.weights else None
    if weights is not None and not weights.is_file():
        weights = None

    try:
        embedder = load_checkpoint(spec.entry, weights, spec.options).embedder
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
