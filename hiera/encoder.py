"""Load verified weights into a backbone, and compute its stages from pixels."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import nn

from ..errors import OptionError
from ..images.preprocessing import Preprocessing
from .backbone import Backbone
from .checkpoint_kinds import get_architecture
from .configuration import Configuration
from .engines import ENGINES, Forward
from .weights_file import WeightsFile


class Encoder:
    """Computes the tokens of stages from pixels.

    Args:
        config: the configuration of the checkpoint
        weights: the file; it is read again when other stages are asked for later
        preprocessing: the preprocessing; if its crop has another size than the
            configuration, position embeddings are interpolated
        engine ("torch"): one of :data:`fiftyone_hiera.hiera.engines.ENGINES`
        dtype (torch.float32): the dtype of attention and MLPs
        device (None): the device; None is the CPU

    Attributes:
        saved_config: the configuration of the checkpoint
        config: the configuration for the size of the crop
        weights: the file
        device: the device of the network
        normalize: from pixels to the input of the network
        norm: the final LayerNorm, for pooling the last stage; None if the file has none

    Raises:
        ValueError: if the crop does not have a size that the network takes
    """

    def __init__(
        self,
        config: Configuration,
        weights: WeightsFile,
        preprocessing: Preprocessing,
        *,
        engine: str = "torch",
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.saved_config = config
        self.config = config.at_size(preprocessing.crop_size)
        self.weights = weights
        self.device = device or torch.device("cpu")
        self.normalize = Normalization(preprocessing, self.device)
        self.norm = _load_norm(config, weights, self.device)
        self._engine = ENGINES[engine]
        self._dtype = dtype
        self._network: Forward | None = None
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
        network, computed = self.prepare(*stages)
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
            tokens.transpose(1, 2).unflatten(2, self.config.grid_size(stage))
            for stage, tokens in zip(stages, self(pixels, *stages), strict=True)
        ]

    def prepare(self, *stages: int) -> tuple[Forward, tuple[int, ...]]:
        """Build the network, unless it is there; may be called ahead of a forward pass.

        There is one network. If it does not compute one of the stages, it is built again
        to compute all stages asked for so far.

        Args:
            *stages: as for :meth:`__call__`

        Returns:
            a tuple of the network and of the stages that it computes

        Raises:
            ValueError: if there is no such stage
        """
        if not set(stages) <= set(range(1, self.config.num_stages + 1)):
            raise OptionError(
                "stages",
                f"Invalid stages: {tuple(stages)}. This checkpoint has stages 1 to "
                f"{self.config.num_stages}",
            )

        with self._lock:
            if self._network is None or not set(stages) <= set(self._computed):
                computed = tuple(sorted({*self._computed, *stages}))
                self._network = None  # its weights go before others are loaded
                self._network = self._engine(
                    self._build(computed), self._dtype, self.config.image_size
                )
                self._computed = computed

            return self._network, self._computed

    def _build(self, stages: tuple[int, ...]) -> Backbone:
        with torch.device("meta"):
            backbone = Backbone(self.config, stages)

        # No parameter is initialized, each is a tensor of the file. None is held here, so
        # that an engine may free the weights that it copied
        architecture = get_architecture(self.config)
        tensors = self.weights.tensors(architecture.prefix)
        self.weights.release()
        state_dict = architecture.read_backbone(
            tensors, backbone.state_dict(), self.saved_config, self.config
        )
        backbone.load_state_dict(state_dict, strict=True, assign=True)
        backbone.eval().requires_grad_(False).float().to(self.device)
        return backbone


class Normalization:
    """Scale uint8 pixels to [0, 1] and normalize each channel, on the network's device.

    Args:
        preprocessing: the preprocessing, which has the mean and standard deviation
        device: the device of the network
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self._device = device
        self._mean, self._std = (
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )

        # A tensor: some devices divide by a Python scalar by multiplying with its rounded
        # reciprocal
        self._full_scale = torch.full_like(self._mean, 255.0)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalize a batch of images.

        Args:
            pixels: a uint8 tensor of shape (N, 3, H, W) on any device

        Returns:
            a float32 tensor of shape (N, 3, H, W) on the network's device
        """
        pixels = pixels.to(self._device, non_blocking=True)
        return pixels.float().div_(self._full_scale).sub_(self._mean).div_(self._std)

    def undo(self, inputs: torch.Tensor) -> torch.Tensor:
        """Convert a normalized batch back to uint8 pixels.

        Args:
            inputs: a float32 tensor of shape (N, 3, H, W)

        Returns:
            a uint8 tensor of shape (N, 3, H, W)
        """
        pixels = self._full_scale * (inputs * self._std + self._mean)
        return pixels.round().clamp(0, 255).to(torch.uint8)


def _load_norm(
    config: Configuration, weights: WeightsFile, device: torch.device
) -> nn.LayerNorm | None:
    tensors = weights.tensors(get_architecture(config).norm)
    if not tensors:
        return None

    dim = config.stage_dim(config.num_stages)
    norm = nn.LayerNorm(dim, config.layer_norm_eps, device="meta")
    norm.load_state_dict(tensors, assign=True)
    return norm.requires_grad_(False).float().to(device)
