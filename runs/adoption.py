"""Adoption of embeddings: recording their provenance after the fact."""

from __future__ import annotations

import logging

from ..embedding.arguments import to_integer
from ..embedding.embedder import Embedder
from .field_claim import FieldClaim
from .spot_check import compare, pick_inputs
from .target import Target

# A child of FiftyOne's own logger, whose handler and level apply to it
logger = logging.getLogger("fiftyone.hiera")


def adopt(target: Target, embedder: Embedder, verify: int) -> None:
    """Record a model's provenance for the embeddings that a field holds.

    Args:
        target: the field
        embedder: the model
        verify: the number of embeddings to compare with the model's, at least 1

    Raises:
        ValueError: if an embedding is not the model's, if none can be compared, or if the
            field is read-only
    """
    count = to_integer("verify", verify, 1)
    claim = FieldClaim(target, embedder.provenance)
    held, _ = target.count_embeddings()
    if not held:
        raise ValueError(f"The field {target.path!r} holds no embeddings")

    inputs = pick_inputs(target, embedder, count, is_thorough=True)
    if not inputs:
        raise ValueError(
            f"Cannot check the embeddings in {target.path!r}: none of the files that were "
            "tried can be read"
        )

    mismatch = compare(target, embedder, inputs)
    if mismatch is not None:
        raise ValueError(f"{mismatch} Nothing was recorded.")

    claim.adopt()
    logger.info(
        "Adopted the %d embeddings in %r, after comparing %d of them",
        held,
        target.path,
        len(inputs),
    )
