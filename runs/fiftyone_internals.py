"""Use what FiftyOne has no public name for.

Each private attribute of FiftyOne is used in this module only, so that a release that
renames one breaks one function.
"""

from __future__ import annotations

import threading
from typing import Any

import fiftyone.core.media as fom

schema_lock = threading.RLock()
"""Held while datasets are loaded and fields are added: threads would lose some."""


def load_dataset(ctx: Any) -> Any:
    """Load the dataset of an operator's context, which keeps it; None if none is open.

    FiftyOne takes a dataset out of its table while it loads it again. Threads that did so
    at once would get two objects, and neither shows the fields that the other one adds.
    """
    with schema_lock:
        return ctx.dataset


def dataset_of(samples: Any) -> Any:
    """Return the dataset that holds the samples; for copies, the one that was generated."""
    return samples._dataset


def flatten_dynamic_groups(samples: Any) -> Any:
    """Return the samples in the groups of a view of dynamic groups, all others as is."""
    return samples.flatten() if samples._is_dynamic_groups else samples


def all_slices(dataset: Any) -> Any:
    """Return all samples of a dataset, those in all slices of a grouped one."""
    if dataset.media_type != fom.GROUP:
        return dataset

    return dataset.select_group_slices(_allow_mixed=True)


def label_path(samples: Any, label_field: str) -> tuple[type, str]:
    """Look up where the labels of a field are.

    Args:
        samples: the samples
        label_field: the name of the field, with ``"frames."`` if it is one of frames

    Returns:
        the class of the labels, and their path, such as ``"ground_truth.detections"``
    """
    label_type, path = samples._get_label_field_path(label_field)
    return label_type, path


def stored_values(samples: Any, paths: list[str]) -> tuple[list[Any], ...]:
    """Return the values of fields as they are stored, IDs as strings: a list for each path.

    FiftyOne converts boxes to floats, and fails if a single one cannot be converted.
    """
    values: tuple[list[Any], ...] = samples.values(paths, _raw=True)
    return values


def view_stages(view: Any) -> list[dict[str, Any]]:
    """Return the stages of a view as FiftyOne's App takes them."""
    stages: list[dict[str, Any]] = view._serialize()
    return stages


def dataset_id(dataset: Any) -> Any:
    """Return the ID of a dataset's document in the database."""
    return dataset._doc.id


def show_field(dataset: Any, path: str) -> None:
    """Show a field of the database in the dataset in memory."""
    is_of_frames = path.startswith("frames.")
    documents = dataset._frame_doc_cls if is_of_frames else dataset._sample_doc_cls
    path = path.removeprefix("frames.")
    with schema_lock:
        stored = documents._get_field_doc(path, reload=True)
        _, parent, _, _ = documents._parse_path(path)
        parent._declare_field(dataset, path, stored)


def show_info(dataset: Any, path: str, info: dict[str, Any]) -> None:
    """Show the info of a field, as it is in the database, in the dataset in memory."""
    # FiftyOne writes whole lists of fields, which must not be outdated
    fields = "frame_fields" if path.startswith("frames.") else "sample_fields"
    with schema_lock:
        dataset._doc.reload(fields)
        dataset.get_field(path).info = info


def show_brain_runs(dataset: Any) -> None:
    """Show the brain runs of the database in the dataset in memory."""
    with schema_lock:
        dataset._doc.reload("brain_methods")


def stages_of(samples: Any) -> list[Any]:
    """Return the stages of a dataset or view."""
    return list(samples.view()._stages)


def pipeline_of(samples: Any) -> list[dict[str, Any]]:
    """Return the stages of MongoDB's aggregation that make a dataset or view."""
    pipeline: list[dict[str, Any]] = samples._pipeline()
    return pipeline


def sample_collection(dataset: Any) -> Any:
    """Return the collection of a dataset's samples in the database."""
    return dataset._sample_collection


def frame_collection(dataset: Any) -> Any:
    """Return the collection of the frames of a dataset's videos in the database."""
    return dataset._frame_collection
