"""The Hiera encoder: transformers' implementation with verified weights.

Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles,
Ryali et al., ICML 2023, https://arxiv.org/abs/2306.00989
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import HieraConfig, HieraModel

from .preprocessing import Preprocessing, normalize


class Encoder(nn.Module):
    """Pixels to the tokens of the last stage.

    Args:
        hiera: the transformers model
        preprocessing: supplies mean and standard deviation
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, hiera: HieraModel, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.hiera = hiera
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1))

    @property
    def norm(self) -> nn.LayerNorm:
        """The final LayerNorm, for pooling."""
        return cast(nn.LayerNorm, self.hiera.get_submodule("pooler.layernorm"))

    @property
    def embedding_dim(self) -> int:
        """The length of a token."""
        return int(self.hiera.num_features)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the encoder once over a batch.

        Args:
            pixels: a uint8 tensor of shape (N, 3, H, W) on any device

        Returns:
            a float32 tensor of shape (N, T, D) on the encoder's device, in
            raster order; T = 49 for 224 px
        """
        pixels = pixels.to(self.mean.device, non_blocking=True)
        normalized = normalize(pixels, self.mean, self.std)
        output = self.hiera(normalized.to(self.hiera.dtype))
        tokens: torch.Tensor = output.last_hidden_state
        return tokens.float()


def load_encoder(
    config: HieraConfig,
    weights: Path,
    preprocessing: Preprocessing,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Encoder:
    """Build an encoder from a local safetensors file.

    Args:
        config: the transformers configuration; its ``architectures`` is one
            of :data:`hiera.checkpoint.ARCHITECTURES`, none is ``HieraModel``
        weights: the path of the file
        preprocessing: the checkpoint's preprocessing
        dtype (torch.float32): the type to compute in; the final LayerNorm
            stays float32
        device (None): the device; None is the CPU

    Returns:
        an :class:`Encoder` in evaluation mode

    Raises:
        ValueError: if the file is not a complete safetensors file with exactly
            the tensors and shapes that the configuration asks for
    """
    architecture = (config.architectures or ["HieraModel"])[0]
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, architecture)(config)

    # Nothing is ever initialised: each parameter is a tensor of the file
    model.load_state_dict(_read_tensors(weights, model), strict=True, assign=True)

    trunk = model if isinstance(model, HieraModel) else model.get_submodule("hiera")
    hiera = cast(HieraModel, trunk).eval().requires_grad_(False).to(dtype)
    encoder = Encoder(hiera, preprocessing).eval()
    encoder.norm.float()
    return encoder.to(device or torch.device("cpu"))


def _read_tensors(path: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}

    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # no dict
            problems = _differences(expected, found)
            if problems:
                raise ValueError(
                    f"{path} does not hold the weights of this model: "
                    + "; ".join(problems)
                )

            return {name: file.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}). Pickle files are "
            "never loaded; delete a partial file and download it again"
        ) from error


def _differences(expected: dict[str, list[int]], found: dict[str, list[int]]) -> list[str]:
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    misshapen = [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return [
        f"{len(names)} {what} (first: {names[0]})"
        for what, names in (
            ("tensors missing", missing),
            ("tensors too many", extra),
            ("tensors of another shape", misshapen),
        )
        if names
    ]
