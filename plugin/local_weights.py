"""Local copies of a zoo entry's weights: in FiftyOne's zoo or the hub's cache."""

from __future__ import annotations

from pathlib import Path

import fiftyone as fo
import fiftyone.zoo as foz

from ..checkpoints import CHECKPOINTS, Checkpoint


def zoo_folder() -> Path | None:
    """Return the folder of this model source in FiftyOne's zoo, if it is registered."""
    try:
        entry = foz.get_zoo_model(next(iter(CHECKPOINTS)))
    except ValueError:
        return None

    return Path(entry.get_path_in_dir(fo.config.model_zoo_dir)).parent


def find_in_zoo(checkpoint: Checkpoint, folder: Path | None) -> Path | None:
    """Return the path of the weights in FiftyOne's zoo, if they are there.

    Args:
        checkpoint: the zoo entry
        folder: see :func:`zoo_folder`
    """
    if folder is None or not (folder / checkpoint.filename).is_file():
        return None

    return folder / checkpoint.filename


def find_on_disk(checkpoint: Checkpoint, folder: Path | None) -> Path | None:
    """Return the path of the weights that are loaded without a download, if there are any.

    Args:
        checkpoint: the zoo entry
        folder: see :func:`zoo_folder`
    """
    return find_in_zoo(checkpoint, folder) or checkpoint.file.cached()
