"""Where the weights of an entry of the zoo are on this machine."""

from __future__ import annotations

from pathlib import Path

import fiftyone as fo
import fiftyone.zoo as foz

from ..checkpoints import CHECKPOINTS, Checkpoint
from ..hiera.hub import BundledFile, find_cached


def zoo_folder() -> Path | None:
    """Return the folder of this source in FiftyOne's zoo, if it is registered."""
    try:
        entry = foz.get_zoo_model(next(iter(CHECKPOINTS)))
    except ValueError:
        return None

    return Path(entry.get_path_in_dir(fo.config.model_zoo_dir)).parent


def find_in_zoo(checkpoint: Checkpoint, folder: Path | None) -> Path | None:
    """Return the path of the file that FiftyOne's zoo has of an entry, if it has one.

    Args:
        checkpoint: the entry
        folder: see :func:`zoo_folder`
    """
    if folder is None or not (folder / checkpoint.filename).is_file():
        return None

    return folder / checkpoint.filename


def is_on_disk(checkpoint: Checkpoint, folder: Path | None) -> bool:
    """Return whether an entry loads without a download.

    Args:
        checkpoint: the entry
        folder: see :func:`zoo_folder`
    """
    if isinstance(checkpoint.weights, BundledFile):
        return True

    return bool(find_cached(checkpoint.weights) or find_in_zoo(checkpoint, folder))
