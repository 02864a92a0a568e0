"""What a run embeds, and where the vectors go: samples, frames or patches."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import fiftyone.core.collections as foc
import fiftyone.core.fields as fof
import fiftyone.core.labels as fol
import fiftyone.core.media as fom
import fiftyone.core.validation as fova
import fiftyone.core.view as fov
import numpy as np
import numpy.typing as npt
from fiftyone import ViewField as F
from fiftyone.core.odm.utils import validate_field_name

from ..images.diagnostics import check_is_file
from .jobs import Job, Part, Worklist
from .patches import Box
from .provenance import stored_field

# The samples whose paths are looked up at once
_LOOK_UP = {fom.IMAGE: 500, fom.VIDEO: 5}

_FRAMES = "frames."
PATCH_TYPES = (fol.Detection, fol.Detections, fol.Polyline, fol.Polylines)


class Target:
    """A field of vectors and the samples that it is computed for.

    Args:
        samples: a :class:`fiftyone.core.collections.SampleCollection`
        embeddings_field: the name of the field; for patches, that of the
            labels' attribute
        patches_field (None): the field of detections or polylines

    Raises:
        ValueError: if the samples or the fields are not such
    """

    def __init__(
        self,
        samples: foc.SampleCollection,
        embeddings_field: str,
        patches_field: str | None = None,
    ) -> None:
        _check_name("embeddings_field", embeddings_field)
        self.media_type = _media_type(samples)
        self.dataset = samples._dataset
        self._samples = samples
        self._prefix = _FRAMES if self.media_type == fom.VIDEO else ""
        self._name = embeddings_field.removeprefix(self._prefix)
        self._root = ""
        self._patches_field = None

        if "." in self._name:
            raise ValueError(
                f"Invalid embeddings_field {embeddings_field!r}: give a name without a "
                "'.', for patches too"
            )

        if patches_field is not None:
            _check_name("patches_field", patches_field)
            self._patches_field = self._prefix + patches_field.removeprefix(self._prefix)
            fova.validate_collection_label_fields(samples, self._patches_field, PATCH_TYPES)
            self._label_type, root = self.dataset._get_label_field_path(self._patches_field)
            self._root = root.removeprefix(self._prefix) + "."

        self.path: str = self._prefix + self._root + self._name
        self._check_field()

    def find_field(self) -> bool:
        """Return whether the field exists, even if another process just added it."""
        if self.dataset.get_field(self.path) is not None:
            return True

        if stored_field(self.dataset, self.path) is None:
            return False

        self.dataset.reload()
        self._check_field()
        return True

    def add_field(self) -> None:
        """Create the field, if it does not exist yet."""
        if self.find_field():
            return

        name = self.path.removeprefix(self._prefix)
        add = (
            self.dataset.add_frame_field if self._prefix else self.dataset.add_sample_field
        )
        add(name, fof.VectorField)

    def list_work(self, *, overwrite: bool, shard: tuple[int, int] | None) -> Worklist:
        """Settle what is to be done.

        Args:
            overwrite: whether to include what has a vector already
            shard: the (index, count) of the part of the samples; None is all

        Returns:
            a :class:`Worklist`
        """
        frameless = self._add_frames(shard) if self._prefix else []
        total = sum(
            1 if parts is None else len(parts)
            for _, parts in self._ids(self._samples, shard)
        )
        pending = self._samples if overwrite else self._without_vectors()
        rows = self._ids(pending.sort_by("filepath"), shard)
        if not self._has_parts:
            sample_ids = [sample_id for sample_id, _ in rows]
            return Worklist(sample_ids, None, total - len(sample_ids))

        part_ids = {sample_id: parts for sample_id, parts in rows if parts}
        skipped = total - sum(map(len, part_ids.values()))
        if not self._root:
            # Of a video without frames, the sample stands for all of them
            part_ids |= {sample_id: [sample_id] for sample_id in frameless}

        return Worklist(list(part_ids), part_ids, skipped)

    def jobs(self, worklist: Worklist) -> Iterator[Job]:
        """Look the work up, some samples at a time.

        Args:
            worklist: the work

        Yields:
            a :class:`Job` for each sample that there still is
        """
        for sample_ids in _chunks(worklist.sample_ids, _LOOK_UP[self.media_type]):
            view = self._select(sample_ids)
            jobs = {job.sample_id: job for job in self._read_jobs(view)}
            for sample_id in sample_ids:
                if sample_id not in jobs:
                    continue  # deleted since it was worklist

                job = jobs[sample_id]
                if worklist.part_ids is None:
                    yield job
                    continue

                wanted = set(worklist.part_ids[sample_id])
                parts = [part for part in job.parts if part.id in wanted]
                yield Job(sample_id, job.path, parts)

    def store(self, parts: Sequence[Part], vectors: npt.NDArray[np.float32]) -> None:
        """Write vectors, each to the document of its own ID.

        Args:
            parts: the parts
            vectors: their vectors, of shape (N, D)
        """
        if not self._root:
            self.dataset.set_values(
                self.path,
                {part.id: vector for part, vector in zip(parts, vectors, strict=True)},
                key_field=self._prefix + "id",
            )
            return

        document = "frame_id" if self._prefix else "sample_id"
        self.dataset.set_label_values(
            self.path,
            [
                {document: part.document_id, "label_id": part.id, "value": vector}
                for part, vector in zip(parts, vectors, strict=True)
            ],
        )

    def tag(self, sample_ids: Sequence[str], tag: str) -> None:
        """Add a tag to samples."""
        self._select(sample_ids).tag_samples(tag)

    def untag(self, sample_ids: Sequence[str], tag: str) -> None:
        """Take a tag off those of the samples that have it."""
        self._select(sample_ids).match_tags(tag).untag_samples(tag)

    def count_held(self) -> tuple[int, int]:
        """Count the field's vectors.

        Returns:
            how many there are in the dataset, and how many in the samples
        """
        if not self.find_field():
            return 0, 0

        return self._everything().count(self.path), self._samples.count(self.path)

    def clear(self) -> None:
        """Remove every vector of the field from the dataset."""
        name = self.path.removeprefix(self._prefix)
        if self._prefix:
            self.dataset.clear_frame_field(name)
        else:
            self.dataset.clear_sample_field(name)

    @property
    def _has_parts(self) -> bool:
        return bool(self._prefix or self._root)

    def _check_field(self) -> None:
        field = self.dataset.get_field(self.path)
        if field is None:
            validate_field_name(self._name)
            return

        if not isinstance(field, fof.VectorField):
            raise ValueError(
                f"The field {self.path!r} is a {type(field).__name__}, not a VectorField: "
                "choose another name for the embeddings"
            )

        if self._samples.get_field(self.path) is None:
            raise ValueError(
                f"The view hides the field {self.path!r}, so that its vectors cannot be "
                "seen: give a view without select_fields() or exclude_fields()"
            )

    def _add_frames(self, shard: tuple[int, int] | None) -> list[str]:
        """Make FiftyOne know each frame by an ID; return the videos without any."""
        count = "metadata.total_frame_count"
        unknown = self._samples.exists(count, False).values(["id", "filepath"])
        files = [
            sample_id
            for sample_id, path in zip(*unknown, strict=True)
            if _in_shard(sample_id, shard) and _is_file(path)
        ]
        self._select(files).compute_metadata(progress=False)
        self._samples.exists(count).ensure_frames()

        still_unknown = self._samples.exists(count, False).values(["id", "frames.id"])
        return [
            sample_id
            for sample_id, frames in zip(*still_unknown, strict=True)
            if not frames and _in_shard(sample_id, shard)
        ]

    def _everything(self) -> Any:
        if self.dataset.media_type == fom.GROUP:
            return self.dataset.select_group_slices(_allow_mixed=True)

        return self.dataset

    def _select(self, sample_ids: Sequence[str]) -> fov.DatasetView:
        # From the dataset, not from the view: its stages may no longer choose
        # the samples that were worklist, and need not run again
        return fov.make_optimized_select_view(self.dataset, sample_ids, flatten=True)

    def _without_vectors(self) -> foc.SampleCollection:
        if not self.find_field():
            return self._samples

        missing = F(self._name).exists(False)
        if self._patches_field is not None:
            return self._samples.filter_labels(self._patches_field, missing)

        if self._prefix:
            return self._samples.match_frames(missing)

        return self._samples.exists(self._name, False)

    def _ids(
        self, view: foc.SampleCollection, shard: tuple[int, int] | None
    ) -> Iterator[tuple[str, list[str] | None]]:
        if not self._has_parts:
            for sample_id in dict.fromkeys(view.values("id")):
                if _in_shard(sample_id, shard):
                    yield sample_id, None

            return

        ids, part_ids = view.values(["id", f"{self._prefix}{self._root}id"])
        for sample_id, parts in dict(zip(ids, part_ids, strict=True)).items():
            if _in_shard(sample_id, shard):
                yield sample_id, list(_flatten(parts))

    def _read_jobs(self, view: fov.DatasetView) -> Iterator[Job]:
        paths = ["id", "filepath"]
        if self._prefix:
            paths += ["frames.id", "frames.frame_number"]
        if self._root:
            root = self._prefix + self._root
            is_line = issubclass(self._label_type, (fol.Polyline, fol.Polylines))
            paths += [root + "id", root + ("points" if is_line else "bounding_box")]

        for sample_id, path, *rest in zip(*view.values(paths), strict=True):
            yield Job(sample_id, path or "", list(self._read_parts(sample_id, rest)))

    def _read_parts(self, sample_id: str, columns: list[Any]) -> Iterator[Part]:
        documents = list(zip(*columns[:2], strict=True)) if self._prefix else []
        if not documents and not (self._prefix and self._root):
            documents = [(sample_id, None)]

        labels = columns[2:] if self._prefix else columns
        for index, (document_id, frame_number) in enumerate(documents):
            if not self._root:
                yield Part(document_id, document_id, frame_number)
                continue

            ids, shapes = ((column[index] if self._prefix else column) for column in labels)
            if isinstance(ids, str):  # a single label, not a list of them
                ids, shapes = [ids], [shapes]

            for label_id, shape in zip(ids or [], shapes or [], strict=True):
                yield Part(label_id, document_id, frame_number, self._box(shape))

    def _box(self, shape: Any) -> Box:
        if not issubclass(self._label_type, (fol.Polyline, fol.Polylines)):
            return shape or ()

        points = list(itertools.chain.from_iterable(shape or []))
        if not points:
            return ()

        (left, top), (right, bottom) = np.min(points, axis=0), np.max(points, axis=0)
        return left, top, right - left, bottom - top


def _media_type(samples: foc.SampleCollection) -> str:
    if not isinstance(samples, foc.SampleCollection):
        raise ValueError(
            f"samples must be a FiftyOne dataset or view, found {type(samples).__name__}"
        )

    if samples._dataset._is_generated:
        raise ValueError(
            "Views of patches, frames or clips are copies: give the dataset or a view of "
            "it, for patches with patches_field=..."
        )

    media_type = samples.media_type or fom.IMAGE  # None: there are no samples yet
    if media_type == fom.GROUP:
        raise fom.SelectGroupSlicesError((fom.IMAGE, fom.VIDEO))

    if media_type not in _LOOK_UP:
        raise fom.MediaTypeError(
            f"Cannot embed media of type {media_type!r}, only images and videos"
        )

    return str(media_type)


def _check_name(argument: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"Invalid {argument} {value!r}: it is the name of a field")


def _is_file(path: str) -> bool:
    # ffprobe, by which FiftyOne counts frames, would wait at a FIFO forever
    try:
        check_is_file(path)
    except (OSError, ValueError):
        return False

    return True


def _in_shard(sample_id: str, shard: tuple[int, int] | None) -> bool:
    # By the ID alone: processes that start at different times must agree
    return shard is None or zlib.crc32(sample_id.encode()) % shard[1] == shard[0]


def _flatten(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    else:
        for value in values or []:
            yield from _flatten(value)


def _chunks(values: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
