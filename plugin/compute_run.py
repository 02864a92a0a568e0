"""Running compute_hiera_embeddings: load the model, embed, compute brain runs."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import threading
import time
import uuid
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import fiftyone as fo

from ..runs.runner import Step, embed_in_steps
from ..zoo_model import load
from .compute_form import check_form
from .compute_params import parse_params
from .compute_plan import EmbeddingPlan, make_plan, target_samples
from .index_form import with_secrets
from .local_weights import find_in_zoo, find_on_disk, zoo_folder
from .maps import compute_visualization
from .outputs import report_to_dict, show_error, show_progress, show_report

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_UPDATES = 0.25
_SECONDS_BETWEEN_WRITES = 2.0

# FiftyOne's limit on the time of an operator counts from before its form is resolved
_SECONDS_TO_RESOLVE = 30.0

_running: dict[str, threading.Event] = {}


@dataclass(frozen=True)
class _Update:
    """The progress of a run.

    Args:
        result: what :func:`finish` returns; complete when the run has ended
        label: the current step
        progress (None): a number from 0 to 1
    """

    result: dict[str, Any]
    label: str
    progress: float | None = None


def stream(ctx: Any, on_stop: str) -> Generator[Any, None, None]:
    """Run in the App, showing the progress and then the report.

    Closing the generator, as FiftyOne does when the App is closed, stops the run.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`
        on_stop: the URI of the operator that stops the run

    Yields:
        messages that trigger the App's operators
    """
    run = str(uuid.uuid4())
    stopped = _running[run] = threading.Event()
    updates = _run(ctx, stopped, _SECONDS_BETWEEN_UPDATES, progress=False)
    try:
        for update in updates:
            shown = show_progress(update.label, update.progress, on_stop, run)
            yield ctx.trigger("show_output", shown)

        yield ctx.trigger("reload_dataset")
        yield ctx.trigger("show_output", show_report(ctx.dataset, update.result))
    except Exception as error:
        logger.exception("compute_hiera_embeddings failed")
        yield ctx.trigger("reload_dataset")
        yield ctx.trigger("show_output", show_error("The run failed", error))
    finally:
        updates.close()
        del _running[run]


def stop(run: str) -> None:
    """Ask a run in the App to stop; no-op if it has ended."""
    if run in _running:
        _running[run].set()


async def finish(ctx: Any, operator: Any) -> dict[str, Any]:
    """Run to the end, in a thread, so that the event loop is free.

    FiftyOne's limit on the time of an operator does not cut the run. Any other
    cancellation stops it and keeps what was stored.

    Args:
        ctx: the :class:`fiftyone.operators.executor.ExecutionContext`
        operator: the :class:`fiftyone.operators.operator.Operator` that runs

    Returns:
        a dict: ``embedded``, ``skipped`` and ``failed``, three numbers;
        ``failures``, the first 1,000, each with ``id``, ``sample_id``, ``path`` and
        ``reason``; ``seconds``, ``images_per_second``, ``embeddings_field``,
        ``stopped``; ``index``, a dict with ``rows``, ``added`` and ``removed``, if a
        database was fed; ``similarity_brain_key`` and ``visualization_brain_key``, if these
        were requested

    Raises:
        ValueError: if a parameter is not valid
        EmbeddingError: if the run had to stop, or if everything failed
        RuntimeError: if the weights are not available, or if only a brain run failed
    """
    limit = time.monotonic() + fo.config.operator_timeout - _SECONDS_TO_RESOLVE
    stopped = threading.Event()
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as thread:
        running = asyncio.get_running_loop().run_in_executor(
            thread, context.run, _finish, ctx, operator, stopped
        )
        while True:
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                if time.monotonic() < limit:
                    stopped.set()
                    await asyncio.wait([running])
                    raise

                limit = math.inf  # FiftyOne cancels once


def _finish(ctx: Any, operator: Any, stopped: threading.Event) -> dict[str, Any]:
    check_form(ctx, operator)
    # A delegated run has its progress in the database, any other on the terminal
    progress = False if ctx.delegated else None
    for update in _run(ctx, stopped, _SECONDS_BETWEEN_WRITES, progress=progress):
        if ctx.delegated:
            ctx.set_progress(progress=update.progress, label=update.label)

    return update.result


def _run(
    ctx: Any, stopped: threading.Event, interval: float, *, progress: bool | None
) -> Generator[_Update, None, None]:
    plan = make_plan(parse_params(ctx), target_samples(ctx))
    checkpoint = plan.checkpoint
    folder = zoo_folder()
    result: dict[str, Any] = {}
    verb = "Loading" if find_on_disk(checkpoint, folder) else "Downloading"
    label = f"{verb} {checkpoint.name}, {checkpoint.size_bytes / 1e6:,.0f} MB"
    yield _Update(result, label)

    weights = find_in_zoo(checkpoint, folder)
    model = load(checkpoint.name, weights, {"pooling": plan.settings.pooling})
    target = plan.target
    index = plan.index and with_secrets(plan.index, ctx)
    options = replace(plan.options, index=index)
    steps = embed_in_steps(target, model.embedder, options, progress)
    yield from _embed(steps, plan.unit, stopped, interval, result)

    result |= {"embeddings_field": target.path or None, "stopped": stopped.is_set()}
    if stopped.is_set():
        return

    if plan.params.similarity_index:
        result["similarity_brain_key"] = plan.similarity_brain_key

    if plan.params.visualization:
        yield _Update(result, "Computing the 2-D map", 1.0)
        _compute_map(plan, result)


def _embed(
    steps: Generator[Step, None, None],
    unit: str,
    stopped: threading.Event,
    interval: float,
    result: dict[str, Any],
) -> Generator[_Update, None, None]:
    start = time.monotonic()
    last = start - interval
    with contextlib.closing(steps):
        for step in steps:
            if stopped.is_set():
                break

            now = time.monotonic()
            if now - last >= interval or step.is_indexing:
                last = now
                yield _Update(result, *_describe(step, unit, now - start))

    result |= report_to_dict(step.report)


def _describe(step: Step, unit: str, seconds: float) -> tuple[str, float]:
    """Return the label and the progress of a step."""
    if step.is_indexing:
        return "Bringing the similarity index up to date", 1.0

    done = step.report.embedded + len(step.report.failed)
    total = step.worklist.total
    about = "about " if step.worklist.is_estimate else ""
    label = f"{done:,} of {about}{total:,} {unit}"
    if done:
        rate = done / seconds
        left = timedelta(seconds=round((total - done) / rate))
        label += f", {rate:,.3g} per second, {left} left"

    return label, done / total if total else 1.0


def _compute_map(plan: EmbeddingPlan, result: dict[str, Any]) -> None:
    try:
        compute_visualization(plan)
    except Exception as error:
        raise RuntimeError(
            f"The embeddings are stored in {result['embeddings_field']!r}, but "
            f"computing the 2-D map failed: {error}. With very few embeddings, only "
            "method 'pca' works"
        ) from error

    result["visualization_brain_key"] = plan.visualization_brain_key
