"""The model of the last search, kept for the next one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checkpoints import CHECKPOINTS
from ..hiera.hub import WEIGHTS_NAME
from .local_weights import find_in_zoo, find_on_disk, zoo_folder


class KeptModel:
    """Loads models and keeps the last one, for one thread at a time.

    A model is released before another one is loaded, and loaded again if its files have
    changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: object = None
        self._model: Any = None

    @contextlib.contextmanager
    def use(self, name: str, options: dict[str, Any]) -> Iterator[Any]:
        """Load a model, unless it is the last one.

        Args:
            name: the name of the zoo entry
            options: the options to load it with

        Yields:
            a :class:`fiftyone_hiera.models.embedding.HieraEmbeddingModel`, for use in
            this context only
        """
        from ..zoo_model import load

        with self._lock:
            key = (name, options, _state(_files(name, options)))
            if key != self._key:
                self._key = self._model = None
                weights = find_in_zoo(CHECKPOINTS[name], zoo_folder())
                self._model = load(name, weights, options)
                self._key = key

            yield self._model


def _files(name: str, options: dict[str, Any]) -> list[Path]:
    """Return the files on disk that a model is loaded from, and those beside them."""
    weights = find_on_disk(CHECKPOINTS[name], zoo_folder())
    if "checkpoint" in options:
        path = Path(options["checkpoint"]).expanduser()
        weights = path / WEIGHTS_NAME if path.is_dir() else path

    if weights is None or not weights.is_file():
        return []

    # A model depends on its config.json too, and a source of the zoo on its manifest.json
    return [weights, *sorted(weights.parent.glob("*.json"))]


def _state(files: list[Path]) -> list[tuple[Any, ...]]:
    state = []
    for file in files:
        stat = file.stat()
        times = (stat.st_mtime_ns, stat.st_ctime_ns)
        state.append((str(file), stat.st_ino, stat.st_size, *times))

    return state
