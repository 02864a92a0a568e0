"""Compute 2-D maps, FiftyOne's visualizations, and add the new samples of later runs."""

from __future__ import annotations

import base64
import pickle
import zlib
from typing import Any, NamedTuple

import fiftyone.brain as fob
import numpy as np
import numpy.typing as npt
from fiftyone.brain.visualization import VisualizationResults

from ..runs.fiftyone_internals import all_slices, label_path
from ..runs.parts import match_embeddings
from ..runs.target import Target

METHODS = {"umap": "UMAP", "tsne": "t-SNE", "pca": "PCA"}
"""The label of each method."""


class MapSource(NamedTuple):
    """What a map is computed from, and how.

    Args:
        embeddings_field: the field of the embeddings; for patches, the labels' attribute
        patches_field: the field of the patches; None for whole images
        method: one of :data:`METHODS`
    """

    embeddings_field: str
    patches_field: str | None
    method: str

    def __str__(self) -> str:
        where = "" if self.patches_field is None else f" of {self.patches_field!r}"
        method = METHODS.get(self.method, self.method)
        return f"field {self.embeddings_field!r}{where} by {method}"


def check_growth(
    dataset: Any, brain_key: str, source: MapSource, *, overwrite: bool
) -> None:
    """Check that a brain run is a map to which samples can be added.

    Args:
        dataset: the dataset
        brain_key: the brain key of the run
        source: what the samples' map would be computed from
        overwrite: whether the run recomputes the embeddings in the field

    Raises:
        ValueError: if it is another kind of run, a map of other embeddings or by another
            method, or if its method cannot add samples
    """
    config = dataset.get_brain_info(brain_key).config
    taken = f"Brain key {brain_key!r} is taken"
    advice = "choose another or delete that brain run"
    if config.type != "visualization":
        raise ValueError(f"{taken} by a run of type {config.type!r}, not a map: {advice}")

    held = MapSource(config.embeddings_field, config.patches_field, config.method)
    if held != source:
        raise ValueError(f"{taken} by a map of {held}, not of {source}: {advice}")

    if source.method == "tsne":
        raise ValueError(f"{taken}, and t-SNE cannot add samples to a map: {advice}")

    if overwrite:
        raise ValueError(
            f"{taken} by a map of the embeddings that 'Overwrite' replaces: {advice}"
        )


def compute_map(target: Target, key: str, method: str) -> None:
    """Compute the 2-D map, or add to it the samples that it does not have.

    Points of samples or patches that were deleted are removed from it.

    Args:
        target: the field of the embeddings, which are stored, and the samples
        key: the brain key
        method: one of :data:`METHODS`

    Raises:
        ValueError: if FiftyOne cannot add the samples
    """
    dataset = target.dataset
    if key in dataset.list_brain_runs():
        grow_map(target, key)
        return

    try:
        results = fob.compute_visualization(
            target.samples,
            patches_field=target.patches_field,
            embeddings=target.name,
            brain_key=key,
            method=method,
            progress=False,
        )
        # With points on the samples, the App selects by a polygon instead of IDs; FiftyOne
        # cannot do so for patches
        if target.patches_field is None and not dataset.has_field(key):
            results.index_points(create_index=False, progress=False)
    except BaseException:
        # FiftyOne registers a brain run before it computes anything
        if key in dataset.list_brain_runs():
            dataset.delete_brain_run(key)

        raise


def grow_map(target: Target, key: str) -> None:
    """Add the samples that a map does not have, and remove the points of deleted ones.

    Raises:
        ValueError: if FiftyOne cannot add the samples
    """
    results = _load(target.dataset, key)
    embedded = match_embeddings(target, target.samples, True)
    field = results.config.points_field
    has_index = field in target.dataset.list_indexes()
    if has_index:
        # It refuses points outside of the area of those that it was created for
        target.dataset.drop_index(field)

    try:
        if results.needs_update(embedded):
            results.add_samples(embedded, progress=False)
        else:
            results.save()
    finally:
        if has_index:
            results.index_points(field, progress=False)


def _load(dataset: Any, key: str) -> VisualizationResults:
    """Load a map without the points of what was deleted meanwhile."""
    loaded = dataset.load_brain_results(key, cache=False, load_view=False)
    if loaded is None:
        raise ValueError(f"Brain run {key!r} has no results: delete it")

    config, label_ids = loaded.config, loaded.label_ids
    ids, path = loaded.sample_ids, "id"
    if config.patches_field is not None:
        ids, path = label_ids, f"{label_path(dataset, config.patches_field)[1]}.id"

    samples = all_slices(dataset)
    kept = np.isin(ids, samples.values(path, unwind=True))
    reducer = loaded.reducer_blob
    if config.method == "umap" and not kept.all():
        reducer = _keep_fitted(reducer, kept)

    return VisualizationResults(
        samples,
        config,
        key,
        loaded.points[kept],
        sample_ids=loaded.sample_ids[kept],
        label_ids=None if label_ids is None else label_ids[kept],
        reducer_blob=reducer,
    )


def _keep_fitted(reducer_blob: str, kept: npt.NDArray[np.bool_]) -> str:
    """Remove points from the stored UMAP, which was fitted to the first of all points."""
    reducer = pickle.loads(zlib.decompress(base64.b64decode(reducer_blob)))
    reducer.embedding_ = reducer.embedding_[kept[: len(reducer.embedding_)]]
    return base64.b64encode(zlib.compress(pickle.dumps(reducer))).decode("ascii")
