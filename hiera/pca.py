"""From tokens to one number per place, on one scale for all images.

A principal component of the tokens of many images: the direction in which they differ
most. Fitted once and used for all, it is comparable from image to image; fitted anew for
each, it would change its meaning and its sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save


@dataclass(frozen=True)
class Basis:
    """What heat is measured along.

    Args:
        center: the average token, a float32 tensor of shape (D,)
        direction: a float32 tensor of shape (D,): tokens are projected onto it
        fitted_with: what the tokens depend on that it was fitted to, by name
    """

    center: torch.Tensor
    direction: torch.Tensor
    fitted_with: Mapping[str, str]

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project tokens.

        Args:
            tokens: a tensor of shape (..., D)

        Returns:
            a tensor of shape (...), in standard deviations of the tokens that the
            basis was fitted to
        """
        device = tokens.device
        return (tokens - self.center.to(device)) @ self.direction.to(device)


def fit_basis(tokens: Iterable[torch.Tensor], fitted_with: Mapping[str, str]) -> Basis:
    """Find the direction in which tokens differ most.

    Args:
        tokens: tensors of shape (..., D)
        fitted_with: what they depend on, by name

    Returns:
        a :class:`Basis`, whose sign is that of its largest component

    Raises:
        ValueError: if there are fewer than two different tokens, or NaN or infinity
    """
    count = 0
    total = products = torch.zeros(())
    for part in tokens:
        rows = part.reshape(-1, part.shape[-1]).double().cpu()
        count += len(rows)
        total = total + rows.sum(dim=0)
        products = products + rows.t() @ rows

    if count < 2:
        raise ValueError(f"There are {count} tokens to fit a basis to: give more images")

    if not total.isfinite().all():
        raise ValueError("The model gave NaN or infinity for images of the basis")

    center = total / count
    covariance = products / count - torch.outer(center, center)
    variances, directions = torch.linalg.eigh(covariance)
    variance, direction = variances[-1], directions[:, -1]
    if variance <= 0:
        raise ValueError("The tokens to fit a basis to are all the same: give other images")

    direction = direction * direction[direction.abs().argmax()].sign() / variance.sqrt()
    return Basis(center.float(), direction.float(), fitted_with)


def save_basis(basis: Basis, path: Path) -> None:
    """Write a basis to a safetensors file."""
    tensors = {"center": basis.center, "direction": basis.direction}
    # Not save_file(), whose files nobody else may read
    path.write_bytes(save(tensors, {**basis.fitted_with}))


def load_basis(path: Path) -> Basis:
    """Read a basis that :func:`save_basis` wrote.

    Raises:
        ValueError: if the file is none
    """
    try:
        with safe_open(path, framework="pt") as file:
            center, direction = (file.get_tensor(key) for key in ("center", "direction"))
            return Basis(center, direction, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is no basis of heatmaps ({error}). model.fit_heatmap() writes one"
        ) from error
