"""The model that the embeddings of a similarity index were computed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checkpoints import CHECKPOINTS
from ..config import Settings, default_pooling
from ..runs.provenance import (
    OPTIONS,
    PREPROCESSING_OPTIONS,
    Provenance,
    differing,
    read_provenance,
)
from .local_weights import find_in_zoo, zoo_folder

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


def find_index_model(dataset: Any, brain_key: str) -> IndexModel | None:
    """Find the model of a similarity index.

    The provenance of the indexed field takes precedence over the model in the config of
    the index.

    Args:
        dataset: the dataset
        brain_key: the brain key of the index

    Returns:
        an :class:`IndexModel`, or None if it is not a model of this source
    """
    config = dataset.get_brain_info(brain_key).config
    path = getattr(config, "embeddings_field", None)
    if path is not None and config.patches_field is not None:
        path = dataset._get_label_field_path(config.patches_field, path)[1]

    provenance = read_provenance(dataset, path) if path is not None else {}
    if provenance:
        return _from_provenance(provenance)

    if config.model in CHECKPOINTS:
        return IndexModel(config.model, dict(config.model_kwargs or {}), {})

    return None


def describe(model: IndexModel) -> str:
    """Describe a model by its checkpoint, its pooling and what is not the default."""
    name = model.provenance.get("checkpoint", model.options.get("checkpoint", model.name))
    default = default_pooling(CHECKPOINTS[model.name], model.options)
    pooling = model.options.get("pooling", default)
    others = [
        f"{option} {model.options[option]}"
        for option in _DESCRIBED
        if model.options.get(option, getattr(Settings, option)) != getattr(Settings, option)
    ]
    return ", ".join([name, pooling, *others])


def load_index_model(dataset: Any, brain_key: str) -> Any:
    """Load the model of a similarity index.

    Args:
        dataset: the dataset
        brain_key: the brain key of the index

    Returns:
        a :class:`fiftyone_hiera.models.embedding.HieraEmbeddingModel`

    Raises:
        ValueError: if the model is not of this source, or has changed since
    """
    from ..zoo_model import load

    found = find_index_model(dataset, brain_key)
    if found is None:
        raise ValueError(f"The index {brain_key!r} was not computed with a Hiera model")

    weights = find_in_zoo(CHECKPOINTS[found.name], zoo_folder())
    model = load(found.name, weights, found.options)
    provenance = model.embedder.provenance
    names = differing(found.provenance, provenance) if found.provenance else []
    if names:
        raise ValueError(
            f"The index {brain_key!r} was computed with "
            f"{found.provenance['checkpoint']!r}, which now differs in "
            f"{', '.join(names)}. Compute the index again"
        )

    return model


def _from_provenance(provenance: Provenance) -> IndexModel:
    names = [*OPTIONS, *PREPROCESSING_OPTIONS]
    options = {name: provenance[name] for name in names if name in provenance}
    if options["dtype"] == "float32":
        options.pop("engine", None)  # the embeddings are the same, so take the fastest

    name = provenance["checkpoint"]
    if name in CHECKPOINTS:
        return IndexModel(name, options, provenance)

    return IndexModel(_CARRIER, {**options, "checkpoint": name}, provenance)
