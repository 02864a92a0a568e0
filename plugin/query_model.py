"""Find the model of a similarity index, load it, and keep it for the next search."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints import CHECKPOINTS
from ..config import Settings, default_pooling
from ..embedding.provenance import RECORDED_OPTIONS, Provenance, differing
from ..hiera.hub import WEIGHTS_NAME
from ..runs.index_model import read_index_provenance
from .allowed_models import AllowedModels
from .local_weights import find_in_zoo

# Every zoo entry accepts the option checkpoint; this one has nothing to download
_CARRIER = "hiera-nano-digits"

# The options besides the pooling that a description mentions if they are not the default
_DESCRIBED = ("stage", "image_size", "squash")


@dataclass(frozen=True)
class IndexModel:
    """The model of a similarity index.

    Args:
        name: the name of the zoo entry
        options: the options to load it with
        provenance: the provenance of the indexed embeddings; empty if not recorded
    """

    name: str
    options: dict[str, Any]
    provenance: Provenance

    @property
    def pooling(self) -> str:
        """The pooling of the embeddings."""
        default = default_pooling(CHECKPOINTS[self.name], self.options)
        return str(self.options.get("pooling", default))

    def check(self, allowed: AllowedModels) -> None:
        """Check that the model is allowed, under any name that its weights have.

        Raises:
            ValueError: if it is not
        """
        if "checkpoint" in self.options:
            allowed.check(self.options["checkpoint"], None)
            return

        file = CHECKPOINTS[self.name].file
        if not any(
            checkpoint.file == file and self.pooling in checkpoint.poolings
            for checkpoint in allowed.checkpoints
        ):
            allowed.check_checkpoint(CHECKPOINTS[self.name])

    def find_files(self) -> list[Path]:
        """Find the files on disk that the model is loaded from, and those beside them."""
        checkpoint = CHECKPOINTS[self.name]
        weights = find_in_zoo(checkpoint) or checkpoint.file.cached()
        if "checkpoint" in self.options:
            path = Path(self.options["checkpoint"]).expanduser()
            weights = path / WEIGHTS_NAME if path.is_dir() else path

        if weights is None or not weights.is_file():
            return []

        # A model depends on its config.json too, a source of the zoo on its manifest.json
        return [weights, *sorted(weights.parent.glob("*.json"))]


class KeptModel:
    """Loads models of indexes, for one thread at a time, and keeps the last one.

    A model is released before another one is loaded, and loaded again if its files have
    changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: object = None
        self._model: Any = None

    @contextlib.contextmanager
    def use(self, brain_key: str, found: IndexModel) -> Iterator[Any]:
        """Load the model of a similarity index, unless it is the last one.

        Yields:
            a :class:`fiftyone_hiera.models.embedding.HieraEmbeddingModel`, for use in
            this context only

        Raises:
            ValueError: if the model has changed since the index was computed
        """
        from ..zoo_model import load

        with self._lock:
            key = (found.name, found.options, [*map(_state, found.find_files())])
            if key != self._key:
                self._key = self._model = None
                weights = find_in_zoo(CHECKPOINTS[found.name])
                self._model = load(found.name, weights, found.options)
                self._key = key

            provenance = self._model.embedder.provenance
            names = differing(found.provenance, provenance) if found.provenance else []
            if names:
                raise ValueError(
                    f"The index {brain_key!r} was computed with "
                    f"{found.provenance['checkpoint']!r}, which now differs in "
                    f"{', '.join(names)}. Compute the index again"
                )

            yield self._model


def find_index_model(dataset: Any, brain_key: str) -> IndexModel | None:
    """Find the model of a similarity index; None if it is not one of this source.

    The provenance of the index takes precedence over that of its field, and this one over
    the model in the config of the index.
    """
    config = dataset.get_brain_info(brain_key).config
    provenance = read_index_provenance(dataset, config)
    if not provenance:
        if config.model in CHECKPOINTS:
            return IndexModel(config.model, dict(config.model_kwargs or {}), {})

        return None

    options = {name: provenance[name] for name in RECORDED_OPTIONS if name in provenance}
    if options["dtype"] == "float32":
        options.pop("engine", None)  # the embeddings are the same, so take the fastest

    name = provenance["checkpoint"]
    if name in CHECKPOINTS:
        return IndexModel(name, options, provenance)

    return IndexModel(_CARRIER, {**options, "checkpoint": name}, provenance)


def describe(model: IndexModel) -> str:
    """Describe a model by its checkpoint, its pooling and what is not the default."""
    name = model.provenance.get("checkpoint", model.options.get("checkpoint", model.name))
    others = [
        f"{option} {model.options[option]}"
        for option in _DESCRIBED
        if model.options.get(option, getattr(Settings, option)) != getattr(Settings, option)
    ]
    return ", ".join([name, model.pooling, *others])


def _state(file: Path) -> tuple[Any, ...]:
    stat = file.stat()
    return file, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
