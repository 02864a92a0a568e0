"""Show a run in the App: its progress, its report or an error."""

from __future__ import annotations

import json
from typing import Any

from bson import json_util
from fiftyone.operators import types

from ..runs.fiftyone_internals import view_stages
from ..runs.report import EmbeddingReport

# Results are stored in a MongoDB document, which holds at most 16 MB
_MAX_NOTICES = 1000
_MAX_REASONS = 10


def report_to_dict(report: EmbeddingReport) -> dict[str, Any]:
    """Convert a report to plain values.

    Its "failed" and "warned" are numbers, its "failures" and "warnings" the first 1,000 of
    each.
    """
    return {
        "embedded": report.embedded,
        "skipped": report.skipped,
        "failed": len(report.failed),
        "failures": [vars(notice) for notice in report.failed[:_MAX_NOTICES]],
        "warned": len(report.warned),
        "warnings": [vars(notice) for notice in report.warned[:_MAX_NOTICES]],
        "seconds": report.seconds,
        "images_per_second": report.images_per_second,
        **({"index": vars(report.index)} if report.index is not None else {}),
    }


def show(outputs: types.Property, results: dict[str, Any]) -> Any:
    """Return parameters of ``show_output`` for a view and its values."""
    return {"outputs": outputs.to_json(), "results": results}


def show_progress(label: str, progress: float | None, on_stop: str, run: str) -> Any:
    """Return parameters of ``show_output`` for a progress bar with a Stop button.

    Args:
        label: the text below the bar
        progress: a number from 0 to 1, or None if it is not known
        on_stop: the URI of the operator that the button executes
        run: the ID of the run
    """
    outputs = types.Object()
    outputs.float("progress", view=types.ProgressView(label=label))
    outputs.btn("stop", label="Stop", on_click=on_stop, params={"run": run})
    return show(types.Property(outputs), {"progress": progress})


def show_error(title: str, error: Exception) -> Any:
    """Return parameters of ``show_output`` for an error."""
    outputs = types.Object()
    outputs.view("error", types.Error(label=title, description=str(error)))
    return show(types.Property(outputs), {})


def report_view(dataset: Any, result: dict[str, Any]) -> types.Property:
    """Build the view of a report, see :func:`fiftyone_hiera.plugin.compute_run.finish`.

    A button shows the samples that failed.
    """
    outputs = types.Object()
    is_complete = not result["failed"] and not result["stopped"]
    notice = types.Success if is_complete else types.Warning
    label = (
        f"{'Stopped: ' if result['stopped'] else ''}{result['embedded']:,} embedded, "
        f"{result['skipped']:,} skipped, {result['failed']:,} failed"
    )
    if result.get("warned"):
        label += f", {result['warned']:,} with a warning"

    field, key = result["embeddings_field"], result.get("similarity_brain_key")
    where = f"the index {key!r}" if field is None else f"the field {field!r}"
    description = (
        f"{result['seconds']:,.1f} s, {result['images_per_second']:,.3g} per second, into "
        f"{where}"
    )
    if "index" in result:
        change = result["index"]
        description += (
            f". The index {key!r} has {change['rows']:,} rows: {change['added']:,} added, "
            f"{change['removed']:,} removed"
        )

    if result["stopped"]:
        description += ". To resume, run the same form with this field"

    outputs.view("counts", notice(label=label, description=description))
    if result["failures"]:
        _show_failures(outputs, dataset, result["failures"])

    if result.get("warnings"):
        _show_reasons(outputs, "warnings", result["warnings"])

    if result.get("visualization_brain_key"):
        outputs.btn(
            "open_map",
            label=f"Open the Embeddings panel for {result['visualization_brain_key']!r}",
            on_click="open_panel",
            params={"name": "Embeddings", "layout": "horizontal", "isActive": True},
        )

    return types.Property(outputs, view=types.View(label="Hiera embeddings"))


def _show_failures(
    outputs: types.Object, dataset: Any, failures: list[dict[str, Any]]
) -> None:
    view = dataset.select(list({failure["sample_id"]: None for failure in failures}))
    outputs.btn(
        "show_failed",
        label=f"Show the samples that failed: {len(view):,}",
        on_click="set_view",
        params={"view": json.loads(json_util.dumps(view_stages(view)))},
    )
    _show_reasons(outputs, "reasons", failures)


def _show_reasons(outputs: types.Object, name: str, notices: list[dict[str, Any]]) -> None:
    reasons = [f"- {notice['reason']}" for notice in notices[:_MAX_REASONS]]
    if len(notices) > _MAX_REASONS:
        reasons.append("- ...")

    outputs.md("\n".join(reasons), name=name)
