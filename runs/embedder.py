"""What a run needs of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..images.preprocessing import Preprocessing
from .provenance import Provenance


@dataclass(frozen=True)
class Embedder:
    """What a run needs of a model.

    Args:
        preprocessing: the preprocessing, from an image to a uint8 tensor (3, H, W)
        embed: the forward pass, from N such tensors to an array (N, D); a row may
            hold NaN or infinity
        provenance: the provenance of its embeddings
    """

    preprocessing: Preprocessing
    embed: Callable[[Sequence[torch.Tensor]], npt.NDArray[np.float32]]
    provenance: Provenance
