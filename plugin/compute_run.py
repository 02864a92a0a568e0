"""Executing compute_hiera_embeddings: load, embed, index, and say how it goes."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ..runs.report import EmbeddingReport
from ..runs.returning import Returning
from ..runs.runner import Step, run_in_steps
from ..zoo_model import load
from .brain import build_index, draw_map
from .compute_params import EmbeddingParams, parse_params
from .compute_plan import EmbeddingPlan, make_options, make_plan, target_samples
from .local_weights import find_in_zoo, is_on_disk, zoo_folder
from .outputs import report_to_dict, show_error, show_progress, show_report

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_UPDATES = 0.25
_SECONDS_BETWEEN_WRITES = 2.0

_running: dict[str, threading.Event] = {}


@dataclass(frozen=True)
class _Update:
    label: str
    progress: float | None = None


def stream(ctx: Any, on_stop: str) -> Generator[Any, None, None]:
    """Run, and tell the App what to show meanwhile and at the end.

    Closing the generator, as FiftyOne does when the App is closed, stops the run.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`
        on_stop: the operator that stops the run

    Yields:
        what the App is to do
    """
    run = str(uuid.uuid4())
    stopped = _running[run] = threading.Event()
    updates = Returning(_run(ctx, stopped, _SECONDS_BETWEEN_UPDATES, progress=False))
    try:
        for update in updates:
            shown = show_progress(update.label, update.progress, on_stop, run)
            yield ctx.trigger("show_output", shown)

        yield ctx.trigger("reload_dataset")
        yield ctx.trigger("show_output", show_report(ctx.dataset, updates.result))
    except Exception as error:
        logger.exception("compute_hiera_embeddings had to stop")
        yield ctx.trigger("reload_dataset")
        yield ctx.trigger("show_output", show_error("This run had to stop", error))
    finally:
        updates.close()
        del _running[run]


def stop(run: str) -> None:
    """Ask a run in the App to stop; nothing happens if it has ended."""
    if run in _running:
        _running[run].set()


def finish(ctx: Any) -> dict[str, Any]:
    """Run to the end.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`

    Returns:
        a dict: ``embedded``, ``skipped`` and ``failed``, three numbers;
        ``failures``, the first 1,000, each with ``id``, ``sample_id``, ``path`` and
        ``reason``; ``seconds``, ``images_per_second``, ``embeddings_field``,
        ``stopped``; ``similarity_brain_key`` and ``visualization_brain_key``, if they
        were asked for

    Raises:
        ValueError: if a parameter is not valid
        EmbeddingError: if the run had to stop, or if everything failed
        RuntimeError: if the weights cannot be had, or if only the brain failed
    """
    # A delegated run has its progress in the database, any other on the terminal
    progress = False if ctx.delegated else None
    run = _run(ctx, threading.Event(), _SECONDS_BETWEEN_WRITES, progress=progress)
    updates = Returning(run)
    for update in updates:
        if ctx.delegated:
            ctx.set_progress(progress=update.progress, label=update.label)

    return updates.result


def _run(
    ctx: Any, stopped: threading.Event, interval: float, *, progress: bool | None
) -> Generator[_Update, None, dict[str, Any]]:
    params = parse_params(ctx.params)
    plan = make_plan(params, target_samples(ctx))
    checkpoint = plan.checkpoint
    folder = zoo_folder()
    verb = "Loading" if is_on_disk(checkpoint, folder) else "Downloading"
    yield _Update(f"{verb} {checkpoint.name}, {checkpoint.size_bytes / 1e6:,.0f} MB")

    weights = find_in_zoo(checkpoint, folder)
    model = load(checkpoint.name, weights, {"pooling": plan.settings.pooling})
    target = plan.target
    steps = Returning(run_in_steps(target, model.embedder, make_options(params), progress))
    report = yield from _embed(steps, plan.unit, stopped, interval)

    result = report_to_dict(report)
    result |= {"embeddings_field": target.path, "stopped": stopped.is_set()}
    if not stopped.is_set():
        yield from _use_brain(params, plan, result)

    return result


def _embed(
    steps: Returning[Step, EmbeddingReport],
    unit: str,
    stopped: threading.Event,
    interval: float,
) -> Generator[_Update, None, EmbeddingReport]:
    start = time.monotonic()
    last = start - interval
    with contextlib.closing(steps):
        for step in steps:
            if stopped.is_set():
                break

            now = time.monotonic()
            if now - last >= interval:
                last = now
                yield _describe(step, unit, now - start)
        else:
            return steps.result

    return step.report


def _describe(step: Step, unit: str, seconds: float) -> _Update:
    done = step.report.embedded + len(step.report.failed)
    label = f"{done:,} of {step.total:,} {unit}"
    if done:
        rate = done / seconds
        left = timedelta(seconds=round((step.total - done) / rate))
        label += f", {rate:,.3g} per second, {left} left"

    return _Update(label, done / step.total if step.total else 1.0)


def _use_brain(
    params: EmbeddingParams, plan: EmbeddingPlan, result: dict[str, Any]
) -> Generator[_Update, None, None]:
    for is_wanted, key, what, make in (
        (params.similarity_index, "similarity_brain_key", "similarity index", build_index),
        (params.visualization, "visualization_brain_key", "map", draw_map),
    ):
        if not is_wanted:
            continue

        yield _Update(f"Making the {what}", 1.0)
        try:
            make(plan)
        except Exception as error:
            raise RuntimeError(
                f"The vectors are stored in {result['embeddings_field']!r}, but the {what} "
                f"could not be made: {error}. Of very few vectors, PCA alone makes a map"
            ) from error

        result[key] = getattr(plan, key)
