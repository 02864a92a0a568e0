"""Run ``embed_files``: read a manifest, embed its files, write Parquet files."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..cluster.options import RayOptions
from ..cluster.start import start_embedding
from ..embedding.arguments import (
    check_progress,
    convert_fields,
    optional,
    to_boolean,
    to_integer,
    to_shard,
)
from ..embedding.jobs import Result
from ..embedding.loading import load_checkpoint
from ..errors import check_choice
from .manifest import Manifest
from .output_folder import OutputFolder
from .output_record import OutputRecord
from .output_rows import VECTORS
from .pending_output import PendingOutput
from .report import FilesError, FilesReport, ProgressBar
from .unique_ids import check_unique_ids

_DEFAULT_BATCH_SIZE = 32
_KEPT = "What was written is kept; the same call resumes there"
_RETRY = (
    "Remove the causes, and try these files again with retry_failed=True. If uris in the "
    "manifest are wrong, correct them and use another folder for the output"
)


@dataclass(frozen=True)
class FileOptions:
    """The options of a run; see :func:`fiftyone_hiera.embed_files`."""

    ray: RayOptions | None
    batch_size: int | None
    num_workers: int | None
    part_size: int
    vectors: str
    shard: tuple[int, int] | None
    retry_failed: bool
    progress: bool | Callable[[Any], None]

    def __post_init__(self) -> None:
        check_progress(self.progress)
        convert_fields(
            self,
            retry_failed=to_boolean,
            batch_size=optional(partial(to_integer, least=1)),
            num_workers=optional(partial(to_integer, least=0)),
            part_size=partial(to_integer, least=1),
            vectors=partial(check_choice, valid=VECTORS),
            shard=optional(to_shard),
        )


def embed_manifest(
    manifest: Path,
    out: Path,
    model: str,
    model_options: Mapping[str, Any],
    options: FileOptions,
) -> FilesReport:
    """Embed the files of a manifest; see :func:`fiftyone_hiera.embed_files`."""
    start = time.perf_counter()
    report = FilesReport()
    rows = Manifest(manifest)
    _check_folder(out, rows)
    embedder = load_checkpoint(model, None, model_options)
    folder = OutputFolder(out)
    record = OutputRecord(
        embedder.provenance,
        options.vectors,
        embedder.dim,
        options.part_size,
        rows.rows,
        rows.digest,
    )
    is_new = not out.exists()
    try:
        has_record = record.check_same(folder)
        if not has_record:
            folder.unfinished.mkdir(parents=True, exist_ok=True)
            check_unique_ids(rows, folder.unfinished)

        output = PendingOutput(
            rows,
            folder,
            record,
            report,
            shard=options.shard,
            retry_failed=options.retry_failed,
        )
        workers = options.num_workers
        started = start_embedding(
            output.read_jobs(),
            embedder,
            options.ray,
            batch_size=options.batch_size or _DEFAULT_BATCH_SIZE,
            local_workers=os.cpu_count() or 1 if workers is None else workers,
            task_workers=workers or 0,
        )
        with contextlib.closing(started) as results:
            # The record comes after the first of them: nothing is claimed by a run that
            # finds no cluster
            first = next(results, [])
            if output.total or not has_record:
                record.claim(folder)

            _write(itertools.chain([first], results), output, options.progress)
    except (MemoryError, RuntimeError, OSError) as error:
        reason = str(error) or type(error).__name__
        kept = f"\n{_KEPT}" if folder.is_resumable else ""
        raise FilesError(f"{reason}{kept}", report) from error
    finally:
        report.seconds = time.perf_counter() - start
        if not folder.record.exists():
            folder.discard(is_new=is_new)

    if report.failed and not report.embedded and not report.skipped:
        message = f"All files failed:\n{report}\n{_RETRY}"
        raise FilesError(message, report, "retry_failed")

    return report


def _check_folder(out: Path, manifest: Manifest) -> None:
    """Check that the output is a folder without files of the manifest's folder."""
    if out.exists() and not out.is_dir():
        raise ValueError(
            f"The output {str(out)!r} is a file: pass the path of a folder, which need not "
            "exist"
        )

    folder = out.resolve()
    if not folder.is_relative_to(manifest.path.resolve()):
        return

    for file in manifest.files:
        if file.parent.resolve().is_relative_to(folder):
            raise ValueError(
                f"The output {str(out)!r} is a folder with a file of the manifest, "
                f"{str(file)!r}: use another folder, such as {str(out / 'embeddings')!r}"
            )


def _write(
    results: Iterable[list[Result]],
    output: PendingOutput,
    progress: bool | Callable[[Any], None],
) -> None:
    with ProgressBar(output.total, progress) as bar:
        try:
            for some in results:
                output.add(some)
                if output.done > bar.iteration:
                    bar.update(output.done - bar.iteration)
        finally:
            output.flush()

    output.close()
