"""Options of a similarity index, and the description of its contents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..embedding.provenance import Provenance
from ..errors import OptionError, invalid


@dataclass(frozen=True)
class IndexOptions:
    """Options of the similarity index to feed.

    Args:
        brain_key: its brain key
        backend (None): the similarity backend; None is FiftyOne's default, or that of the
            index if it exists
        settings: the settings of the backend, such as ``metric`` or ``table_name``

    Raises:
        ValueError: if an option is not valid
    """

    brain_key: str
    backend: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_brain_key(self.brain_key)
        if not isinstance(self.settings, Mapping):
            raise invalid("backend_kwargs", self.settings, "expected a dict")


@dataclass(frozen=True)
class Contents:
    """Description of the vectors in an index.

    Args:
        dataset_id: the ID of the dataset
        embeddings_field: the field that also holds them, for patches an attribute of the
            labels; None if the index alone has them
        patches_field: the field of the labels; None for whole images
        dim: the number of dimensions
        provenance: the provenance of the embeddings
    """

    dataset_id: str
    embeddings_field: str | None
    patches_field: str | None
    dim: int
    provenance: Provenance


def check_brain_key(key: object) -> None:
    """Refuse a brain key that is no identifier by an :class:`OptionError`."""
    if not isinstance(key, str) or not key.isidentifier():
        raise OptionError(
            "brain_key",
            f"Invalid brain key {key!r}: use letters, digits and underscores, and begin "
            "with a letter",
        )


def to_index_options(
    brain_key: str | None, backend: str | None, backend_kwargs: Mapping[str, Any] | None
) -> IndexOptions | None:
    """Return the options of an index; None if none is asked for.

    Raises:
        ValueError: if an argument is not valid
    """
    if brain_key is not None:
        settings = {} if backend_kwargs is None else backend_kwargs
        return IndexOptions(brain_key, backend, settings)

    if backend is not None or backend_kwargs is not None:
        raise ValueError("backend and backend_kwargs are for an index: give a brain_key")

    return None
