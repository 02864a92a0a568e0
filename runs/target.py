"""Read and write the embeddings in a field of samples, frames or labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import fiftyone.core.collections as foc
import fiftyone.core.fields as fof
import fiftyone.core.labels as fol
import fiftyone.core.media as fom
import fiftyone.core.view as fov
import numpy as np
from fiftyone.core.odm.utils import validate_field_name

from ..embedding.jobs import Embedded, Embeddings, Part
from ..errors import invalid
from .fiftyone_internals import (
    all_slices,
    dataset_of,
    flatten_dynamic_groups,
    frame_collection,
    label_path,
    sample_collection,
    schema_lock,
    show_field,
)
from .patches_fields import check_patches_field
from .refused import MOST_BYTES, document_size, refused_ids
from .schema import add_field, check_field_name, describe_type, find_stored_field
from .views import changes, check_groups, check_videos, is_generated, unhide_field

logger = logging.getLogger(__name__)


class Target:
    """A field of embeddings and the samples that they are computed for.

    Args:
        samples: a :class:`fiftyone.core.collections.SampleCollection`
        embeddings_field: the name of the field; for patches, of the labels' attribute;
            None if the embeddings are stored elsewhere
        patches_field (None): the field of detections or polylines

    Attributes:
        samples: the samples; those in its groups for a view of dynamic groups, and with
            the field for a view that hides it
        dataset: their dataset
        media_type: ``"image"`` or ``"video"``
        name: the name of the field or attribute, without what comes before it; empty
            without a field
        path: the path of the field in the dataset; empty without a field
        frames_prefix: ``"frames."`` for videos, ``""`` for images
        parts_prefix: the path of the frames or labels, up to its last ``"."``
        patches_field: the path of the field of labels; None for whole images
        has_points: whether these labels are polylines

    Raises:
        ValueError: if the samples or a field cannot be embedded
    """

    def __init__(
        self,
        samples: foc.SampleCollection,
        embeddings_field: str | None,
        patches_field: str | None = None,
    ) -> None:
        if embeddings_field is not None:
            check_field_name("embeddings_field", embeddings_field)

        grouped, samples = samples, _flatten(samples)
        self.media_type = _media_type(samples)
        self.dataset = dataset_of(samples)
        self.frames_prefix = "frames." if self.media_type == fom.VIDEO else ""
        self.parts_prefix: str = self.frames_prefix
        self.name = (embeddings_field or "").removeprefix(self.frames_prefix)
        self.patches_field = check_patches_field(samples, patches_field)
        self.has_points = False
        if self.patches_field is not None:
            label_type, root = label_path(self.dataset, self.patches_field)
            self.has_points = label_type in (fol.Polyline, fol.Polylines)
            self.parts_prefix = f"{root}."

        self._check_is_name(embeddings_field)
        if samples is not grouped:
            check_groups(grouped, self.input_paths)

        if self.frames_prefix:
            check_videos(samples)

        self.path = self.parts_prefix + self.name if self.name else ""
        self.samples = samples
        if self.has_field:
            self.samples = unhide_field(samples, self.path)
            self._check_field()

    @property
    def has_field(self) -> bool:
        """Whether there is a field for the embeddings."""
        return bool(self.path)

    @property
    def has_parts(self) -> bool:
        """Whether frames or patches are embedded, not whole images."""
        return bool(self.parts_prefix)

    @property
    def input_paths(self) -> list[str]:
        """The paths of what is embedded: files, and frames and labels in them."""
        paths = ["id", "filepath"]
        if self.frames_prefix:
            paths += ["frames.id", "frames.frame_number"]

        if self.patches_field is not None:
            shape = "points" if self.has_points else "bounding_box"
            paths += [self.parts_prefix + "id", self.parts_prefix + shape]

        return paths

    @property
    def changes_inputs(self) -> bool:
        """Whether the samples are a view that may show other inputs than those stored."""
        return changes(self.samples, self.input_paths)

    def find_field(self) -> bool:
        """Return whether the field exists, even if another process just added it."""
        if not self.has_field:
            return False

        with schema_lock:
            if self.dataset.get_field(self.path) is not None:
                return True

            if find_stored_field(self.dataset, self.path) is None:
                return False

            show_field(self.dataset, self.path)
            self._check_field()
            return True

    def add_field(self) -> None:
        """Add the field to the dataset, if it does not exist yet."""
        with schema_lock:
            if not self.find_field():
                add_field(self.dataset, self.path, fof.VectorField)

    def select(self, sample_ids: Sequence[str]) -> fov.DatasetView:
        """Return a view of samples by ID.

        It is a view into the dataset, not into the samples of this target: their
        stages may not match the samples any more, and would run again.
        """
        return fov.make_optimized_select_view(self.dataset, sample_ids, flatten=True)

    def read(self, parts: Sequence[tuple[str, Part]]) -> dict[str, Any]:
        """Read embeddings.

        Args:
            parts: the parts, each with the ID of the sample that holds it

        Returns:
            a dict from the IDs of parts to embeddings, None where there is none
        """
        view = self.select([*dict.fromkeys(sample_id for sample_id, _ in parts)])
        if self.frames_prefix:
            view = view.select_frames([part.document_id for _, part in parts])

        return dict(_pair(*view.values([self.parts_prefix + "id", self.path])))

    def remove(self, batch: Sequence[Embedded]) -> None:
        """Remove embeddings where they are still these."""
        held = self.read([(result.job.sample_id, result.part) for result in batch])
        same = [
            result.part
            for result in batch
            if np.array_equal(np.asarray(held.get(result.part.id)), result.embedding)
        ]
        if same:
            self.store(same, [None] * len(same))

    def store(
        self, parts: Sequence[Part], embeddings: Sequence[Any] | Embeddings
    ) -> dict[str, str]:
        """Write embeddings, each to the document of its own ID.

        Args:
            parts: the N parts
            embeddings: their embeddings, of shape (N, D), or N times None

        Returns:
            a dict from the IDs of the parts whose documents MongoDB refuses to change to
            the reasons; all others are stored
        """
        rows = {part.id: (part, e) for part, e in zip(parts, embeddings, strict=True)}
        refused: dict[str, str] = {}
        while rows:
            try:
                self._set([*rows.values()])
                break
            except ValueError as error:
                reasons = refused_ids(error)
                ids = [
                    id
                    for id, (part, _) in rows.items()
                    if {id, part.document_id} & {*reasons}
                ]
                if not ids:
                    raise

                for id in ids:
                    part, embedding = rows.pop(id)
                    reason = reasons.get(id, reasons.get(part.document_id))
                    refused[id] = self._explain(part.document_id, embedding, reason)

        return refused

    def tag(self, sample_ids: Sequence[str], tag: str) -> None:
        """Add a tag to samples."""
        try:
            self.select(sample_ids).tag_samples(tag)
        except ValueError as error:
            if not refused_ids(error):
                raise

            logger.warning("Cannot tag all of %s with %r: %s", [*sample_ids], tag, error)

    def untag(self, sample_ids: Sequence[str], tag: str) -> None:
        """Remove a tag from the samples that have it."""
        self.select(sample_ids).match_tags(tag).untag_samples(tag)

    def count_embeddings(self) -> tuple[int, int]:
        """Count the embeddings in the whole dataset, and in the samples of this target."""
        if not self.find_field():
            return 0, 0

        whole = all_slices(self.dataset).count(self.path)
        return whole, self.samples.count(self.path)

    def clear(self) -> None:
        """Remove all embeddings in the field from the whole dataset."""
        dataset = self.dataset
        clear = (
            dataset.clear_frame_field if self.frames_prefix else dataset.clear_sample_field
        )
        clear(self.path.removeprefix(self.frames_prefix))

    def _set(self, rows: Sequence[tuple[Part, Any]]) -> None:
        if self.patches_field is None:
            values = {part.id: embedding for part, embedding in rows}
            self.dataset.set_values(self.path, values, key_field=self.frames_prefix + "id")
            return

        document = "frame_id" if self.frames_prefix else "sample_id"
        self.dataset.set_label_values(
            self.path,
            [
                {document: part.document_id, "label_id": part.id, "value": embedding}
                for part, embedding in rows
            ],
        )

    def _explain(self, document_id: str, embedding: Embeddings, reason: str | None) -> str:
        """Explain why MongoDB refuses to add an embedding to a document."""
        kind = "frame" if self.frames_prefix else "sample"
        if reason is not None:
            return f"The validator of the database refuses {kind} {document_id}: {reason}"

        find_collection = frame_collection if self.frames_prefix else sample_collection
        size = document_size(find_collection(self.dataset), document_id)
        advice = "use a model with shorter embeddings"
        if not self.frames_prefix:
            advice += ", or store them in an index alone: a brain_key, no embeddings_field"

        return (
            f"The document of {kind} {document_id} has {size:,} bytes, and an embedding of "
            f"{embedding.nbytes:,} bytes would pass the {MOST_BYTES:,} that MongoDB "
            f"stores: {advice}"
        )

    def _check_is_name(self, embeddings_field: str | None) -> None:
        root, dot, name = self.name.rpartition(".")
        if not dot:
            return

        expected = "expected a name without '.', also for patches"
        path = self.frames_prefix + root
        labels = (self.patches_field, self.parts_prefix.removesuffix("."))
        if self.patches_field and name and path in labels:
            expected = f"it is an attribute of the labels, pass {name!r}"

        raise invalid("embeddings_field", embeddings_field, expected)

    def _check_field(self) -> None:
        field = self.dataset.get_field(self.path)
        if field is None:
            validate_field_name(self.name)
            return

        if not isinstance(field, fof.VectorField):
            raise ValueError(
                f"The field {self.path!r} is of type {describe_type(field)}, not "
                "VectorField: choose another name for the embeddings"
            )


def _flatten(samples: foc.SampleCollection) -> foc.SampleCollection:
    if not isinstance(samples, foc.SampleCollection):
        raise ValueError(
            f"samples must be a FiftyOne dataset or view, found {type(samples).__name__}"
        )

    if is_generated(samples):
        raise ValueError(
            "Views of patches, frames or clips are copies: pass the dataset or a view of "
            "it, and patches_field=... to embed patches"
        )

    flat = flatten_dynamic_groups(samples)
    if flat is not samples and flat.media_type == fom.GROUP:
        raise ValueError(
            "Cannot embed dynamic groups of a grouped dataset: pass a view of slices, "
            "dataset.select_group_slices(...), without group_by()"
        )

    return flat


def _media_type(samples: foc.SampleCollection) -> str:
    media_type = samples.media_type or fom.IMAGE  # None for an empty dataset
    if media_type == fom.GROUP:
        raise fom.SelectGroupSlicesError((fom.IMAGE, fom.VIDEO))

    if media_type not in (fom.IMAGE, fom.VIDEO):
        raise fom.MediaTypeError(
            f"Cannot embed media of type {media_type!r}, only images and videos"
        )

    return str(media_type)


def _pair(ids: Any, values: Any) -> Iterator[tuple[str, Any]]:
    """Pair IDs with values; both are lists of lists of the same form, or none."""
    if isinstance(ids, str):
        yield ids, values
        return

    for some_ids, some_values in zip(ids or [], values or [], strict=True):
        yield from _pair(some_ids, some_values)
