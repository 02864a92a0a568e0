"""Run compute_hiera_embeddings: load the model, embed, compute brain runs."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import fiftyone as fo

from ..runs.runner import Step, embed_in_steps
from ..zoo_model import load
from .compute_plan import EmbeddingPlan
from .index_form import with_secrets
from .local_weights import find_in_zoo
from .maps import compute_map
from .outputs import report_to_dict, report_view, show, show_error, show_progress

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_UPDATES = 0.25
_SECONDS_BETWEEN_WRITES = 2.0

# FiftyOne's limit on the time of an operator counts from before its form is resolved
_SECONDS_TO_RESOLVE = 30.0

_running: dict[str, threading.Event] = {}

_Updates = Generator[tuple[str, float | None], None, None]
"""The label of each step of a run, and its progress from 0 to 1, if it is known."""


def stream(
    make_plan: Callable[[], EmbeddingPlan],
    trigger: Callable[[str, dict[str, Any] | None], Any],
    on_stop: str,
) -> Generator[Any, None, None]:
    """Run in the App, showing the progress and then the report.

    Closing the generator, as FiftyOne does when the App is closed, stops the run.

    Args:
        make_plan: returns the plan of the run
        trigger: returns the message that triggers an operator of the App, by its name and
            parameters
        on_stop: the URI of the operator that stops the run

    Yields:
        messages that trigger the App's operators
    """
    run = str(uuid.uuid4())
    stopped = _running[run] = threading.Event()
    result: dict[str, Any] = {}
    try:
        plan = make_plan()
        updates = _run(plan, result, stopped, _SECONDS_BETWEEN_UPDATES, progress=False)
        with contextlib.closing(updates):
            for label, progress in updates:
                shown = show_progress(label, progress, on_stop, run)
                yield trigger("show_output", shown)

        yield trigger("reload_dataset", None)
        yield trigger("show_output", show(report_view(plan.source.dataset, result), result))
    except Exception as error:
        logger.exception("compute_hiera_embeddings failed")
        yield trigger("reload_dataset", None)
        yield trigger("show_output", show_error("The run failed", error))
    finally:
        del _running[run]


def stop(run: str) -> None:
    """Ask a run in the App to stop; no-op if it has ended."""
    if run in _running:
        _running[run].set()


async def finish(
    make_plan: Callable[[], EmbeddingPlan], set_progress: Callable[..., None] | None
) -> dict[str, Any]:
    """Run to the end, in a thread, so that the event loop is free.

    FiftyOne's limit on the time of an operator does not cut the run. Any other
    cancellation stops it and keeps what was stored.

    Args:
        make_plan: returns the plan of the run
        set_progress: stores the ``progress`` and the ``label`` of a delegated run; with
            None, a progress bar is on the terminal

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

    def run() -> dict[str, Any]:
        result: dict[str, Any] = {}
        shown = None if set_progress is None else False
        updates = _run(
            make_plan(), result, stopped, _SECONDS_BETWEEN_WRITES, progress=shown
        )
        for label, progress in updates:
            if set_progress is not None:
                set_progress(progress=progress, label=label)

        return result

    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as thread:
        running = asyncio.get_running_loop().run_in_executor(thread, context.run, run)
        while True:
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                if time.monotonic() < limit:
                    stopped.set()
                    await asyncio.wait([running])
                    raise

                limit = math.inf  # FiftyOne cancels once


def _run(
    plan: EmbeddingPlan,
    result: dict[str, Any],
    stopped: threading.Event,
    interval: float,
    *,
    progress: bool | None,
) -> _Updates:
    """Load the model, embed, and compute the brain runs; fill in the result."""
    checkpoint, params = plan.checkpoint, plan.params
    map_key = plan.map_key if params.visualization else None
    weights = find_in_zoo(checkpoint)
    verb = "Loading" if weights or checkpoint.file.cached() else "Downloading"
    yield f"{verb} {checkpoint.name}, {checkpoint.size_bytes / 1e6:,.0f} MB", None

    model = load(checkpoint.name, weights, {"pooling": plan.settings.pooling})
    options = plan.options
    if params.similarity_index:
        options = replace(options, index=with_secrets(plan.index, plan.find_secret))

    steps = embed_in_steps(plan.target, model.embedder, options, progress)
    start = time.monotonic()
    last = start - interval
    with contextlib.closing(steps):
        for step in steps:
            if stopped.is_set():
                break

            now = time.monotonic()
            if now - last >= interval or step.is_indexing:
                last = now
                yield _describe(step, plan.unit, now - start)

    field = plan.target.path or None
    result |= report_to_dict(step.report)
    result |= {"embeddings_field": field, "stopped": stopped.is_set()}
    if stopped.is_set():
        return

    if params.similarity_index:
        result["similarity_brain_key"] = plan.index_key

    if map_key is not None:
        yield "Computing the 2-D map", 1.0
        try:
            compute_map(plan.target, map_key, plan.method)
        except Exception as error:
            raise RuntimeError(
                f"The embeddings are stored in {field!r}, but computing the 2-D map "
                f"failed: {error}. With very few embeddings, only method 'pca' works"
            ) from error

        result["visualization_brain_key"] = map_key


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
