"""Compute logits from the tokens of the last stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch.nn import functional

from .encoder import Encoder
from .pooling import pooler

Classifier: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""From tokens (N, T, D) to logits (N, C)."""


def load_classifier(encoder: Encoder) -> Classifier:
    """Load the head of a fine-tuned checkpoint.

    As in transformers' ``HieraForImageClassification``: the mean of the tokens, the final
    LayerNorm and a linear layer.

    Args:
        encoder: the encoder of a ``HieraForImageClassification``

    Returns:
        a :data:`Classifier`
    """
    tensors = encoder.weights.tensors("classifier.")
    weight, bias = (tensors[name].float().to(encoder.device) for name in ("weight", "bias"))

    def classify(tokens: torch.Tensor) -> torch.Tensor:
        return functional.linear(pooler(tokens, encoder.norm), weight, bias)

    return classify
