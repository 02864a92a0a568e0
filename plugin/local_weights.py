"""Local copies of a zoo entry's weights, in FiftyOne's zoo."""

from __future__ import annotations

from pathlib import Path

import fiftyone.zoo as foz

from ..checkpoints import Checkpoint


def find_in_zoo(checkpoint: Checkpoint) -> Path | None:
    """Return the path of the weights in FiftyOne's zoo, if they are there."""
    try:
        return Path(foz.find_zoo_model(checkpoint.name))
    except ValueError:  # they are not, or this model source is not registered
        return None
