"""The encoder: verified weights in the network, and an engine that runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import HieraConfig

from ..images.preprocessing import Normalization, Preprocessing
from .backbone import Backbone, grid_size, stage_dim
from .engines import ENGINES, Run
from .state_dict import (
    ARCHITECTURES,
    architecture_name,
    at_size,
    read_backbone,
    read_tensors,
)


@dataclass(frozen=True)
class Stage:
    """What a stage gives.

    Args:
        grid: the number of its tokens, down and across
        embedding_dim: the length of each
    """

    grid: tuple[int, int]
    embedding_dim: int


class Encoder:
    """Pixels to the tokens of stages.

    Args:
        start: from the stages that are wanted to what runs the network up to them
        stages: of each stage the grid and the length of its tokens
        norm: the final LayerNorm, for pooling the last stage
        normalize: from pixels to what the network sees
        device: where the network is
    """

    def __init__(
        self,
        start: Callable[[tuple[int, ...]], Run],
        stages: Sequence[Stage],
        norm: nn.LayerNorm,
        normalize: Normalization,
        device: torch.device,
    ) -> None:
        self.stages = stages
        self.norm = norm
        self.device = device
        self.normalize = normalize
        self._start = start
        self._runs: dict[tuple[int, ...], Run] = {}
        self._lock = threading.Lock()

    def prepare(self, *stages: int) -> Run:
        """Make ready what runs the network up to some stages; once for each choice.

        Args:
            *stages: the stages whose tokens are wanted, from 1, ascending

        Returns:
            what runs it, over normalized pixels

        Raises:
            ValueError: if there is no such stage
        """
        if not set(stages) <= set(range(1, len(self.stages) + 1)):
            raise ValueError(
                f"Invalid stages: {stages}. This checkpoint has stages 1 to "
                f"{len(self.stages)}"
            )

        with self._lock:
            if stages not in self._runs:
                self._runs[stages] = self._start(stages)

            return self._runs[stages]

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor, *stages: int) -> Sequence[torch.Tensor]:
        """Run the network once over a batch.

        Args:
            pixels: a uint8 tensor of shape (N, 3, H, W) on any device
            *stages: as for :meth:`prepare`

        Returns:
            of each stage a float32 tensor of shape (N, T, D) on the encoder's device,
            in raster order; T = 49 in stage 4 for 224 px
        """
        run = self.prepare(*stages)
        return run(self.normalize(pixels))

    def maps(self, pixels: torch.Tensor, *stages: int) -> list[torch.Tensor]:
        """Run the network once over a batch.

        Args:
            pixels: as for :meth:`__call__`
            *stages: as for :meth:`prepare`

        Returns:
            of each stage a float32 tensor of shape (N, D, h, w)
        """
        return [
            tokens.transpose(1, 2).unflatten(2, self.stages[stage - 1].grid)
            for stage, tokens in zip(stages, self(pixels, *stages), strict=True)
        ]


def load_encoder(
    config: HieraConfig,
    weights: Path,
    preprocessing: Preprocessing,
    *,
    engine: str = "torch",
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Encoder:
    """Build an encoder from a local safetensors file.

    Args:
        config: the transformers configuration; its ``architectures`` is one
            of :data:`hiera.tensors.ARCHITECTURES`, none is ``HieraModel``
        weights: the path of the file
        preprocessing: the preprocessing; to a crop of another size than the
            configuration's, position embeddings are interpolated
        engine ("torch"): one of :data:`hiera.engines.ENGINES`
        dtype (torch.float32): the type to compute in; the final LayerNorm
            stays float32
        device (None): the device; None is the CPU

    Returns:
        an :class:`Encoder`

    Raises:
        ValueError: if the file is not a complete safetensors file with exactly
            the tensors and shapes that the configuration asks for, or if the
            engine cannot compute in the dtype
    """
    device = device or torch.device("cpu")
    resized = at_size(config, preprocessing.crop_size)
    architecture = ARCHITECTURES[architecture_name(config)]

    def start(stages: tuple[int, ...]) -> Run:
        with torch.device("meta"):
            backbone = Backbone(resized, stages)

        # Nothing is ever initialised: each parameter is a tensor of the file. The file is
        # read each time, so that weights that an engine has its own copy of can go
        names = backbone.state_dict()
        tensors = read_backbone(weights, config, preprocessing.crop_size, names)
        backbone.load_state_dict(tensors, strict=True, assign=True)
        backbone.eval().requires_grad_(False).float().to(device)
        return ENGINES[engine](backbone, dtype, preprocessing.crop_size)

    stages = [
        Stage(grid_size(resized, stage), stage_dim(config, stage))
        for stage in range(1, len(config.depths) + 1)
    ]
    norm = nn.LayerNorm(stages[-1].embedding_dim, config.layer_norm_eps, device="meta")
    tensors = read_tensors(weights, config, architecture.norm)
    norm.load_state_dict(tensors, assign=True)
    norm.requires_grad_(False).float().to(device)
    return Encoder(start, stages, norm, Normalization(preprocessing, device), device)
