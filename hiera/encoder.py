"""The encoder: verified weights in the network, and an engine that runs it."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import HieraConfig

from .engines import ENGINES, Run
from .preprocessing import Preprocessing, normalize
from .trunk import Trunk


class Encoder:
    """Pixels to the tokens of the last stage.

    Args:
        run: from normalized pixels to tokens
        norm: the final LayerNorm, for pooling
        preprocessing: supplies mean and standard deviation
        device: where the network is
    """

    def __init__(
        self,
        run: Run,
        norm: nn.LayerNorm,
        preprocessing: Preprocessing,
        device: torch.device,
    ) -> None:
        self.norm = norm
        self.device = device
        self.mean = torch.tensor(preprocessing.mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(preprocessing.std, device=device).view(3, 1, 1)
        self._run = run

    @property
    def embedding_dim(self) -> int:
        """The length of a token."""
        return self.norm.normalized_shape[0]

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the network once over a batch.

        Args:
            pixels: a uint8 tensor of shape (N, 3, H, W) on any device

        Returns:
            a float32 tensor of shape (N, T, D) on the encoder's device, in
            raster order; T = 49 for 224 px
        """
        pixels = pixels.to(self.device, non_blocking=True)
        return self._run(normalize(pixels, self.mean, self.std))


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
            of :data:`hiera.checkpoint.ARCHITECTURES`, none is ``HieraModel``
        weights: the path of the file
        preprocessing: the checkpoint's preprocessing
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
    with torch.device("meta"):
        trunk = Trunk(config)

    # Nothing is ever initialised: each parameter is a tensor of the file
    tensors = _read_tensors(weights, trunk, config)
    trunk.load_state_dict(tensors, strict=True, assign=True)
    trunk.eval().requires_grad_(False).float().to(device)

    norm = copy.deepcopy(trunk.pooler.layernorm)  # engines change the trunk
    run = ENGINES[engine](trunk, dtype, preprocessing.crop_size)
    return Encoder(run, norm, preprocessing, device)


def _read_tensors(path: Path, trunk: Trunk, config: HieraConfig) -> dict[str, torch.Tensor]:
    # A classifier's file holds the trunk under a prefix, and a head
    is_classifier = (config.architectures or [""])[0] == "HieraForImageClassification"
    prefix = "hiera." if is_classifier else ""
    expected = {
        prefix + name: [*weight.shape] for name, weight in trunk.state_dict().items()
    }
    if is_classifier:
        expected["classifier.weight"] = [config.num_labels, trunk.embedding_dim]
        expected["classifier.bias"] = [config.num_labels]

    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # no dict
            problems = _differences(expected, found)
            if problems:
                raise ValueError(
                    f"{path} does not hold the weights of this model: "
                    + "; ".join(problems)
                )

            return {name: file.get_tensor(prefix + name) for name in trunk.state_dict()}
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
