"""The classification head: from the tokens of the last stage to logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

from .configuration import Configuration
from .encoder import Encoder
from .pooling import pooler
from .weights_file import WeightsFile

Classifier: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""From tokens (N, T, D) to logits (N, C)."""


def load_classifier(
    config: Configuration, weights: WeightsFile, encoder: Encoder
) -> Classifier:
    """Load the head of a fine-tuned checkpoint.

    As in transformers' ``HieraForImageClassification``: the mean of the tokens, the final
    LayerNorm and a linear layer.

    Args:
        config: the configuration of a ``HieraForImageClassification``
        weights: the file
        encoder: the encoder of the same file

    Returns:
        a :data:`Classifier`
    """
    dim = config.stage_dim(config.num_stages)
    linear = nn.Linear(dim, len(config.class_names), device="meta")
    linear.load_state_dict(weights.tensors("classifier."), assign=True)
    linear.requires_grad_(False).float().to(encoder.device)

    def classify(tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = linear(pooler(tokens, encoder.norm))
        return logits

    return classify
