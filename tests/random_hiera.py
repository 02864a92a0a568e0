"""Hieras with random weights whose norms matter, and the same in other libraries' words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import HieraConfig, HieraForImageClassification, HieraModel

from fiftyone_hiera.hiera.configuration import Configuration, read_configuration

TINY = {"depths": (1, 1, 2, 1), "embed_dim": 16, "num_heads": (1, 2, 4, 8)}


def make_config(**kwargs: Any) -> HieraConfig:
    """Return a configuration; by default one that computes in milliseconds."""
    return HieraConfig(**{**TINY, "image_size": (64, 64), **kwargs})


def configuration(config: HieraConfig) -> Configuration:
    """Return the same in this package's form."""
    return read_configuration(config.to_dict())


def randomize(model: torch.nn.Module, seed: int = 51) -> None:
    """Give every parameter a value that shows in the output.

    With the norms of a fresh model, weight 1 and bias 0, poolings and
    implementations agree that should not.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm_weight = "norm" in name and name.endswith("weight")
        parameter.data = 1 + 0.3 * noise if is_norm_weight else 0.05 * noise


def make_hiera(config: HieraConfig, seed: int = 51) -> HieraModel:
    """Return transformers' model with random weights."""
    model = HieraModel(config).eval()
    randomize(model, seed)
    return model


def save_checkpoint(folder: Path, model: torch.nn.Module) -> Path:
    """Save a checkpoint as transformers does, and return its folder."""
    model.save_pretrained(folder)
    return folder


def save_weights(path: Path, model: torch.nn.Module) -> Path:
    """Save the weights alone, and return their path."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def make_classifier(config: HieraConfig) -> HieraForImageClassification:
    """Return transformers' fine-tuned kind of model with random weights."""
    config.num_labels = 7
    model = HieraForImageClassification(config).eval()
    randomize(model)
    return model


def to_reference_names(model: HieraModel, norm: str) -> dict[str, torch.Tensor]:
    """Rename the weights as facebookresearch/hiera and timm name them.

    Args:
        model: the model
        norm: the reference's name of the final LayerNorm
    """
    renamed = {
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "pooler.layernorm.weight": f"{norm}.weight",
        "pooler.layernorm.bias": f"{norm}.bias",
    }
    block = 0
    for stage, layers in enumerate(model.encoder.stages):
        for layer, module in enumerate(layers.layers):
            for name in module.state_dict():
                old = f"encoder.stages.{stage}.layers.{layer}.{name}"
                new = name.replace("layernorm_before", "norm1").replace(
                    "layernorm_after", "norm2"
                )
                renamed[old] = f"blocks.{block}.{new}"

            block += 1

    return {renamed[name]: tensor for name, tensor in model.state_dict().items()}
