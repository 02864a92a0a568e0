"""Which model made the vectors of a similarity index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checkpoints import CHECKPOINTS
from ..config import Settings, default_pooling
from ..runs.provenance import Provenance, differing, read_provenance
from .local_weights import find_in_zoo, zoo_folder

# Any entry takes weights of the user's own; this one has nothing to download
_CARRIER = "hiera-nano-digits"

# The options besides the pooling that tell indexes of one checkpoint apart
_SEEN = ("stage", "image_size", "squash")


@dataclass(frozen=True)
class IndexModel:
    """The model of an index.

    Args:
        name: the entry of the zoo
        options: its options
        record: what made the vectors, where that is recorded
    """

    name: str
    options: dict[str, Any]
    record: Provenance


def find_index_model(dataset: Any, brain_key: str) -> IndexModel | None:
    """Find out which model made an index.

    The record of the field that was indexed knows best. Without one, it is the model
    and the options that the index was built with.

    Args:
        dataset: the dataset
        brain_key: the key of the index

    Returns:
        an :class:`IndexModel`, or None if it is none of this source
    """
    config = dataset.get_brain_info(brain_key).config
    path = getattr(config, "embeddings_field", None)
    if path is not None and config.patches_field is not None:
        path = dataset._get_label_field_path(config.patches_field, path)[1]

    record = read_provenance(dataset, path) if path is not None else {}
    if record:
        return _from_record(record)

    if config.model in CHECKPOINTS:
        return IndexModel(config.model, dict(config.model_kwargs or {}), {})

    return None


def describe(model: IndexModel) -> str:
    """Say in a few words which model it is."""
    name = model.record.get("checkpoint", model.options.get("checkpoint", model.name))
    usual = default_pooling(CHECKPOINTS[model.name], model.options)
    pooling = model.options.get("pooling", usual)
    others = [
        f"{option} {model.options[option]}"
        for option in _SEEN
        if model.options.get(option, getattr(Settings, option)) != getattr(Settings, option)
    ]
    return ", ".join([name, pooling, *others])


def load_index_model(dataset: Any, brain_key: str) -> Any:
    """Load the model that made an index.

    Args:
        dataset: the dataset
        brain_key: the key of the index

    Returns:
        a :class:`fiftyone_hiera.models.embedding.HieraEmbeddingModel`

    Raises:
        ValueError: if that model cannot be had
    """
    from ..zoo_model import load

    found = find_index_model(dataset, brain_key)
    if found is None:
        raise ValueError(f"The index {brain_key!r} was not made by a model of this source")

    weights = find_in_zoo(CHECKPOINTS[found.name], zoo_folder())
    model = load(found.name, weights, found.options)
    names = differing(found.record, model.embedder.provenance) if found.record else []
    if names:
        raise ValueError(
            f"The index {brain_key!r} was made by {found.record['checkpoint']!r}, but what "
            f"there is under this name now differs in {', '.join(names)}"
        )

    return model


def _from_record(record: Provenance) -> IndexModel:
    names = ["pooling", "normalize", "dtype", "fast_decoding"]
    names += ["stage", "image_size", "squash"]
    if record["dtype"] != "float32":
        names.append("engine")  # in float32, this machine's best gives the same

    options = {name: record[name] for name in names if name in record}
    name = record["checkpoint"]
    if name in CHECKPOINTS:
        return IndexModel(name, options, record)

    return IndexModel(_CARRIER, {**options, "checkpoint": name}, record)
