"""The encoder: verified weights in the backbone, and an engine that runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import OptionError
from ..images.preprocessing import Preprocessing
from .backbone import Backbone
from .checkpoint_kinds import get_architecture
from .configuration import Configuration, at_size, grid_size, stage_dim
from .engines import ENGINES, Run
from .normalization import Normalization
from .weights_file import WeightsFile


@dataclass(frozen=True)
class Stage:
    """The output of a stage.

    Args:
        grid: the (height, width) of its grid of tokens
        embedding_dim: the length of a token
    """

    grid: tuple[int, int]
    embedding_dim: int


class Encoder:
    """Computes the tokens of stages from pixels.

    Args:
        start: builds the network that computes the given stages
        stages: the output of each stage
        norm: the final LayerNorm, for pooling the last stage; None if the file has none
        normalize: from pixels to the input of the network
        device: the device of the network
    """

    def __init__(
        self,
        start: Callable[[tuple[int, ...]], Run],
        stages: Sequence[Stage],
        norm: nn.LayerNorm | None,
        normalize: Normalization,
        device: torch.device,
    ) -> None:
        self.stages = stages
        self.norm = norm
        self.device = device
        self.normalize = normalize
        self._start = start
        self._network: Run | None = None
        self._computed: tuple[int, ...] = ()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor, *stages: int) -> Sequence[torch.Tensor]:
        """Compute the tokens of stages in one forward pass.

        Args:
            pixels: a uint8 tensor of shape (N, 3, H, W) on any device
            *stages: the stages, from 1

        Returns:
            a float32 tensor of shape (N, T, D) for each stage, on the encoder's device
            and in raster order; T = 49 in stage 4 for 224 px

        Raises:
            ValueError: if there is no such stage
        """
        network, computed = self._prepare(stages)
        tokens = network(self.normalize(pixels))
        return [tokens[computed.index(stage)] for stage in stages]

    def maps(self, pixels: torch.Tensor, *stages: int) -> list[torch.Tensor]:
        """Compute the feature maps of stages in one forward pass.

        Args:
            pixels: as for :meth:`__call__`
            *stages: as for :meth:`__call__`

        Returns:
            a float32 tensor of shape (N, D, h, w) for each stage

        Raises:
            ValueError: if there is no such stage
        """
        return [
            tokens.transpose(1, 2).unflatten(2, self.stages[stage - 1].grid)
            for stage, tokens in zip(stages, self(pixels, *stages), strict=True)
        ]

    def prepare(self, *stages: int) -> None:
        """Build the network ahead of the first forward pass.

        There is one network. If it does not compute one of the stages, it is built again
        to compute all stages asked for so far.

        Args:
            *stages: as for :meth:`__call__`

        Raises:
            ValueError: if there is no such stage
        """
        self._prepare(stages)

    def _prepare(self, stages: Sequence[int]) -> tuple[Run, tuple[int, ...]]:
        if not set(stages) <= set(range(1, len(self.stages) + 1)):
            raise OptionError(
                "stages",
                f"Invalid stages: {tuple(stages)}. This checkpoint has stages 1 to "
                f"{len(self.stages)}",
            )

        with self._lock:
            if self._network is None or not set(stages) <= set(self._computed):
                computed = tuple(sorted({*self._computed, *stages}))
                self._network = None  # its weights go before others are loaded
                self._network, self._computed = self._start(computed), computed

            return self._network, self._computed


def load_encoder(
    config: Configuration,
    weights: WeightsFile,
    preprocessing: Preprocessing,
    *,
    engine: str = "torch",
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Encoder:
    """Build an encoder from a weights file.

    Args:
        config: the configuration; its ``architectures`` is one
            of :data:`hiera.checkpoint_kinds.ARCHITECTURES`, none is ``HieraModel``
        weights: the file; it is read again when other stages are asked for later
        preprocessing: the preprocessing; if its crop has another size than the
            configuration, position embeddings are interpolated
        engine ("torch"): one of :data:`hiera.engines.ENGINES`
        dtype (torch.float32): the dtype of attention and MLPs
        device (None): the device; None is the CPU

    Returns:
        an :class:`Encoder`

    Raises:
        ValueError: if the crop does not have a size that the network takes
    """
    device = device or torch.device("cpu")
    image_size = preprocessing.crop_size
    resized = at_size(config, image_size)
    architecture = get_architecture(config)

    def build(stages: tuple[int, ...]) -> Backbone:
        with torch.device("meta"):
            backbone = Backbone(resized, stages)

        # No parameter is initialized, each is a tensor of the file. None is held here, so
        # that an engine may free the weights that it copied
        tensors = weights.tensors(architecture.prefix)
        weights.release()
        state_dict = architecture.read_backbone(
            tensors, backbone.state_dict(), config, image_size
        )
        backbone.load_state_dict(state_dict, strict=True, assign=True)
        backbone.eval().requires_grad_(False).float().to(device)
        return backbone

    def start(stages: tuple[int, ...]) -> Run:
        return ENGINES[engine](build(stages), dtype, image_size)

    stages = [
        Stage(grid_size(resized, stage), stage_dim(config, stage))
        for stage in range(1, len(config.depths) + 1)
    ]
    norm, tensors = None, weights.tensors(architecture.norm)
    if tensors:
        norm = nn.LayerNorm(stages[-1].embedding_dim, config.layer_norm_eps, device="meta")
        norm.load_state_dict(tensors, assign=True)
        norm.requires_grad_(False).float().to(device)

    return Encoder(start, stages, norm, Normalization(preprocessing, device), device)
