"""Attach the output of ``embed_files`` to a dataset."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fiftyone.core.collections as foc
import fiftyone.core.utils as fou
import numpy as np

from ..embedding.arguments import to_boolean
from ..embedding.jobs import Embeddings, Part
from ..errors import check_choice
from ..files.arrow import pa, pq
from ..files.output_folder import OutputFolder, reading_output
from ..files.output_record import OutputRecord, read_output_record
from ..images.opening import to_local
from .field_claim import FieldClaim
from .parts import match_embeddings
from .report import Notice
from .target import Target

_COLUMNS = {"id": "id", "filepath": "uri"}
"""The columns of the output, by what they are compared with."""

_BATCH_SIZE = 1000

logger = logging.getLogger(__name__)


@dataclass
class AttachReport:
    """The report of :func:`attach`, counted in samples.

    Args:
        attached: the number of embeddings stored
        skipped: the number of embeddings that existed already
        missing: the number of samples that are not in the output's complete files
        failed: the samples whose row holds an error, with its reason, and those whose
            document MongoDB refuses to change
        seconds: the duration
    """

    attached: int = 0
    skipped: int = 0
    missing: int = 0
    failed: list[Notice] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        return "\n".join(
            [
                f"attached  {self.attached:>11,}",
                f"skipped   {self.skipped:>11,}",
                f"missing   {self.missing:>11,}",
                f"failed    {len(self.failed):>11,}",
                f"seconds   {self.seconds:>13,.1f}",
            ]
        )


@dataclass(frozen=True)
class _Found:
    """A row of the output that samples wait for."""

    sample_ids: Sequence[str]
    uri: str
    vector: Embeddings | None
    error: str | None


def attach(
    samples: foc.SampleCollection,
    embeddings_field: str,
    out: Path,
    by: str,
    overwrite: bool,
) -> AttachReport:
    """Attach embeddings; see :func:`fiftyone_hiera.attach_embeddings`."""
    start = time.perf_counter()
    check_choice("by", by, _COLUMNS)
    overwrite = to_boolean("overwrite", overwrite)
    target = Target(samples, embeddings_field)
    if target.has_parts:
        raise ValueError("Embeddings of files are of images, and these samples are videos")

    folder = OutputFolder(out)
    record = _read_record(folder)
    claim = FieldClaim(target, record.provenance)
    claim.check(overwrite=overwrite)
    wanted = _read_wanted(target, by, overwrite)
    total = sum(map(len, wanted.values()))
    report = AttachReport(skipped=len(target.samples) - total)
    bar = fou.ProgressBar(total=total, progress=None if total else False)
    with bar, contextlib.closing(_find(folder, _COLUMNS[by], wanted)) as found:
        for batch in fou.iter_batches(found, _BATCH_SIZE):
            for row in batch:
                if row.error is not None:
                    report.failed += [
                        Notice(id, id, row.uri, row.error) for id in row.sample_ids
                    ]

            embedded = {
                id: row for row in batch for id in row.sample_ids if row.vector is not None
            }
            refused = _store(claim, embedded) if embedded else {}
            report.failed += [
                Notice(id, id, embedded[id].uri, reason) for id, reason in refused.items()
            ]
            report.attached += len(embedded) - len(refused)
            bar.update(sum(len(row.sample_ids) for row in batch))

    report.missing = sum(map(len, wanted.values()))
    if report.missing and not (report.attached or report.failed):
        _warn_of_no_match(folder, _COLUMNS[by], next(iter(wanted)))

    report.seconds = time.perf_counter() - start
    return report


def _warn_of_no_match(folder: OutputFolder, column: str, wanted: str) -> None:
    for path in folder.find_files()[:1]:
        held = pq.read_table(path, columns=[column])[column]
        logger.warning(
            "None of the samples is in %r: they have, for instance, %r, and its column %r "
            "%r. What is the same is compared as it is written",
            str(folder.path),
            wanted,
            column,
            held[0].as_py() if len(held) else None,
        )


def _read_record(folder: OutputFolder) -> OutputRecord:
    record = read_output_record(folder)
    if record is None:
        raise ValueError(
            f"{str(folder.path)!r} holds no output of embed_files: it has no "
            f"{folder.record.name}"
        )

    return record


def _read_wanted(target: Target, by: str, overwrite: bool) -> dict[str, list[str]]:
    """Read which samples wait for an embedding.

    Returns:
        a dict from IDs or paths to the IDs of samples
    """
    view = target.samples
    if not overwrite and target.find_field():
        view = match_embeddings(target, view, False)

    wanted: dict[str, list[str]] = {}
    for key, sample_id in zip(*view.values([by, "id"]), strict=True):
        wanted.setdefault(key, []).append(sample_id)

    return wanted


def _find(
    folder: OutputFolder, column: str, wanted: dict[str, list[str]]
) -> Generator[_Found, None, None]:
    """Find the rows that samples wait for; they are removed from what is wanted.

    Vectors are read only of row groups that hold such rows.
    """
    for path in folder.find_files():
        with reading_output(path), pq.ParquetFile(path) as file:
            if not pa.types.is_string(file.schema_arrow.field(column).type):
                raise ValueError(
                    f"The IDs in {str(folder.path)!r} are numbers, not those of samples: "
                    "use by='filepath'"
                )

            for index in range(file.num_row_groups):
                keys = file.read_row_group(index, columns=[column])[column].to_pylist()
                if column == "uri":
                    keys = [*map(to_local, keys)]

                rows = [row for row, key in enumerate(keys) if key in wanted]
                if rows:
                    columns = ["uri", "vector", "error"]
                    table = file.read_row_group(index, columns=columns).take(rows)
                    for row, found in zip(rows, _to_vectors(table), strict=True):
                        sample_ids = wanted.pop(keys[row], [])
                        yield _Found(sample_ids, *found)


def _to_vectors(table: Any) -> Iterator[tuple[str, Embeddings | None, str | None]]:
    vectors = table["vector"].combine_chunks()
    flat = vectors.values.to_numpy(zero_copy_only=False)
    flat = flat.reshape(-1, vectors.type.list_size).astype(np.float32)
    errors = table["error"].to_pylist()
    for uri, vector, error in zip(table["uri"].to_pylist(), flat, errors, strict=True):
        yield uri, vector if error is None else None, error


def _store(claim: FieldClaim, found: Mapping[str, _Found]) -> dict[str, str]:
    parts = [Part(sample_id, sample_id) for sample_id in found]
    claim.take()
    embeddings = np.stack([row.vector for row in found.values() if row.vector is not None])
    return claim.store([*found], parts, embeddings)
