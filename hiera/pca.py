"""First principal component of patch tokens, and the file that it is stored in.

The basis is fitted once, to the tokens of many images, and used for all images, so that
values are comparable between them. A basis per image would change its meaning and sign.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

# The version of the metadata in the file
_VERSION = "1"


@dataclass(frozen=True)
class Basis:
    """The mean of tokens and their first principal component.

    Args:
        center: the mean token, a float32 tensor of shape (D,)
        direction: the principal component divided by the standard deviation along it,
            a float32 tensor of shape (D,)
        fitted_with: the settings that the tokens depend on, by name, with values that
            JSON has
    """

    center: torch.Tensor
    direction: torch.Tensor
    fitted_with: Mapping[str, Any]

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project tokens onto the principal component.

        Args:
            tokens: a tensor of shape (..., D)

        Returns:
            a tensor of shape (...), in standard deviations of the tokens that the
            basis was fitted to
        """
        device = tokens.device
        return (tokens - self.center.to(device)) @ self.direction.to(device)


def fit_basis(tokens: Iterable[torch.Tensor], fitted_with: Mapping[str, Any]) -> Basis:
    """Fit a basis to tokens.

    Args:
        tokens: tensors of shape (..., D)
        fitted_with: the settings that they depend on, see :class:`Basis`

    Returns:
        a :class:`Basis`. The largest component of its direction is positive

    Raises:
        ValueError: if there are fewer than two different tokens, or NaN or infinity
    """
    count = 0
    total = products = torch.zeros(())
    for part in tokens:
        rows = part.reshape(-1, part.shape[-1]).cpu().double()  # MPS has no float64
        count += len(rows)
        total = total + rows.sum(dim=0)
        products = products + rows.t() @ rows

    if count < 2:
        raise ValueError(f"there are {count} tokens to fit it to; use more images")

    if not total.isfinite().all():
        raise ValueError("the model returned NaN or infinity for one of them")

    center = total / count
    covariance = products / count - torch.outer(center, center)
    variances, directions = torch.linalg.eigh(covariance)
    variance, direction = variances[-1], directions[:, -1]
    if variance <= 0:
        raise ValueError("all tokens are the same; use other images")

    direction = direction * direction[direction.abs().argmax()].sign() / variance.sqrt()
    return Basis(center.float(), direction.float(), fitted_with)


def save_basis(basis: Basis, path: Path) -> None:
    """Write a basis to a safetensors file."""
    tensors = {"center": basis.center, "direction": basis.direction}
    settings = {name: json.dumps(value) for name, value in basis.fitted_with.items()}
    # save_file() would create a file that only its owner may read
    path.write_bytes(save(tensors, {"version": _VERSION, **settings}))


def load_basis(path: Path) -> Basis:
    """Read a basis that :func:`save_basis` wrote, also that of release 0.1.0.

    Raises:
        ValueError: if the file is not a basis, or is one of a later release
    """
    try:
        with safe_open(path, framework="pt") as file:
            center, direction = (file.get_tensor(key) for key in ("center", "direction"))
            return Basis(center, direction, _read_settings(file.metadata() or {}))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a heatmap basis ({error}); model.fit_heatmap(dataset, path) "
            "writes one"
        ) from error


def _read_settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    version = metadata.get("version")
    if version is None:  # as of release 0.1.0
        return {
            "sha256": metadata["weights of sha256"],
            "stage": int(metadata["stage"]),
            "image_size": [int(side) for side in metadata["image_size"].split("x")],
            "squash": metadata["squash"] == "True",
        }

    if version != _VERSION:
        raise ValueError(f"its version is {version}; this release reads {_VERSION}")

    return {name: json.loads(text) for name, text in metadata.items() if name != "version"}
