"""What compute_hiera_embeddings is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

_OTHER_NAMES = {
    "embedding_type": "pooling",
    "embedding_types": "pooling",
    "field_name": "embeddings_field",
    "emb_field": "embeddings_field",
}
"""Names that the plugin people used before takes, or documents."""

_BOXES = {
    "similarity_brain_key": "similarity_index",
    "visualization_brain_key": "visualization",
    "visualization_method": "visualization",
}
"""What a detail is a detail of."""

WHOLE = "_whole"
"""In place of a patches field, which cannot begin so: whole images or frames."""

_HOSTS = ("delegate", "view_target", "custom_view_target")
"""What may come with them, and is not for the run."""


@dataclass(frozen=True)
class EmbeddingParams:
    """The parameters of compute_hiera_embeddings.

    Args:
        model_name (None): the name of a checkpoint; None is hiera-tiny
        pooling (None): see :class:`fiftyone_hiera.config.Settings`
        embeddings_field (None): the field to store the vectors in; None is "hiera"
            or, if that holds other vectors, "hiera_2", and so on
        patches_field (None): a field of detections or polylines whose patches are
            embedded, instead of the whole images or frames
        batch_size (None): the number of images in a forward pass
        num_workers (None): the number of threads that read images
        overwrite (False): whether to embed what has a vector already
        failure_tag (None): a tag for the samples that fail
        similarity_index (False): whether to build a similarity index
        similarity_brain_key (None): its brain key; None is "hiera_similarity" or,
            if that is taken, "hiera_similarity_2", and so on
        visualization (False): whether to draw a 2-D map
        visualization_brain_key (None): its brain key; None is "hiera_map" or, if
            that is taken, "hiera_map_2", and so on
        visualization_method (None): "umap", "tsne" or "pca"; None is the first that
            is installed
    """

    model_name: str | None = None
    pooling: str | None = None
    embeddings_field: str | None = None
    patches_field: str | None = None
    batch_size: int | None = None
    num_workers: int | None = None
    overwrite: bool = False
    failure_tag: str | None = None
    similarity_index: bool = False
    similarity_brain_key: str | None = None
    visualization: bool = False
    visualization_brain_key: str | None = None
    visualization_method: str | None = None


def rename_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Give parameters the names of :class:`EmbeddingParams`.

    A brain key or method without its box checks the box.

    Args:
        params: the parameters, which are not changed

    Returns:
        a dict

    Raises:
        ValueError: if a parameter is given twice
    """
    renamed: dict[str, Any] = {}
    for given, value in params.items():
        name = _OTHER_NAMES.get(given, given)
        if name in renamed and renamed[name] != value:
            names = [n for n in params if _OTHER_NAMES.get(n, n) == name]
            raise ValueError(
                f"{' and '.join(names)} are the same, but {renamed[name]!r} and {value!r} "
                "were given"
            )

        renamed[name] = value

    for detail, box in _BOXES.items():
        if renamed.get(detail):
            renamed.setdefault(box, True)

    return renamed


def parse_params(params: Mapping[str, Any]) -> EmbeddingParams:
    """Read the parameters; what a form left empty counts as not given.

    Args:
        params: the parameters, by the names of :class:`EmbeddingParams`

    Returns:
        an :class:`EmbeddingParams`
    """
    names = [field.name for field in fields(EmbeddingParams)]
    empty = (None, "", WHOLE)
    given = {name: params[name] for name in names if params.get(name) not in empty}
    return EmbeddingParams(**given)


def check_names(params: Mapping[str, Any]) -> None:
    """Check that there are no parameters but those of the operator.

    Args:
        params: the parameters, by the names of :class:`EmbeddingParams`

    Raises:
        ValueError: if there are; the message gives the valid ones
    """
    names = [field.name for field in fields(EmbeddingParams)]
    unknown = sorted(params.keys() - {*names, *_HOSTS})
    if unknown:
        raise ValueError(f"Unknown parameters {unknown}. Valid are {[*names, *_HOSTS]}")
