"""Store the output of ``embed_files`` in the samples of a dataset."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fiftyone.core.collections as foc
import fiftyone.core.utils as fou
import numpy as np

from ..embedding.arguments import to_boolean
from ..embedding.jobs import Embedded, Embeddings, Job, Part
from ..errors import check_choice
from ..files.arrow import pa, pq
from ..files.output_folder import OutputFolder, reading_output
from ..files.output_record import read_output_record
from ..images.opening import to_local
from .field_claim import FieldClaim
from .parts import match_embeddings
from .report import Notice
from .target import Target

# The columns of the output, by what they are compared with
_COLUMNS = {"id": "id", "filepath": "uri"}

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
        return (
            f"attached  {self.attached:>11,}\n"
            f"skipped   {self.skipped:>11,}\n"
            f"missing   {self.missing:>11,}\n"
            f"failed    {len(self.failed):>11,}\n"
            f"seconds   {self.seconds:>13,.1f}"
        )


_Row = tuple[Embedded, str | None]
"""A row of the output, for one of the samples that wait for it, and its error."""


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
    record = read_output_record(folder)
    if record is None:
        raise ValueError(
            f"{str(out)!r} holds no output of embed_files: it has no {folder.record.name}"
        )

    claim = FieldClaim(target, record.provenance)
    claim.check(overwrite=overwrite)
    wanted = _read_wanted(target, by, overwrite)
    total = sum(map(len, wanted.values()))
    report = AttachReport(skipped=len(target.samples) - total)
    bar = fou.ProgressBar(total=total, progress=None if total else False)
    with bar, contextlib.closing(_find_rows(folder, _COLUMNS[by], wanted)) as found:
        for rows in fou.iter_batches(found, _BATCH_SIZE):
            refused: dict[str, str] = {}
            if embedded := [result for result, error in rows if error is None]:
                claim.take()
                refused = claim.store(embedded)

            for result, error in rows:
                id = result.part.id
                reason = refused.get(id) if error is None else error
                if reason is not None:
                    report.failed.append(Notice(id, id, result.job.path, reason))

            report.attached += len(embedded) - len(refused)
            bar.update(len(rows))

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


def _read_wanted(target: Target, by: str, overwrite: bool) -> dict[str, list[str]]:
    """Read the IDs of the samples that wait for an embedding, by their IDs or paths."""
    view = target.samples
    if not overwrite and target.find_field():
        view = match_embeddings(target, view, False)

    wanted: dict[str, list[str]] = {}
    for key, sample_id in zip(*view.values([by, "id"]), strict=True):
        wanted.setdefault(key, []).append(sample_id)

    return wanted


def _find_rows(
    folder: OutputFolder, column: str, wanted: dict[str, list[str]]
) -> Generator[_Row, None, None]:
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

                places = [place for place, key in enumerate(keys) if key in wanted]
                if places:
                    columns = ["uri", "vector", "error"]
                    table = file.read_row_group(index, columns=columns).take(places)
                    rows = zip(places, _to_rows(table), strict=True)
                    for place, (uri, vector, error) in rows:
                        for id in wanted.pop(keys[place], []):
                            job = Job(id, uri, [Part(id, id)])
                            yield Embedded(job, job.parts[0], vector), error


def _to_rows(table: Any) -> Iterator[tuple[str, Embeddings, str | None]]:
    vectors = table["vector"].combine_chunks()
    flat = vectors.values.to_numpy(zero_copy_only=False)
    flat = flat.reshape(-1, vectors.type.list_size).astype(np.float32)
    uris, errors = table["uri"].to_pylist(), table["error"].to_pylist()
    return zip(uris, flat, errors, strict=True)
