"""The kinds of checkpoints, each described by one value.

A new kind is a new value here and, if it computes something of its own, a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from ..images.preprocessing import Preprocessing
from . import abswin
from .backbone import POSITIONS, Backbone, resize_positions
from .configuration import AUTOENCODER_NAME, CLASSIFIER_NAME, Configuration
from .imagenet import imagenet_classes
from .pooling import POOLINGS
from .weights_file import Shapes, shapes_of

ReadBackbone: TypeAlias = Callable[
    [Mapping[str, torch.Tensor], Iterable[str], Configuration, Configuration],
    Mapping[str, torch.Tensor],
]


def _resize_backbone(
    tensors: Mapping[str, torch.Tensor],
    names: Iterable[str],
    saved: Configuration,
    config: Configuration,
) -> dict[str, torch.Tensor]:
    old, new = saved.grid_size(1), config.grid_size(1)
    positions = resize_positions(tensors[POSITIONS], old, new)
    return {**{name: tensors[name] for name in names}, POSITIONS: positions}


@dataclass(frozen=True)
class Architecture:
    """A kind of checkpoint: its tensors, its poolings and its outputs.

    Args:
        name: the name in a configuration's ``architectures``, transformers' class where
            there is one
        produces: what the checkpoint computes, for descriptions
        shapes: from a configuration to the shapes of all tensors of a file
        norm: the prefix of the final LayerNorm's tensors
        prefix (""): the prefix of the backbone's tensors
        optional (None): the prefix of tensors that a user's own file may lack
        read_backbone: from the tensors of the backbone's prefix, the names in
            :class:`Backbone`'s state dict, and the configurations of the file and for the
            size of the input, to that state dict
        read_preprocessing (None): from the path of a file and the input size to the
            preprocessing, where the weights file itself defines it
        poolings: the poolings, the default first
        outputs: what ``apply_model`` can compute, the default first; "embeddings" stands
            for no label
        tags (()): tags of FiftyOne's zoo, besides those of all models
        config (dict): returns what a configuration has besides the layout of the backbone
    """

    name: str
    produces: str
    shapes: Callable[[Configuration], Shapes]
    norm: str
    prefix: str = ""
    optional: str | None = None
    read_backbone: ReadBackbone = _resize_backbone
    read_preprocessing: Callable[[Path, tuple[int, int]], Preprocessing] | None = None
    poolings: tuple[str, ...] = tuple(POOLINGS)
    outputs: tuple[str, ...] = ("embeddings", "heatmap")
    tags: tuple[str, ...] = ()
    config: Callable[[], dict[str, Any]] = dict


def get_architecture(config: Configuration) -> Architecture:
    """Return the architecture of a configuration."""
    return ARCHITECTURES[config.architecture]


def expected_shapes(config: Configuration) -> Shapes:
    """Return the shapes of all tensors in the file of a checkpoint."""
    with torch.device("meta"):
        return get_architecture(config).shapes(config)


def _encoder_shapes(config: Configuration, prefix: str = "") -> Shapes:
    norm = nn.LayerNorm(config.stage_dim(config.num_stages))
    return {
        **shapes_of(Backbone(config), prefix),
        **shapes_of(norm, f"{prefix}pooler.layernorm."),
    }


def _classifier_shapes(config: Configuration) -> Shapes:
    linear = nn.Linear(config.stage_dim(config.num_stages), len(config.class_names))
    return {**_encoder_shapes(config, "hiera."), **shapes_of(linear, "classifier.")}


def _autoencoder_shapes(config: Configuration) -> Shapes:
    from transformers import HieraForPreTraining  # slow to import

    return shapes_of(HieraForPreTraining(config.to_transformers()))


HIERA_MODEL = Architecture(
    "HieraModel",
    produces="image embeddings",
    shapes=_encoder_shapes,
    norm="pooler.layernorm.",
    optional="pooler.layernorm.",  # of HieraModel(config, add_pooling_layer=False)
)
CLASSIFIER = Architecture(
    CLASSIFIER_NAME,
    produces="ImageNet classification and image embeddings",
    shapes=_classifier_shapes,
    norm="hiera.pooler.layernorm.",
    prefix="hiera.",
    outputs=("classification", "heatmap"),
    tags=("classification", "logits", "imagenet"),
    config=lambda: {"id2label": dict(enumerate(imagenet_classes()))},
)
AUTOENCODER = Architecture(
    AUTOENCODER_NAME,
    produces="image reconstruction error and image embeddings",
    shapes=_autoencoder_shapes,
    norm="encoder_norm.",
    prefix="hiera.",
    poolings=("mean", "cls"),  # the LayerNorm is one over all stages together
    outputs=("reconstruction_error", "heatmap"),
    # The same in all of Meta's
    config=lambda: {
        "num_query_pool": 2,
        "decoder_depth": 8,
        "decoder_hidden_size": 512,
        "decoder_num_heads": 16,
        "mask_ratio": 0.6,
        "normalize_pixel_loss": True,
    },
)
ABSWIN = Architecture(
    "birder.Hiera",
    produces="image embeddings",
    shapes=abswin.abswin_shapes,
    norm=abswin.NORM,
    read_backbone=abswin.read_backbone,
    read_preprocessing=abswin.read_preprocessing,
    poolings=("pooler", "mean", "cls"),  # "pooler" is what birder calls the embedding
)

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (HIERA_MODEL, CLASSIFIER, AUTOENCODER, ABSWIN)
}
"""The architectures by name."""
