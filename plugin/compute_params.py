"""The parameters of compute_hiera_embeddings, by the names that callers give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

WHOLE = "_whole"
"""The value of ``patches_field`` that stands for whole images or frames.

Names of fields cannot start with an underscore.
"""

_OTHER_NAMES = {
    "embedding_type": "pooling",
    "embedding_types": "pooling",
    "field_name": "embeddings_field",
    "emb_field": "embeddings_field",
}
"""The parameter names of earlier Hiera plugins."""

_BOXES = {
    "similarity_brain_key": "similarity_index",
    "similarity_backend": "similarity_index",
    "similarity_table": "similarity_index",
    "similarity_metric": "similarity_index",
    "index_only": "similarity_index",
    "visualization_brain_key": "visualization",
    "visualization_method": "visualization",
}
"""The checkbox that each parameter of a brain run belongs to."""

_FIFTYONE_PARAMS = ("delegate", "view_target", "custom_view_target")
"""Parameters that FiftyOne reads, not the run."""


@dataclass(frozen=True)
class EmbeddingParams:
    """The parameters of compute_hiera_embeddings.

    Args:
        model_name: the name of a checkpoint; by default the first that is allowed,
            hiera-tiny if all are
        pooling (None): see :class:`fiftyone_hiera.config.Settings`
        embeddings_field (None): the field to store the embeddings in; None is "hiera"
            or, if that holds other embeddings, "hiera_2", and so on
        patches_field (None): a field of detections or polylines whose patches are
            embedded, instead of the whole images or frames
        batch_size (None): the number of images per forward pass
        num_workers (None): the number of threads that read images
        overwrite (False): whether to recompute existing embeddings
        failure_tag (None): a tag for the samples that fail
        similarity_index (False): whether to feed a similarity index
        similarity_brain_key (None): its brain key; None is "hiera_similarity" or,
            if that is of other embeddings, "hiera_similarity_2", and so on
        similarity_backend (None): its backend; None is that of the index if it exists, or
            FiftyOne's default
        similarity_table (None): the table, collection or index of the backend; None is a
            new one
        similarity_metric (None): its metric; None is "cosine"
        index_only (False): whether to store the embeddings in the index alone
        visualization (False): whether to compute a 2-D visualization
        visualization_brain_key (None): its brain key; None is "hiera_map" or, if
            that is another map, "hiera_map_2", and so on
        visualization_method (None): "umap", "tsne" or "pca"; None is "umap" if it is
            installed, else "pca"
    """

    model_name: str
    pooling: str | None = None
    embeddings_field: str | None = None
    patches_field: str | None = None
    batch_size: int | None = None
    num_workers: int | None = None
    overwrite: bool = False
    failure_tag: str | None = None
    similarity_index: bool = False
    similarity_brain_key: str | None = None
    similarity_backend: str | None = None
    similarity_table: str | None = None
    similarity_metric: str | None = None
    index_only: bool = False
    visualization: bool = False
    visualization_brain_key: str | None = None
    visualization_method: str | None = None


def rename_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Rename parameters of earlier Hiera plugins to those of :class:`EmbeddingParams`.

    Also checks the checkbox of a brain run if its brain key or method is given.

    Raises:
        ValueError: if a parameter has two different values
    """
    renamed: dict[str, Any] = {}
    for given, value in params.items():
        name = _OTHER_NAMES.get(given, given)
        if name in renamed and renamed[name] != value:
            names = [n for n in params if _OTHER_NAMES.get(n, n) == name]
            raise ValueError(
                f"{' and '.join(names)} are the same parameter, but {renamed[name]!r} and "
                f"{value!r} were given"
            )

        renamed[name] = value

    for name, box in _BOXES.items():
        if renamed.get(name):
            renamed.setdefault(box, True)

    return renamed


def check_names(params: Mapping[str, Any]) -> None:
    """Check that there are no parameters but those of :class:`EmbeddingParams`.

    Raises:
        ValueError: if there are; the message lists the valid ones
    """
    valid = [*(field.name for field in fields(EmbeddingParams)), *_FIFTYONE_PARAMS]
    unknown = sorted(params.keys() - {*valid})
    if unknown:
        raise ValueError(f"Unknown parameters {unknown}. Valid are {valid}")


def parse_params(params: Mapping[str, Any], default_model: str) -> EmbeddingParams:
    """Parse the parameters; empty inputs of a form count as not given.

    Args:
        params: the parameters, by the names of :class:`EmbeddingParams`
        default_model: the name of the checkpoint if none is given
    """
    names = [field.name for field in fields(EmbeddingParams)]
    empty = (None, "", WHOLE)
    given = {name: params[name] for name in names if params.get(name) not in empty}
    return EmbeddingParams(**{"model_name": default_model, **given})
